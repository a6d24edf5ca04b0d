"""Images on their way in: decoded, sized, listed, split and kept as one memory-mapped array."""
