"""nnU-Net's folders with one planned data set, for the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.pipelines import DATASET


@pytest.fixture
def base(tmp_path) -> Path:
    """nnU-Net's folders with one planned data set."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name / DATASET).mkdir(parents=True)
    for name in ("imagesTs", "labelsTs"):
        (tmp_path / "nnUNet_raw" / DATASET / name).mkdir()
        (tmp_path / "nnUNet_raw" / DATASET / name / "a.nii.gz").touch()
    configurations = {"3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"}}
    for plans in ("nnUNetPlans", "nnUNetPlansSegMambaTiny"):
        path = tmp_path / "nnUNet_preprocessed" / DATASET / f"{plans}.json"
        path.write_text(json.dumps({"configurations": configurations}))
    return tmp_path
