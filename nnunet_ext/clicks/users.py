"""Simulated users who go on with one kind of interaction. They see the reference.

Each looks at what is wrong: points come from the users of `nnunet_ext.prompts.simulate`; whoever draws does so in the
largest connected part that is missing or too much, in a slice through it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import cc3d
import numpy as np
import torch

from nnunet_ext.prompts.channels import Interaction, point
from nnunet_ext.prompts.drawn import draw_box, draw_lasso, draw_scribble
from nnunet_ext.prompts.simulate import centre_clicks, uniform_clicks

# (reference, prediction) bool (z, y, x) -> the next interaction, or None where nothing is wrong.
DrawingUser = Callable[[np.ndarray, np.ndarray], Interaction | None]
# Name -> kind of interaction (`nnunet_ext.prompts.channels`) and what it is called.
USERS = {
    "centre": ("point", "points amid the largest error"),
    "uniform": ("point", "points anywhere in the error"),
    "box": ("box", "2D boxes"),
    "scribble": ("scribble", "scribbles"),
    "lasso": ("lasso", "lassos"),
}


def make_drawing_user(name: str, spacing_mm: Sequence[float], seed: str) -> DrawingUser:
    """A simulated user.

    Args:
        name: one of `USERS`.
        spacing_mm: voxel size per axis.
        seed: words whose user draws alike every time.
    """
    number = zlib.crc32(f"{seed}/{name}".encode())
    if USERS[name][0] == "point":
        generator = torch.Generator().manual_seed(number)

        def click(reference: np.ndarray, prediction: np.ndarray) -> Interaction | None:
            pair = (torch.from_numpy(reference)[None], torch.from_numpy(prediction)[None])
            found = centre_clicks(*pair, spacing_mm) if name == "centre" else uniform_clicks(*pair, generator)
            return point(found.index[0].tolist(), bool(found.positive[0])) if bool(found.found[0]) else None

        return click
    random = np.random.default_rng(number)

    def draw(reference: np.ndarray, prediction: np.ndarray) -> Interaction | None:
        wrong = largest_error(reference, prediction)
        if wrong is None:
            return None
        region, corner, positive = wrong
        if name == "box":
            drawn = draw_box(region, positive, random)
        elif name == "lasso":
            drawn = draw_lasso(region, positive, random)
        else:
            drawn = draw_scribble(region, positive, random, style="centre")
        there = tuple(a + b for a, b in zip(drawn.corner, corner, strict=True))
        return Interaction(drawn.kind, drawn.positive, there, drawn.values)

    return draw


def largest_error(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], bool] | None:
    """The largest 26-connected part that is missing or too much: cut to its box, its lowest voxel, whether missing."""
    kinds = np.where(reference & ~prediction, 1, np.where(prediction & ~reference, 2, 0)).astype(np.uint8)
    if not kinds.any():
        return None
    components = cc3d.connected_components(kinds, connectivity=26)
    number = int(np.bincount(components.ravel())[1:].argmax()) + 1
    box = cc3d.statistics(components)["bounding_boxes"][number]
    region = components[box] == number
    return region, tuple(part.start for part in box), bool(kinds[box][region][0] == 1)
