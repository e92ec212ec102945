"""One case read once: what its images and its label map hold, and what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cc3d
import nibabel
import numpy as np

from nnunet_ext.data.findings import Finding
from nnunet_ext.data.layout import CaseFiles
from nnunet_ext.data.thumbnails import overlay
from nnunet_ext.data.volumes import TOLERANCE_MM, Volume, displacement_mm, read_volume
from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.evaluation.surface import foreground_box

# Side of the coarse copy by which scans are recognised again.
COARSE = 16
_SAMPLES = 1 << 18
_CHUNK = 1 << 18
# A component this small beside a large one of the same label is more likely a slip of the mouse than anatomy.
_STRAY_VOXELS, _STRAY_FRACTION = 2, 1e-2


@dataclass(frozen=True)
class ImageFacts:
    """One channel: shape and spacing along (x, y, z), voxel hash, and statistics of the values."""

    file: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    stored_as: str
    blake2b: str
    minimum: float
    maximum: float
    mean: float
    std: float
    percentiles: tuple[float, float, float]
    """1st, 50th and 99th."""
    coarse: np.ndarray = field(repr=False)
    """float32, 16 cells along each axis in patient orientation (RAS), mean 0 and norm 1."""


@dataclass(frozen=True)
class LabelFacts:
    """One label map; dictionaries are by label value."""

    file: str
    blake2b: str
    voxels: dict[int, int]
    volume_mm3: dict[int, float]
    components_mm3: dict[int, list[float]]
    """The ten largest connected components (26 neighbours, 8 in 2D)."""
    component_count: dict[int, int]
    centroid_mm: dict[int, tuple[float, ...]]
    """Patient coordinates (RAS) relative to the centre of the image."""
    touches_border: list[int]
    brightness: dict[int, list[float]]
    """Per channel: (mean inside the label - mean of the image) / standard deviation of the image."""
    evenness: dict[int, list[float]]
    """Per channel: logarithm of the standard deviation inside the label / standard deviation of the image."""
    extent_mm: tuple[float, ...]


@dataclass(frozen=True)
class CaseFacts:
    """What `inspect_case` found. `thumbnail` is a PNG."""

    name: str
    split: str
    images: tuple[ImageFacts, ...]
    label: LabelFacts | None
    findings: tuple[Finding, ...]
    thumbnail: bytes | None = field(repr=False, default=None)


def inspect_case(case: CaseFiles, values: tuple[int, ...], channels: int = 1) -> CaseFacts:
    """Read every file of a case. Never raises: what cannot be checked is a finding.

    Args:
        case: its files.
        values: label values that dataset.json declares, 0 included.
        channels: how many dataset.json names; a colour image holds several.
    """
    findings: list[Finding] = []
    label_volume = _read(case.label, findings) if case.label is not None else None
    labels: np.ndarray | None = None
    if label_volume is not None:
        with checking(label_volume.path, findings):
            labels = _whole_numbers(label_volume, findings)
    images: list[ImageFacts] = []
    samples: list[np.ndarray] = []
    first: Volume | None = None
    thumbnail = None
    step = 1
    read = 0
    for path in case.images:
        volume = _read(path, findings)
        if volume is None:
            continue
        if volume.spatial.ndim not in (2, 3) or min(volume.array.shape) == 0:
            text = f"shape {volume.array.shape[::-1]} (x, y, z, t); expected one 3D volume"
            findings.append(Finding("not-3d", str(path), text))
            continue
        read += volume.colours
        with checking(path, findings):
            images.append(_image_facts(volume, findings))
            if first is None:
                first = volume
                # About the same number of voxels whatever the size, for the brightness inside labels.
                step = max(1, round((volume.spatial.size / (8 * _SAMPLES)) ** (1 / volume.spatial.ndim)))
                if labels is None or labels.shape == volume.spatial.shape:
                    thumbnail = overlay(volume.spatial, labels, volume.spacing_mm)
            else:
                findings += _compare_grids(first, volume)
            samples.append(np.ascontiguousarray(volume.spatial[(slice(None, None, step),) * volume.spatial.ndim]))
        if volume is not first:
            del volume
    if read != channels and not any(finding.check in ("unreadable", "not-3d") for finding in findings):
        text = f"{read} values per pixel in {len(case.images)} files; dataset.json names {channels} channels"
        findings.append(Finding("channel-count", str(case.images[0]), text))
    hashes = [image.blake2b for image in images]
    for position, image in enumerate(images):
        if image.blake2b in hashes[:position]:
            findings.append(
                Finding("identical-channels", image.file, f"same voxels as {images[hashes.index(image.blake2b)].file}")
            )
    facts = None
    if labels is not None and label_volume is not None:
        with checking(label_volume.path, findings):
            fits = True
            if first is not None:
                grid = _compare_grids(first, label_volume)
                findings += grid
                fits = not any(f.check == "shape-differs" for f in grid)
            facts = _label_facts(label_volume, labels, values, samples if fits else [], step, findings)
    return CaseFacts(case.name, case.split, tuple(images), facts, tuple(findings), thumbnail)


@contextlib.contextmanager
def checking(path: Any, findings: list[Finding]) -> Iterator[None]:
    """Turn whatever goes wrong with one file into a finding, so that it costs no other file its report."""
    try:
        yield
    except Exception as error:
        findings.append(Finding("not-checked", str(path), f"cannot be checked ({reason_of(error)})"))


def _read(path: Any, findings: list[Finding]) -> Volume | None:
    try:
        volume = read_volume(path)
    except Exception as error:  # one file must not cost the others their report
        reason = str(error).removeprefix(f"{path} ").split(";")[0] if isinstance(error, UserError) else reason_of(error)
        findings.append(Finding("unreadable", str(path), reason))
        return None
    findings += volume.findings
    return volume


def _image_facts(volume: Volume, findings: list[Finding]) -> ImageFacts:
    array, name = volume.array, str(volume.path)
    flat = array.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLES)].astype(np.float64) * volume.slope + volume.inter
    low, high = float(flat.min()) * volume.slope + volume.inter, float(flat.max()) * volume.slope + volume.inter
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = flat.size - int(np.isfinite(flat).sum())
        findings.append(Finding("not-finite", name, f"{bad} of {flat.size} voxels are NaN or infinite"))
        sample = sample[np.isfinite(sample)]
    elif low == high:
        findings.append(Finding("constant", name, f"every voxel is {low:g}"))
    if volume.nifti and array.ndim == 3:
        sides = np.array(array.shape[::-1]) * np.array(volume.spacing_mm)
        if np.prod(sides) < 1000 or sides.min() < 15:
            text = f"{'x'.join(f'{s:.3g}' for s in sides)} mm; expected at least 1 cm3 and 15 mm along each axis"
            findings.append(Finding("tiny-volume", name, text))
    sample = sample if sample.size else np.zeros(1)
    percentiles = tuple(np.percentile(sample, (1, 50, 99)).tolist())
    orientation = "".join(nibabel.aff2axcodes(volume.affine)) if volume.nifti and _invertible(volume.affine) else ""
    return ImageFacts(
        name,
        volume.spatial.shape[::-1],
        volume.spacing_mm,
        orientation,
        str(array.dtype),
        hash_voxels(array),
        low,
        high,
        float(sample.mean()),
        float(sample.std()),
        percentiles,  # type: ignore[arg-type]
        _coarse(volume),
    )


def hash_voxels(array: np.ndarray) -> str:
    """Hash of shape and voxels as stored; headers and compression do not matter."""
    digest = hashlib.blake2b(repr((array.shape, array.dtype.str)).encode(), digest_size=16)
    # Stored order needs no copy: NIfTI's first axis runs fastest, which makes the reversed array C-contiguous.
    digest.update(memoryview(np.ascontiguousarray(array)).cast("B"))
    return digest.hexdigest()


def _invertible(affine: np.ndarray) -> bool:
    """Whether every axis of the array runs along one of the patient's."""
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
        return False
    return bool(np.isfinite(nibabel.io_orientation(affine)).all())


def _coarse(volume: Volume) -> np.ndarray:
    """Means over about 16 cells along each axis, oriented by the header, so that copies look alike."""
    array = volume.spatial
    if array.ndim == 3:
        # Two slices of each slab are enough, and save reading all voxels once more.
        array = array[np.unique(np.linspace(0, len(array) - 1, 2 * COARSE).round().astype(int))]
    for axis, n in enumerate(array.shape):
        starts = np.unique(np.linspace(0, n, COARSE, endpoint=False).astype(int))
        sums = np.add.reduceat(array, starts, axis=axis, dtype=np.float32)
        lengths = np.diff([*starts, n]).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        array = sums / lengths
    array = np.nan_to_num(array, posinf=0, neginf=0).T  # (x, y, z)
    if volume.nifti and array.ndim == 3 and _invertible(volume.affine):
        array = nibabel.apply_orientation(array, nibabel.io_orientation(volume.affine))
    array = array - array.mean()
    return (array / max(float(np.linalg.norm(array)), 1e-12)).astype(np.float32)


def _compare_grids(first: Volume, other: Volume) -> list[Finding]:
    name, shape = str(other.path), first.spatial.shape
    if other.spatial.shape != shape:
        text = f"shape {other.spatial.shape[::-1]}, {first.path.name} has {shape[::-1]} (x, y, z)"
        return [Finding("shape-differs", name, text)]
    if not first.nifti or not (np.isfinite(first.affine).all() and np.isfinite(other.affine).all()):
        return []
    moved = displacement_mm(shape[::-1], first.affine, other.affine)
    voxel = float(np.linalg.norm(first.affine[:3, : len(shape)], axis=0).min())
    if moved > max(0.5 * voxel, TOLERANCE_MM):
        return [Finding("grid-moved", name, f"a corner lies {moved:.3g} mm from that of {first.path.name}")]
    if moved > TOLERANCE_MM:
        return [Finding("grid-differs-slightly", name, f"a corner lies {moved:.3g} mm from that of {first.path.name}")]
    return []


def _whole_numbers(volume: Volume, findings: list[Finding]) -> np.ndarray | None:
    """The label map as integers, or None with a finding."""
    array, name = volume.scaled, str(volume.path)
    if array.ndim not in (2, 3) or volume.colours > 1:
        text = f"shape {array.shape[::-1]}; expected one label per voxel"
        findings.append(Finding("not-3d", name, text))
        return None
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array) | (array != np.rint(array)) | (np.abs(array) >= 2**31)
        if bad.any():
            text = f"{int(bad.sum())} voxels such as {array[bad].flat[0]:g}; expected whole numbers"
            findings.append(Finding("label-not-whole", name, text))
            return None
        findings.append(Finding("label-type", name, f"whole numbers stored as {volume.array.dtype}"))
        array = array.astype(np.int32)
    return array


def count_values(array: np.ndarray) -> dict[int, int]:
    """Voxels per value of an integer array."""
    flat = array.reshape(-1)
    if flat.size == 0:
        return {}
    if flat.min() < 0 or flat.max() > 65535:
        found, counts = np.unique(flat, return_counts=True)
        return dict(zip(found.tolist(), counts.tolist(), strict=True))
    counts = np.zeros(int(flat.max()) + 1, np.int64)
    for start in range(0, flat.size, _CHUNK):  # numpy would make all voxels int64 at once
        counts += np.bincount(flat[start : start + _CHUNK], minlength=len(counts))
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _label_facts(
    volume: Volume,
    labels: np.ndarray,
    values: tuple[int, ...],
    samples: list[np.ndarray],
    step: int,
    findings: list[Finding],
) -> LabelFacts:
    name = str(volume.path)
    box = foreground_box(labels)
    crop = labels[box]
    voxels = count_values(crop)
    inside = sum(count for value, count in voxels.items() if value)
    if labels.size > inside:
        voxels[0] = labels.size - inside
    unknown = sorted(set(voxels) - set(values))
    if unknown:
        text = f"values {unknown[:8]} in {sum(voxels[v] for v in unknown)} voxels; dataset.json knows {list(values)}"
        findings.append(Finding("label-unknown", name, text))
    if not inside:
        findings.append(Finding("no-foreground", name, "only 0"))
    elif 0 not in voxels:
        findings.append(Finding("no-background", name, f"{inside} voxels, none of them 0"))
    spacing = np.array(volume.spacing_mm)
    voxel_mm3 = float(np.prod(spacing))
    sizes, centroids = _components(crop, box, volume, labels.shape)
    for value, own in sizes.items():
        stray = [n for n in own if n <= _STRAY_VOXELS and n < _STRAY_FRACTION * own[0]]
        if stray:
            text = f"label {value}: {len(stray)} of {len(own)} components have at most {_STRAY_VOXELS} voxels"
            findings.append(Finding("stray-component", name, text))
    faces = [np.take(labels, index, axis=axis) for axis in range(labels.ndim) for index in (0, -1)]
    touching = sorted({int(v) for face in faces for v in np.unique(face)} - {0})
    small = labels[(slice(None, None, step),) * labels.ndim]
    return LabelFacts(
        name,
        hash_voxels(labels),
        voxels,
        {value: count * voxel_mm3 for value, count in voxels.items()},
        {value: [n * voxel_mm3 for n in own[:10]] for value, own in sizes.items()},
        {value: len(own) for value, own in sizes.items()},
        centroids,
        touching,
        *_brightness(small, samples),
        tuple((np.array(labels.shape[::-1]) * spacing).tolist()),
    )


def _components(
    crop: np.ndarray, box: tuple[slice, ...], volume: Volume, shape: tuple[int, ...]
) -> tuple[dict[int, list[int]], dict[int, tuple[float, ...]]]:
    """Component sizes in voxels, largest first, and centroids, by label."""
    if crop.size == 0:
        return {}, {}
    compact = np.require(crop, requirements=("C", "W"))  # the library refuses read-only memory
    parts = cc3d.connected_components(compact, connectivity=26 if crop.ndim == 3 else 8)
    statistics = cc3d.statistics(parts, no_slice_conversion=True)
    counts, centres = statistics["voxel_counts"], statistics["centroids"]
    label_of: np.ndarray = np.zeros(len(counts), np.int64)
    label_of[parts.reshape(-1)] = compact.reshape(-1)
    sizes: dict[int, list[int]] = {}
    centroids = {}
    offset = np.array([part.start for part in box])
    middle = (np.array(shape) - 1) / 2
    for value in np.unique(label_of[1:]).tolist():
        own = np.flatnonzero(label_of == value)
        own = own[own > 0]
        sizes[value] = sorted((int(n) for n in counts[own]), reverse=True)
        centre = np.average(centres[own], axis=0, weights=counts[own]) + offset - middle
        centroids[value] = tuple((volume.affine[:3, : crop.ndim] @ centre[::-1]).tolist())
    return sizes, centroids


def _brightness(labels: np.ndarray, samples: list[np.ndarray]) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Mean and spread of the image inside each label of at least eight voxels, by channel; see `LabelFacts`."""
    brightness: dict[int, list[float]] = {}
    evenness: dict[int, list[float]] = {}
    usable = [s for s in samples if s.shape == labels.shape]
    if labels.size == 0 or labels.min() < 0 or labels.max() > 65535:
        return brightness, evenness
    flat = labels.reshape(-1)
    counts = np.bincount(flat)
    for sample in usable:
        values = np.nan_to_num(sample.reshape(-1).astype(np.float32), posinf=0, neginf=0)
        mean, std = float(values.mean(dtype=np.float64)), max(float(values.std(dtype=np.float64)), 1e-12)
        values = (values - mean) / std
        sums, squares = np.bincount(flat, weights=values), np.bincount(flat, weights=values * values)
        for value in np.flatnonzero(counts >= 8).tolist():
            if value:
                inside = sums[value] / counts[value]
                spread = np.sqrt(max(squares[value] / counts[value] - inside * inside, 0))
                brightness.setdefault(value, []).append(float(inside))
                evenness.setdefault(value, []).append(float(np.log(max(spread, 1e-2))))
    return brightness, evenness
