"""tracked_cls: a folder of images becomes a trained, evaluated, registered and reproducible classifier."""

__version__ = "0.1.0"
