"""tracked_cls: a folder of images becomes a trained, evaluated, registered and reproducible classifier."""

import os

# OpenMP threads that wait spin for millions of rounds, which makes training 5 to 20 times slower wherever another process wants
# one of the cores; so few rounds cost nothing on a quiet machine. Read when torch is imported, so it stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
