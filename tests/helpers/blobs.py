"""A small, clean data set in which defects are planted."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

CASES = ("a_01", "a_02", "b_01", "b_02", "c_01", "c_02")
SHAPE = (30, 24, 20)  # x, y, z; about 1 mm
LABELS = {"background": 0, "left organ": 1, "right organ": 2}


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """NIfTI with both geometries set, as scanners' converters write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def make(folder: Path) -> Path:
    """Six cases of three patients: two bright blobs, left and right, in smooth noise."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij", sparse=True)
    for case in CASES:
        image = gaussian_filter(rng.normal(0, 200, size=SHAPE), 2) + rng.normal(0, 5, size=SHAPE) + 100
        labels = np.zeros(SHAPE, np.uint8)
        for value, middle in ((1, 8), (2, 21)):
            centre = np.array((middle, 12, 10)) + rng.uniform(-1.5, 1.5, size=3)
            blob = (x - centre[0]) ** 2 + ((y - centre[1]) * 0.9) ** 2 + (z - centre[2]) ** 2 < rng.uniform(4, 5) ** 2
            labels[blob] = value
            image[blob] += 150 * value
        affine = np.diag([1.0, 1.0, 1.0, 1.0])
        affine[:3, 3] = rng.uniform(-40, 40, size=3).round(1)
        write(folder / "imagesTr" / f"{case}_0000.nii.gz", image.astype(np.int16), affine)
        write(folder / "labelsTr" / f"{case}.nii.gz", labels, affine)
    description = {
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def load(folder, name):
    """Voxels and affine of a file."""
    image = nibabel.load(folder / name)
    return np.asarray(image.dataobj).copy(), image.affine.copy()
