"""SAM-Med3D (arXiv:2310.15161): the published network part by part, and what nnU-Net trains and runs of it."""

from nnunet_ext.architectures.sam_med3d.model import VARIANTS, SAMMed3D
from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D

__all__ = ["VARIANTS", "PromptableSAMMed3D", "SAMMed3D"]
