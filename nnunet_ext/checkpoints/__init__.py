"""Weights of the official implementations: read safely, load strictly, report clearly."""

from nnunet_ext.checkpoints.load import build_from_official, load_strict, read_checkpoint

__all__ = ["build_from_official", "load_strict", "read_checkpoint"]
