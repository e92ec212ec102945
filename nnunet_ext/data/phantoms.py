"""Labelled 3D phantoms, written as an nnU-Net raw data set.

Each case looks like a small abdominal MR scan: a liver with a branching vessel and a lesion inside, two kidneys (the
right one touches the liver), and unlabelled neighbours (spine, stomach). What makes segmentation hard in practice is
there: tissues whose grey values overlap, a bias field, Rician noise, thick slices with partial volume, another spacing,
scaling and tilt of the box in every case. The anatomy is drawn on a finer grid than the image and averaged down, so
border voxels are true mixtures.

Array axes are (z, y, x) throughout, as SimpleITK and nnU-Net have them; x runs to the patient's left, y to the back,
z to the head. Lengths are millimetres.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter, zoom
from tqdm import tqdm

from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_folder, write_json
from nnunet_ext.image_files import write_image

LABELS = {"background": 0, "liver": 1, "vessel": 2, "kidneys": 3, "lesion": 4}

# Each label has at least this many voxels in every case, so that its Dice means something.
SMALLEST_LABEL = 150

# Voxels of the fine grid per image voxel, (z, y, x): slices are thick, so they need more.
_FINE = (3, 2, 2)

# Half the extent of the anatomy, the unit of its coordinates below, and the extent of the image, (z, y, x).
_UNIT_MM = 32.0
_FIELD_OF_VIEW_MM = np.array([64.0, 54.0, 64.0])


@dataclass(frozen=True)
class Phantom:
    """One scan and its labels, both (z, y, x); spacing in mm in the same order."""

    image: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    """Position of the first voxel as SimpleITK has it: (x, y, z) in the patient's frame (LPS)."""
    direction: tuple[float, ...]
    """SimpleITK's 3x3 direction cosines, row by row."""


def make_phantom(seed: int, index: int = 0) -> Phantom:
    """Draw case `index` of the series `seed`; the same two numbers always give the same case."""
    rng = np.random.default_rng([seed, index])
    in_plane = rng.uniform(1.30, 1.42)
    spacing = np.array([rng.uniform(3.0, 3.5), in_plane, in_plane]).round(3)
    shape = np.round(_FIELD_OF_VIEW_MM / spacing).astype(int) - rng.integers(0, 3, size=3)
    for _ in range(50):
        tissue = _draw_anatomy(rng, shape, spacing)
        labels = _majority_label(tissue)
        counts = np.bincount(labels.ravel(), minlength=len(LABELS))
        if counts.min() >= SMALLEST_LABEL:
            break
    else:
        raise RuntimeError(f"no anatomy with all labels for seed {seed}, case {index}")
    image = _acquire(rng, tissue)
    tilt = _rotation(rng.uniform(-12, 12, size=3))
    origin = tuple(float(value) for value in np.round(rng.uniform(-80, 80, size=3), 2))
    return Phantom(image, labels, tuple(spacing.tolist()), origin, tuple(tilt.ravel().tolist()))


def make_dataset(
    folder: str | os.PathLike[str], num_training: int, num_test: int, seed: int = 0, progress: bool = False
) -> Path:
    """Write a data set of phantoms in nnU-Net's raw format and return its folder.

    `imagesTr` and `labelsTr` hold the training cases, `imagesTs` and `labelsTs` the held-out ones. The folder appears
    only when it is complete.

    Args:
        folder: what to create; its name must be as nnU-Net wants it, such as `Dataset900_Phantoms`.
        num_training: number of training cases; nnU-Net's five folds need five.
        num_test: number of held-out cases.
        seed: case k of a seed is always the same, however many are made.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: the folder exists already or cannot be written.
    """
    folder = Path(folder)
    with atomic_folder(folder) as unfinished:
        for split in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (unfinished / split).mkdir()
        for index in tqdm(range(num_training + num_test), desc="draw", unit="case", delay=2, disable=not progress):
            split = "Tr" if index < num_training else "Ts"
            name = f"phantom_{index + 1:03d}"
            phantom = make_phantom(seed, index)
            _write(phantom, phantom.image, unfinished / f"images{split}" / f"{name}_0000.nii.gz")
            _write(phantom, phantom.labels, unfinished / f"labels{split}" / f"{name}.nii.gz")
        description = {
            "name": "Phantoms",
            "description": "Synthetic abdominal MR: liver with vessel and lesion, kidneys",
            "channel_names": {"0": "MR"},
            "labels": LABELS,
            "numTraining": num_training,
            "file_ending": ".nii.gz",
            "seed": seed,
        }
        write_json(unfinished / "dataset.json", description)
    return folder


@dataclass(frozen=True)
class _Tissue:
    """The anatomy on the fine grid: a label and a grey value per voxel."""

    labels: np.ndarray
    grey: np.ndarray
    shape: tuple[int, ...]


def _draw_anatomy(rng: np.random.Generator, shape: np.ndarray, spacing: np.ndarray) -> _Tissue:
    fine = shape * np.array(_FINE)
    axes = [(np.arange(n) + 0.5 - n / 2) * (mm / f) / _UNIT_MM for n, mm, f in zip(fine, spacing, _FINE, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    # One smooth displacement bends everything together, as bodies differ from each other.
    z, y, x = (axis + 0.06 * _smooth_noise(rng, fine, knots=4) for axis in (z, y, x))

    def blob(centre: tuple[float, float, float], radii: tuple[float, float, float], roughness: float) -> np.ndarray:
        """A mask: an ellipsoid whose centre, size and surface vary; coordinates (z, y, x) in body units."""
        cz, cy, cx = np.array(centre) + rng.normal(0, 0.025, size=3)
        rz, ry, rx = np.array(radii) * rng.uniform(0.88, 1.12, size=3)
        distance = np.sqrt(((z - cz) / rz) ** 2 + ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)
        return distance + roughness * _smooth_noise(rng, fine, knots=7) < 1

    body = blob((0.0, 0.0, 0.0), (3.0, 0.80, 0.92), 0.02)
    spine = blob((0.0, 0.58, 0.0), (3.0, 0.15, 0.15), 0.10)
    stomach = blob((0.25, -0.22, 0.48), (0.45, 0.30, 0.24), 0.15)
    liver = blob((0.20, -0.06, -0.34), (0.66, 0.56, 0.46), 0.10)
    left_kidney = blob((-0.30, 0.38, 0.46), (0.40, 0.22, 0.19), 0.08)
    right_kidney = blob((-0.42, 0.36, -0.46), (0.40, 0.22, 0.19), 0.08)
    lesion = blob(_inside_liver(rng), (0.29, 0.24, 0.24), 0.14)
    vessel = _vessel(rng, z, y, x) & liver

    grey = np.zeros(tuple(fine), np.float32)
    labels = np.zeros(tuple(fine), np.uint8)
    # Later entries lie on top. Grey values differ from case to case by about as much as from tissue to tissue.
    for mask, label, mean in (
        (body, 0, 95.0),
        (stomach & body, 0, 122.0),
        (spine & body, 0, 45.0),
        (left_kidney & body, LABELS["kidneys"], 190.0),
        (right_kidney & body, LABELS["kidneys"], 190.0),
        (liver & body, LABELS["liver"], 150.0),
        (lesion & liver & body, LABELS["lesion"], 70.0),
        (vessel & body, LABELS["vessel"], 215.0),
    ):
        grey[mask] = mean + rng.normal(0, 5)
        labels[mask] = label
    grey += body * 5.0 * _smooth_noise(rng, fine, knots=16)  # tissue is not uniform
    return _Tissue(labels, grey, tuple(int(n) for n in shape))


def _inside_liver(rng: np.random.Generator) -> tuple[float, float, float]:
    """A place for the lesion, away from the vessel's trunk."""
    side = rng.choice([-1.0, 1.0])
    return 0.20 + side * rng.uniform(0.20, 0.34), -0.06 + rng.uniform(-0.22, 0.18), -0.36 + rng.uniform(-0.12, 0.10)


def _vessel(rng: np.random.Generator, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A trunk that enters the liver from the middle and forks into two tapering branches."""
    entry = np.array([0.10, 0.12, 0.0]) + rng.normal(0, 0.03, size=3)
    fork = np.array([0.20, 0.02, -0.28]) + rng.normal(0, 0.03, size=3)
    ends = [np.array([0.20 + up, -0.10, -0.64]) + rng.normal(0, 0.05, size=3) for up in (0.30, -0.26)]
    mask = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), bool)
    for start, end, wide, narrow in (
        (entry, fork, 0.16, 0.14),
        (fork, ends[0], 0.14, 0.10),
        (fork, ends[1], 0.14, 0.10),
    ):
        along = end - start
        position = ((z - start[0]) * along[0] + (y - start[1]) * along[1] + (x - start[2]) * along[2]) / (along @ along)
        position = np.clip(position, 0, 1)
        squared = sum((axis - start[i] - position * along[i]) ** 2 for i, axis in enumerate((z, y, x)))
        mask |= squared < (wide + position * (narrow - wide)) ** 2
    return mask


def _acquire(rng: np.random.Generator, tissue: _Tissue) -> np.ndarray:
    """Scan the tissue: coil shading, slice and pixel averaging, point spread, Rician noise; int16."""
    grey = _average(tissue.grey, tissue.shape)
    grey = gaussian_filter(grey, sigma=(0.2, 0.45, 0.45))
    grey *= np.exp(0.08 * _smooth_noise(rng, np.array(tissue.shape), knots=3))
    sigma = rng.uniform(6, 10)
    real, imaginary = rng.normal(0, sigma, size=(2, *tissue.shape))
    # The magnitude of a complex signal with noise in both parts, in units that differ between scanners.
    magnitude = np.hypot(grey + real, imaginary) * rng.uniform(2.0, 5.0)
    return np.round(magnitude).astype(np.int16)


def _average(fine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    blocks = fine.reshape(shape[0], _FINE[0], shape[1], _FINE[1], shape[2], _FINE[2])
    return blocks.mean(axis=(1, 3, 5))


def _majority_label(tissue: _Tissue) -> np.ndarray:
    """The label that fills most of each image voxel, uint8."""
    fractions = [_average((tissue.labels == value).astype(np.float32), tissue.shape) for value in LABELS.values()]
    return np.argmax(fractions, axis=0).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, shape: np.ndarray, knots: int) -> np.ndarray:
    """A smooth random field of about unit deviation: random values on `knots`^3 points, cubic in between."""
    field = rng.normal(size=(knots, knots, knots)).astype(np.float32)
    for n in shape:
        # Interpolating one axis at a time by a matrix; each turn moves the next axis to the front.
        weights = zoom(np.eye(knots), (n / knots, 1), order=3, mode="nearest", grid_mode=True).astype(np.float32)
        field = np.tensordot(field, weights, axes=(0, 1))
    return field


def _rotation(degrees: np.ndarray) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _write(phantom: Phantom, array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(phantom.spacing_mm[::-1])
    image.SetOrigin(phantom.origin_mm)
    image.SetDirection(phantom.direction)
    try:
        write_image(image, path)
    except RuntimeError:
        raise UserError(f"cannot write {path}; is the disk full?") from None
