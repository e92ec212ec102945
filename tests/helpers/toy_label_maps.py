"""Label maps on disk: two structures, anisotropic, rotated."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

AFFINE = np.array([[0.0, -0.8, 0.0, 12.0], [0.7, 0.0, 0.0, -30.0], [0.0, 0.0, 2.5, 5.0], [0.0, 0.0, 0.0, 1.0]])
LABELS = {"background": 0, "liver": 1, "tumour": 2}


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Write (z, y, x) as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.set_qform(affine, 1)
    nibabel.save(image, path)


def case(index: int) -> np.ndarray:
    """Reference of one case, (z, y, x)."""
    array = np.zeros((8, 14, 16 + index), np.uint8)
    array[2:6, 3:11, 3:11] = 1
    array[3:5, 5:8, 5:8] = 2
    return array
