"""SAM-Med3D: the published network, part by part."""

from nnunet_ext.architectures.sam_med3d.model import VARIANTS, SAMMed3D

__all__ = ["VARIANTS", "SAMMed3D"]
