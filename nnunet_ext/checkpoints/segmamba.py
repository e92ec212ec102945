"""SegMamba's official weights: the parameter names are ours, so no renaming is needed.

Source: github.com/ge-xing/SegMamba (no licence file; nothing is copied from it). Its authors publish no weights at
the time of writing; files trained with its code load here.
"""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_ext.architectures.segmamba import OFFICIAL_NUM_SLICES, SegMamba


def build(
    *,
    in_channels: int,
    num_classes: int,
    depths: Sequence[int] = (2, 2, 2, 2),
    dims: Sequence[int] = (48, 96, 192, 384),
    hidden_size: int = 768,
    num_slices: Sequence[int] | None = OFFICIAL_NUM_SLICES,
) -> SegMamba:
    """The official network. `num_slices` is the official list, which weights trained with it need."""
    return SegMamba(in_channels, num_classes, depths=depths, dims=dims, hidden_size=hidden_size, num_slices=num_slices)
