"""SegMamba (arXiv:2401.13560)."""

from nnunet_ext.architectures.segmamba.model import OFFICIAL_NUM_SLICES, SegMamba

__all__ = ["OFFICIAL_NUM_SLICES", "SegMamba"]
