"""Published segmentation models as trainers for the unmodified nnU-Net v2.

Importing this package imports neither torch nor nnunetv2: the sub-packages do, when they are used.
"""

__version__ = "0.2.0.dev0"
