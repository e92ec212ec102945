"""UNETR++ (arXiv:2212.04497)."""

from nnunet_ext.architectures.unetrpp.model import UNETRPP, VARIANTS

__all__ = ["UNETRPP", "VARIANTS"]
