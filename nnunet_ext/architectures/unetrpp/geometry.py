"""How UNETR++ reduces a patch: strides and grids of its four stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

MAX_TOKENS = 73_728  # in the first stage: those of the largest published network (lung)


@dataclass(frozen=True)
class Geometry:
    """How a patch is reduced; all triples in the order of the patch's axes."""

    patch: tuple[int, ...]
    padded: tuple[int, ...]  # what the network works on: the patch, or a little more at the end of each axis
    strides: tuple[tuple[int, ...], ...]  # of the stem and the three reductions after it

    @property
    def reductions(self) -> list[tuple[int, ...]]:
        """Voxels per token and axis, for each stage."""
        return [*accumulate(self.strides, lambda a, b: tuple(x * y for x, y in zip(a, b, strict=True)))]

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """Tokens per axis, for each stage."""
        return [tuple(p // r for p, r in zip(self.padded, reduction, strict=True)) for reduction in self.reductions]


def fit_geometry(patch_size: Sequence[int]) -> Geometry:
    """Strides for a patch: the published ones at the published sizes, and no padding where it can be avoided.

    The stem reduces long axes by 4 and axes k times shorter by 4 / k, so that tokens become near cubic; more where the
    first stage would exceed `MAX_TOKENS`; never more than the axis can be divided by. Each later stage halves the axes
    that are even and at least 4 tokens long. Axes of odd length that need reducing (nnU-Net plans none) are padded to
    the next even number of tokens, as are those that the stem does not divide if the patch has too many tokens else.

    Raises:
        ValueError: not three positive sizes.
    """
    patch = tuple(int(size) for size in patch_size)
    if len(patch) != 3 or min(patch) < 1:
        raise ValueError(f"UNETR++ needs a patch of three positive sizes, not {tuple(patch_size)}")
    # Axes shorter than 8 keep at least two tokens.
    wanted = [min(4, max(1, round(4 / 2 ** round(math.log2(max(patch) / p)))), 2 ** int(math.log2(p)) // 2 or 1)
              for p in patch]  # fmt: skip
    while _count(patch, wanted) > MAX_TOKENS and min(wanted) < 4:
        smallest = min(range(3), key=lambda axis: (wanted[axis], -patch[axis]))
        wanted[smallest] *= 2
    stem = [math.gcd(p, w) for p, w in zip(patch, wanted, strict=True)]
    if _count(patch, stem) > MAX_TOKENS or any(s == 1 < w for s, w in zip(stem, wanted, strict=True)):
        stem = wanted
    padded = tuple(p if p % s == 0 else math.ceil(p / (2 * s)) * 2 * s for p, s in zip(patch, stem, strict=True))
    strides, grid = [tuple(stem)], [p // s for p, s in zip(padded, stem, strict=True)]
    for _ in range(3):
        strides.append(tuple(2 if size % 2 == 0 and size >= 4 else 1 for size in grid))
        grid = [size // s for size, s in zip(grid, strides[-1], strict=True)]
    return Geometry(patch, padded, tuple(strides))


def _count(patch: Sequence[int], stem: Sequence[int]) -> int:
    return math.prod(math.ceil(p / s) for p, s in zip(patch, stem, strict=True))


def given_geometry(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> Geometry:
    """The patch, padded to multiples of the strides of the stem and three reductions.

    Raises:
        ValueError: not three sizes and four triples.
    """
    patch = tuple(int(size) for size in patch_size)
    triples = tuple(tuple(int(s) for s in stride) for stride in strides)
    if len(patch) != 3 or len(triples) != 4 or any(len(t) != 3 or min(t) < 1 for t in triples):
        raise ValueError(f"UNETR++ needs a patch of three sizes and four triples of strides, not {patch} and {strides}")
    total = Geometry(patch, patch, triples).reductions[-1]
    return Geometry(patch, tuple(math.ceil(p / t) * t for p, t in zip(patch, total, strict=True)), triples)


def from_patch(patch_size: list[int], pool_op_kernel_sizes: list[list[int]]) -> dict[str, Any]:
    """The patch, which the network's projections belong to, and strides that divide it; nnU-Net's need not."""
    return {"patch_size": list(patch_size), "strides": [list(stride) for stride in fit_geometry(patch_size).strides]}
