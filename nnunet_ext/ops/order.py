"""The three orders in which SegMamba reads a volume's tokens (arXiv:2401.13560, section 2.2, "tri-orientated").

The tokens of a volume lie in memory slice by slice, `num_slices` slices of length / num_slices tokens.

| orientation | step t of the scan reads token                                                                   |
|-------------|--------------------------------------------------------------------------------------------------|
| `forward`   | t                                                                                                |
| `reverse`   | length - 1 - t                                                                                   |
| `slices`    | (t mod num_slices) length / num_slices + t div num_slices: through all slices, then the next place |

Operators either follow an order by index or, where they cannot, copy with `reorder` and back with `restore`.
"""

from __future__ import annotations

from torch import Tensor

ORIENTATIONS = ("forward", "reverse", "slices")


def check_orientation(orientation: str, num_slices: int, length: int) -> None:
    """Raise ValueError unless the orientation is known and the slices divide the sequence."""
    if orientation not in ORIENTATIONS:
        raise ValueError(f"orientation={orientation!r} is unknown; use one of {', '.join(ORIENTATIONS)}")
    if orientation == "slices" and (num_slices < 1 or length % num_slices):
        raise ValueError(f"num_slices={num_slices} does not divide the sequence of {length} tokens")


def reorder(x: Tensor, orientation: str, num_slices: int = 1) -> Tensor:
    """Copy the last axis from the order in memory into the order of the scan; no copy for `forward`."""
    if orientation == "forward":
        return x
    if orientation == "reverse":
        return x.flip(-1)
    return x.unflatten(-1, (num_slices, -1)).transpose(-1, -2).flatten(-2)


def restore(x: Tensor, orientation: str, num_slices: int = 1) -> Tensor:
    """Inverse of `reorder`."""
    if orientation != "slices":
        return reorder(x, orientation)
    return x.unflatten(-1, (-1, num_slices)).transpose(-1, -2).flatten(-2)
