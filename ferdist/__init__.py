"""ferdist: distributed training and exact evaluation of occlusion-robust facial expression recognition."""

__version__ = "0.1.0"
