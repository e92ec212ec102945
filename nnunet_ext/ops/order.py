"""The three orders in which SegMamba reads a volume's tokens (arXiv:2401.13560, section 2.2, "tri-orientated").

The tokens of a volume lie in memory slice by slice, `num_slices` slices of length / num_slices tokens.

| orientation | step t of the scan reads token                                                                   |
|-------------|--------------------------------------------------------------------------------------------------|
| `forward`   | t                                                                                                |
| `reverse`   | length - 1 - t                                                                                   |
| `slices`    | (t mod num_slices) length / num_slices + t div num_slices: through all slices, then the next place |

Step t lies at `origin + (t mod period) step_stride + (t div period) run_stride`. Operators either follow an order by
index or, where they cannot, copy with `reorder` and back with `restore`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

ORIENTATIONS = ("forward", "reverse", "slices")

# Steps worked through at once: long enough for the processor to prefetch rows, short enough for its caches.
_BLOCK = 512
# The inter-slice order goes through all slices before it takes the next place, so a block takes sixteen places, a
# whole cache line in each slice, as long as it is no longer than this.
_LONGEST_BLOCK = 2048


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


def blocks_of(orientation: str, num_slices: int, length: int) -> tuple[np.ndarray, int, int]:
    """Cut a sequence into blocks that are worked through at once: their table, step_stride and run_stride.

    A row of the table is (first step, place of the first step, steps of a run, runs): step j steps + i of the block
    lies at place + i step_stride + j run_stride.
    """
    if orientation == "slices" and num_slices > 1:
        places = length // num_slices
        if num_slices <= _LONGEST_BLOCK:
            at_once = max(1, min(16, _LONGEST_BLOCK // num_slices))
            at_once = max(at_once, _BLOCK // num_slices)
            origin = np.arange(0, places, at_once)
            runs = np.minimum(at_once, places - origin)
            return np.stack([origin * num_slices, origin, np.full_like(runs, num_slices), runs], 1), places, 1
        slices = np.arange(0, num_slices, _BLOCK)
        steps = np.minimum(_BLOCK, num_slices - slices)
        place = np.arange(places)[:, None]
        table = [place * num_slices + slices, place + places * slices, *np.broadcast_arrays(steps, place)[:1]]
        return np.stack([*(x.ravel() for x in table), np.ones(table[0].size, int)], 1), places, 1
    start = np.arange(0, length, _BLOCK)
    steps = np.minimum(_BLOCK, length - start)
    backwards = orientation == "reverse"
    origin = length - 1 - start if backwards else start
    return np.stack([start, origin, np.ones_like(steps), steps], 1), 0, -1 if backwards else 1


def places_of(orientation: str, num_slices: int, length: int) -> tuple[int, int, int, int]:
    """origin, period, step_stride and run_stride of the formula above."""
    if orientation == "slices" and num_slices > 1:
        return 0, num_slices, length // num_slices, 1
    return (length - 1, 1, 0, -1) if orientation == "reverse" else (0, 1, 0, 1)
