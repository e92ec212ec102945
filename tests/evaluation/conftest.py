"""A small data set on disk: five cases, predictions shifted by one voxel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.toy_label_maps import LABELS, case, save

from nnunet_ext.files import write_json


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Folder with `references`, `predictions` (case_0 to case_4) and dataset.json."""
    for index in range(5):
        save(tmp_path / "references" / f"case_{index}.nii.gz", case(index))
        save(tmp_path / "predictions" / f"case_{index}.nii.gz", np.roll(case(index), 1, axis=2))
    write_json(tmp_path / "dataset.json", {"labels": LABELS, "file_ending": ".nii.gz"})
    return tmp_path
