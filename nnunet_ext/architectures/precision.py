"""Double precision for sines and cosines of large angles, on every device.

Single precision rounds an angle near 1000 by up to 3e-5, and `exp` and matrix products differ between processors in
the last digit: the same weights would see other features on another machine. From angles in double precision, sines
and cosines come out rounded to single precision alike everywhere.
"""

from __future__ import annotations

import torch


def double_device(device: torch.device) -> torch.device:
    """Where to compute float64 for tensors of `device`: there, or on the CPU for mps, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
