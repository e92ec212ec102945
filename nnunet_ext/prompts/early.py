"""A simulated user of early prompting: how an interaction with an object begins, and how it goes on.

Sees the reference. Pure functions with a generator; shapes are (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation, binary_erosion

from nnunet_ext.prompts.channels import Interaction
from nnunet_ext.prompts.drawn import STYLES, draw_box, draw_lasso, draw_point, draw_scribble

# How often each is used, to begin with and to correct.
_FIRST = {"point": 0.4, "box": 0.2, "scribble": 0.2, "lasso": 0.2}
_NEXT = {"point": 0.55, "box": 0.1, "scribble": 0.2, "lasso": 0.15}
# Beginnings: an interaction alone, one on top of a rough mask as AutoZoom gives it, a rough mask alone.
_BEGINNINGS = {"interaction": 0.75, "both": 0.12, "mask": 0.13}
# An object that is not there, the share of samples; of these, what the user sees before the beginning.
EMPTY = 0.05
_CENTRED = 0.5
_LARGEST = 0.6


@dataclass(frozen=True)
class Beginning:
    """What a network is shown first.

    Attributes:
        previous: bool (z, y, x), a segmentation to better, or None.
        interactions: the oldest first; may be empty.
    """

    previous: np.ndarray | None
    interactions: tuple[Interaction, ...]


def begin(thing: np.ndarray, counted: np.ndarray, random: np.random.Generator, zoom: float = 1.0) -> Beginning:
    """How an interaction with an object begins.

    Args:
        thing: bool, the object; where it is empty, there is nothing to find.
        counted: bool, where the user looks: not outside of the image, nor where the reference says nothing.
        zoom: the patch is seen from so many times as far.
    """
    if not thing.any():
        return _with_nothing_there(counted, random, zoom)
    how = _pick(_BEGINNINGS, random)
    previous = None if how == "interaction" else roughened(thing, random) & counted
    if how == "mask":
        return Beginning(previous, ())
    visible = thing & counted
    if not visible.any():
        return Beginning(previous, ())
    region, corner = _cut(visible if random.random() < 0.3 else _component(visible, random))
    return Beginning(previous, (_moved(interact(region, True, random, _FIRST, zoom), corner),))


def correct(
    thing: np.ndarray, prediction: np.ndarray, counted: np.ndarray, random: np.random.Generator, zoom: float = 1.0
) -> Interaction | None:
    """The next interaction, in one of the regions that are wrong, often the largest; None where there is none.

    Args:
        thing, prediction: bool.
        counted, zoom: see `begin`.
    """
    wrong = (thing != prediction) & counted
    if not wrong.any():
        return None
    box, corner = _cut(wrong, whole=True)
    kinds = np.where(wrong[box], np.where(thing[box], 1, 2), 0).astype(np.uint8)
    region = _component(kinds, random)
    positive = bool(thing[box][region][0])
    region, inner = _cut(region)
    corner = tuple(a + b for a, b in zip(corner, inner, strict=True))
    return _moved(interact(region, positive, random, _NEXT, zoom), corner)


def interact(
    region: np.ndarray, positive: bool, random: np.random.Generator, kinds: dict[str, float], zoom: float = 1.0
) -> Interaction:
    """Draw in a region, by a kind drawn with these weights."""
    kind = _pick(kinds, random)
    if kind == "point":
        return draw_point(region, positive, random, centred=random.random() < _CENTRED, zoom=zoom)
    if kind == "box":
        return draw_box(region, positive, random, zoom=zoom)
    if kind == "lasso":
        return draw_lasso(region, positive, random, zoom=zoom)
    return draw_scribble(region, positive, random, style=STYLES[random.integers(len(STYLES))], zoom=zoom)


def roughened(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A mask as another program, or a look from farther away, might give it: coarse, thick, thin, moved, cut."""
    if random.random() < 0.6:
        mask = _coarse(mask, random.uniform(1.5, 4.0))
    if random.random() < 0.3:
        by = tuple(int(n) for n in random.integers(-3, 4, 3))
        mask = _shifted(mask, by)
    if random.random() < 0.4:
        change = binary_dilation if random.random() < 0.5 else binary_erosion
        mask = change(mask, iterations=int(random.integers(1, 3)))
    if random.random() < 0.3 and mask.any():
        axis = int(random.integers(3))
        used = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        at = int(random.integers(used[0], used[-1] + 1))
        gone = slice(0, at) if random.random() < 0.5 else slice(at, None)
        mask = mask.copy()
        mask[(slice(None),) * axis + (gone,)] = False
    return mask


def _with_nothing_there(counted: np.ndarray, random: np.random.Generator, zoom: float) -> Beginning:
    """Something wrong to be removed, or nothing at all."""
    if not counted.any() or random.random() < 0.3:
        return Beginning(None, ())
    blob = _blob(counted, random)
    if not blob.any() or random.random() < 0.2:
        return Beginning(blob & counted, ())
    region, corner = _cut(blob)
    drawn = _moved(interact(region, False, random, _NEXT, zoom), corner)
    return Beginning(blob if random.random() < 0.7 else None, (drawn,))


def _blob(counted: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An ellipsoid somewhere that counts."""
    flat = np.flatnonzero(counted)
    centre = np.unravel_index(flat[random.integers(len(flat))], counted.shape)
    radii = [max(1.5, n * random.uniform(0.05, 0.25)) for n in counted.shape]
    axes = [((np.arange(n) - c) / r) ** 2 for n, c, r in zip(counted.shape, centre, radii, strict=True)]
    return (axes[0][:, None, None] + axes[1][:, None] + axes[2] <= 1) & counted


def _coarse(mask: np.ndarray, factor: float) -> np.ndarray:
    """What is left of a mask after a look from `factor` times as far."""
    size = [max(1, round(n / factor)) for n in mask.shape]
    whole = torch.from_numpy(mask.astype(np.float32))[None, None]
    small = (F.interpolate(whole, size, mode="area") >= 0.5).float()
    return (F.interpolate(small, mask.shape, mode="trilinear")[0, 0] >= 0.5).numpy()


def _shifted(mask: np.ndarray, by: Sequence[int]) -> np.ndarray:
    moved = np.zeros_like(mask)
    there = tuple(slice(max(b, 0), n + min(b, 0)) for b, n in zip(by, mask.shape, strict=True))
    here = tuple(slice(max(-b, 0), n + min(-b, 0)) for b, n in zip(by, mask.shape, strict=True))
    moved[there] = mask[here]
    return moved


def _component(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One connected component of equal values other than 0: often the largest, else one drawn by size."""
    components = cc3d.connected_components(kinds, connectivity=26)
    sizes = np.bincount(components.ravel())[1:]
    if random.random() < _LARGEST:
        return components == int(sizes.argmax()) + 1
    return components == int(random.choice(len(sizes), p=sizes / sizes.sum())) + 1


def _cut(region: np.ndarray, whole: bool = False):
    """A region's box: the part of the region in it, or its slices where `whole`; and its lowest voxel."""
    box = []
    for axis in range(3):
        used = np.flatnonzero(region.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    slices, corner = tuple(box), tuple(part.start for part in box)
    return (slices if whole else region[slices]), corner


def _moved(drawn: Interaction, by: Sequence[int]) -> Interaction:
    return replace(drawn, corner=tuple(c + b for c, b in zip(drawn.corner, by, strict=True)))


def _pick(weights: dict[str, float], random: np.random.Generator) -> str:
    names, shares = list(weights), np.cumsum(list(weights.values()))
    return names[int(np.searchsorted(shares, random.random() * shares[-1], side="right"))]
