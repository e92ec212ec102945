"""From positions in a file to voxels of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ext.errors import UserError
from nnunet_ext.images import LPS_TO_RAS
from nnunet_ext.prompts.types import CasePrompts, ObjectPrompts, PointPrompt


@dataclass(frozen=True)
class LocatedObject:
    """An object's prompts in voxels.

    Attributes:
        label: value in the label map.
        clicks: ((z, y, x), positive), fractions of voxels kept.
        mask: label map to start from, or None.
    """

    label: int
    clicks: tuple[tuple[tuple[float, ...], bool], ...]
    mask: Path | None


def locate(
    prompts: CasePrompts,
    affine: np.ndarray,
    shape: Sequence[int],
    image: str,
    labels: Mapping[str, int] | None = None,
) -> tuple[LocatedObject, ...]:
    """Turn the prompts of a file into voxels of an image and values of its label map.

    Args:
        prompts: of one case.
        affine: 4 x 4, voxel (x, y, z) to RAS mm.
        shape: voxels of the image, (z, y, x).
        image: what messages call it, e.g. its file.
        labels: names and values there are; None if any value will do and there are no names.

    Raises:
        UserError: a point lies outside the image, or a label or name is unknown; file and point are named.
    """
    return tuple(
        LocatedObject(
            _label(prompts, thing, labels),
            tuple((to_voxel(prompts, point, affine, shape, image), point.positive) for point in thing.points),
            thing.mask,
        )
        for thing in prompts.objects
    )


def to_voxel(
    prompts: CasePrompts, point: PointPrompt, affine: np.ndarray, shape: Sequence[int], image: str
) -> tuple[float, ...]:
    """Voxel (z, y, x) of one point, within half a voxel of the image's voxel centres.

    Raises:
        UserError: it lies outside.
    """
    xyz = voxel_of(point.xyz, prompts.space, affine)
    size = tuple(shape)[::-1]
    if any(not -0.5 - 1e-3 <= i <= n - 0.5 + 1e-3 for i, n in zip(xyz, size, strict=True)):
        at = f"({', '.join(f'{v:g}' for v in point.xyz)})"
        there = f"({', '.join(f'{v:.1f}' for v in xyz)})"
        found = f"{at}" if prompts.space == "voxel" else f"{at} mm {prompts.space}, voxel {there},"
        raise UserError(
            f"{prompts.source}: {point.where} at {found} lies outside {image}, whose voxels (x, y, z) go from 0 to "
            f"({', '.join(str(n - 1) for n in size)}); is the space right?"
        )
    return tuple(float(np.clip(i, 0, n - 1)) for i, n in zip(xyz, size, strict=True))[::-1]


def voxel_of(xyz: Sequence[float], space: str, affine: np.ndarray) -> np.ndarray:
    """Voxel (x, y, z), with fractions, of a position in "LPS" or "RAS" mm or "voxel"."""
    if space == "voxel":
        return np.asarray(xyz, dtype=float)
    position: np.ndarray = np.append(np.asarray(xyz, dtype=float), 1.0)
    if space == "LPS":
        position = LPS_TO_RAS @ position
    return np.linalg.solve(affine, position)[:3]


def position_of(voxel: Sequence[float], space: str, affine: np.ndarray) -> np.ndarray:
    """The inverse of `voxel_of`."""
    if space == "voxel":
        return np.asarray(voxel, dtype=float)
    position = affine @ np.append(np.asarray(voxel, dtype=float), 1.0)
    return (LPS_TO_RAS @ position if space == "LPS" else position)[:3]


def _label(prompts: CasePrompts, thing: ObjectPrompts, labels: Mapping[str, int] | None) -> int:
    where = thing.points[0].where if thing.points else f"object {thing.name or thing.label}"
    if thing.label is not None:
        if labels is not None and thing.label not in labels.values():
            known = ", ".join(f"{value} ({name})" for name, value in labels.items())
            raise UserError(f"{prompts.source}: {where} is of label {thing.label}; there are {known}")
        return thing.label
    if labels is None:
        raise UserError(f"{prompts.source}: {where} is of {thing.name!r}; add --labels {thing.name}=1 or other values")
    by_name = {name.lower(): value for name, value in labels.items()}
    value = by_name.get(str(thing.name).lower())
    if value is None:
        raise UserError(
            f"{prompts.source}: {where} is of {thing.name!r}; there are {', '.join(labels)}. Rename it, or add "
            f"--labels {thing.name}=1 or another value"
        )
    return value
