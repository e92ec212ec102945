"""Cleaning rules for one case in memory. Each returns what it changed; none touches a file.

The first four are the steps the authors of SAM-Med3D describe (Wang et al., arXiv 2310.15161, data section) and did not
publish. They suit a model prompted with one target at a time; for nnU-Net the rules on size remove lesions that are
small by nature, so look at the report before applying them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cc3d
import nibabel
import numpy as np

from nnunet_ext.data.volumes import displacement_mm

SMALLEST_MM3, SMALLEST_SIDE_MM = 1000.0, 15.0
MOST_BACKGROUND = 0.99
MOST_COMPONENTS = 5
# Structures that come in pairs, as they are commonly named. A label that names its side is left alone.
PAIRED = ("kidney", "lung", "adrenal", "femur", "femoral head", "hip", "hippocampus", "eye", "ovary", "breast")


@dataclass
class CaseToClean:
    """One case being cleaned; rules change it in place.

    Attributes:
        images: per channel, values (x, y, z).
        affines: per channel, voxel to patient coordinates (RAS, mm).
        labels: integers (x, y, z) or None.
        label_affine: of the label map.
        doubtful: per channel and then the label map, whether the two geometries of the file's header disagree, are
            sheared or missing.
        dropped: why the case is left out, or None.
        image_changed, label_changed: whether a new file must be written.
    """

    name: str
    images: list[np.ndarray]
    affines: list[np.ndarray]
    labels: np.ndarray | None
    label_affine: np.ndarray | None
    doubtful: list[bool]
    dropped: str | None = None
    image_changed: list[bool] = field(default_factory=list)
    label_changed: bool = False

    def relabel(self, mask: np.ndarray, value: int) -> None:
        assert self.labels is not None
        self.labels = np.where(mask, np.asarray(value, self.labels.dtype), self.labels)
        self.label_changed = True


Change = dict[str, Any]


def drop_small_targets(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Leave out scans, and targets within a scan, under 1 cm3 or under 1.5 cm along any axis."""
    changes: list[Change] = []
    spacing = np.linalg.norm(case.affines[0][:3, :3], axis=0)
    sides = spacing * case.images[0].shape
    if _small(float(np.prod(sides)), sides):
        case.dropped = f"the scan measures {_mm(sides)}"
        return [{"dropped": case.dropped}]
    for value, mask in _targets(case):
        where = np.nonzero(mask)
        extent = spacing * [index.max() - index.min() + 1 for index in where]
        volume = len(where[0]) * float(np.prod(spacing))
        if _small(volume, extent):
            case.relabel(mask, 0)
            changes.append({"label": value, "removed_voxels": len(where[0]), "mm3": volume, "extent": _mm(extent)})
    return changes + _drop_if_empty(case, changes)


def drop_mostly_background(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Leave out targets that fill less than 1 % of their scan."""
    changes: list[Change] = []
    for value, mask in _targets(case):
        count = int(mask.sum())
        if count < (1 - MOST_BACKGROUND) * mask.size:
            case.relabel(mask, 0)
            changes.append({"label": value, "removed_voxels": count, "fraction": count / mask.size})
    return changes + _drop_if_empty(case, changes)


def largest_components(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Keep the five largest connected components of every target (26 neighbours)."""
    changes: list[Change] = []
    for value, mask in _targets(case):
        parts = cc3d.connected_components(mask, connectivity=26 if mask.ndim == 3 else 8)
        sizes = np.bincount(parts.reshape(-1))[1:]
        if len(sizes) > MOST_COMPONENTS:
            order = np.argsort(-sizes, kind="stable")
            small = np.isin(parts, order[MOST_COMPONENTS:] + 1)
            case.relabel(small, 0)
            sizes_removed = sizes[order[MOST_COMPONENTS:]].tolist()
            changes.append({"label": value, "removed_components": len(sizes_removed), "voxels": sizes_removed[:100]})
    return changes


def split_sides(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Give the right one of a pair its own label.

    A component belongs to the side its centroid lies on, in patient coordinates. The midline runs halfway between the
    two largest components when they are of similar size, else through the middle of the image. A component that
    reaches more than a tenth of its voxels across the midline is cut there, and the log says so.

    Args:
        paired: value of a label to the value of its right half; the left half keeps the value.
    """
    changes: list[Change] = []
    if case.labels is None or case.label_affine is None:
        return changes
    for value, right in paired.items():
        mask = case.labels == value
        if not mask.any():
            continue
        parts = cc3d.connected_components(mask, connectivity=26 if mask.ndim == 3 else 8)
        index = np.stack(np.nonzero(parts), axis=1)
        part = parts[tuple(index.T)]
        x = index @ case.label_affine[0, : mask.ndim] + case.label_affine[0, 3]
        counts = np.bincount(part)
        with np.errstate(invalid="ignore"):
            centres = np.bincount(part, weights=x) / counts
        largest = np.argsort(-counts[1:], kind="stable")[:2] + 1
        similar = len(largest) == 2 and counts[largest[1]] > 0.2 * counts[largest[0]]
        middle = (np.array(mask.shape) - 1) / 2 @ case.label_affine[0, : mask.ndim] + case.label_affine[0, 3]
        if similar:
            middle = float(centres[largest].mean())
        across = np.bincount(part, weights=x > middle) / np.maximum(counts, 1)
        cut = (across > 0.1) & (across < 0.9)
        is_right = np.where(cut[part], x > middle, centres[part] > middle)
        selected = np.zeros(mask.shape, bool)
        selected[tuple(index[is_right].T)] = True
        case.relabel(selected, right)
        changes.append(
            {
                "label": value,
                "right_label": right,
                "left_voxels": int((~is_right).sum()),
                "right_voxels": int(is_right.sum()),
                "midline_x_mm": float(middle),
                "components_cut_at_the_midline": int(cut[1:].sum()),
            }
        )
    return changes


def finite(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Replace NaN and infinities by the smallest finite value of the image."""
    changes: list[Change] = []
    for channel, image in enumerate(case.images):
        bad = ~np.isfinite(image)
        if bad.any():
            value = float(image[~bad].min()) if not bad.all() else 0.0
            case.images[channel] = np.where(bad, np.asarray(value, image.dtype), image)
            case.image_changed[channel] = True
            changes.append({"channel": channel, "replaced_voxels": int(bad.sum()), "by": value})
    return changes


def repair_forms(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Write qform and sform alike, with orthogonal axes; the sform decides, the qform where there is none."""
    changes: list[Change] = []
    for channel, affine in enumerate(case.affines):
        if case.doubtful[channel]:
            straight = orthogonal(affine)
            moved = displacement_mm(case.images[channel].shape, affine, straight)
            case.affines[channel], case.image_changed[channel] = straight, True
            changes.append({"channel": channel, "moved_mm": moved})
    if case.label_affine is not None and case.labels is not None and case.doubtful[-1]:
        straight = orthogonal(case.label_affine)
        changes.append({"label_map": True, "moved_mm": displacement_mm(case.labels.shape, case.label_affine, straight)})
        case.label_affine, case.label_changed = straight, True
    return changes


def copy_header(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Give channels and label map the geometry of the first channel when they differ by less than half a voxel."""
    changes: list[Change] = []
    reference = case.affines[0]
    limit = 0.5 * float(np.linalg.norm(reference[:3, :3], axis=0).min())

    def judge(name: str, shape: tuple[int, ...], affine: np.ndarray) -> bool:
        moved = displacement_mm(shape, reference, affine)
        if moved == 0:
            return False
        near = moved <= limit and shape == case.images[0].shape
        changes.append({"file": name, "moved_mm": moved, "copied": near})
        return near

    for channel in range(1, len(case.images)):
        if judge(f"channel {channel}", case.images[channel].shape, case.affines[channel]):
            case.affines[channel], case.image_changed[channel] = reference, True
    if case.labels is not None and case.label_affine is not None:
        if judge("label map", case.labels.shape, case.label_affine):
            case.label_affine, case.label_changed = reference, True
    return changes


def cast_labels(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Store label maps as the smallest unsigned integers that hold them."""
    if case.labels is None or case.labels.dtype.kind == "u" or case.labels.min(initial=0) < 0:
        return []
    before = str(case.labels.dtype)
    case.labels = case.labels.astype(np.min_scalar_type(int(case.labels.max(initial=0))))
    case.label_changed = True
    return [{"from": before, "to": str(case.labels.dtype)}]


def canonical(case: CaseToClean, paired: dict[int, int]) -> list[Change]:
    """Turn arrays so that their axes run to the patient's right, front and head (RAS); no voxel is interpolated."""
    changes: list[Change] = []

    def turn(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        orientation = nibabel.io_orientation(affine)
        turned = nibabel.apply_orientation(array, orientation)
        return turned, affine @ nibabel.orientations.inv_ornt_aff(orientation, array.shape)

    for channel, (image, affine) in enumerate(zip(case.images, case.affines, strict=True)):
        before = "".join(nibabel.aff2axcodes(affine))
        if before != "RAS":
            case.images[channel], case.affines[channel] = turn(image, affine)
            case.image_changed[channel] = True
            changes.append({"channel": channel, "from": before, "to": "RAS"})
    if case.labels is not None and case.label_affine is not None:
        before = "".join(nibabel.aff2axcodes(case.label_affine))
        if before != "RAS":
            case.labels, case.label_affine = turn(case.labels, case.label_affine)
            case.label_changed = True
            changes.append({"label_map": True, "from": before, "to": "RAS"})
    return changes


Rule = Callable[[CaseToClean, dict[int, int]], list[Change]]
RULES: dict[str, Rule] = {
    "drop-small-targets": drop_small_targets,
    "drop-mostly-background": drop_mostly_background,
    "largest-components": largest_components,
    "split-sides": split_sides,
    "finite": finite,
    "repair-forms": repair_forms,
    "copy-header": copy_header,
    "cast-labels": cast_labels,
    "canonical": canonical,
}
SETS = {
    "sam-med3d": ("drop-small-targets", "drop-mostly-background", "largest-components", "split-sides"),
    "repairs": ("finite", "repair-forms", "copy-header", "cast-labels", "consecutive-labels", "canonical"),
}


def orthogonal(affine: np.ndarray) -> np.ndarray:
    """The affine with the nearest orthogonal axes, same voxel sizes and the same centre of rotation: voxel 0."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    u, _, v = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = (u @ v) * spacing
    return result


def _targets(case: CaseToClean) -> list[tuple[int, np.ndarray]]:
    if case.labels is None:
        return []
    return [(value, case.labels == value) for value in np.unique(case.labels).tolist() if value]


def _drop_if_empty(case: CaseToClean, changes: list[Change]) -> list[Change]:
    if changes and case.labels is not None and not case.labels.any():
        case.dropped = "no target is left"
        return [{"dropped": case.dropped}]
    return []


def _small(volume_mm3: float, sides_mm: np.ndarray) -> bool:
    return volume_mm3 < SMALLEST_MM3 or float(np.min(sides_mm)) < SMALLEST_SIDE_MM


def _mm(sides: np.ndarray) -> str:
    return " x ".join(f"{side:.1f}" for side in sides) + " mm"
