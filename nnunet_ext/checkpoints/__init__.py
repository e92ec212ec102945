"""Weights of the official implementations: read safely, load strictly, report clearly.

`load.py` reads files without running code in them, builds the network of `build_from_official`'s name and loads
strictly. One file per model holds its official sizes and, where weights are published, how they are fitted to a
network of another patch, class or channel count; its row in `models/` names both functions.
"""

from nnunet_ext.checkpoints.load import build_from_official, load_strict, read_checkpoint

__all__ = ["build_from_official", "load_strict", "read_checkpoint"]
