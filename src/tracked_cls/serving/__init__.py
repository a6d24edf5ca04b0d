"""The model as users of it see it: images in, labels and probabilities out."""
