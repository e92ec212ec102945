"""Trainers that train in this process."""

from __future__ import annotations

import json

import pytest
from helpers import nnunet_dataset

from nnunet_ext.checkpoints.load import read_without_code


@pytest.fixture
def make_trainer(preprocessed, tmp_path, monkeypatch):
    """A function that makes a trainer of one epoch step each, writing below this test's own folder."""
    for name, value in nnunet_dataset.environment(preprocessed.parent.parent).items():
        if name.startswith("nnUNet"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for name, value in {"EPOCHS": "2", "ITERATIONS": "2", "VAL_ITERATIONS": "1"}.items():
        monkeypatch.setenv(f"NNUNET_EXT_{name}", value)

    from nnunet_ext.trainers.checkpoint_files import why_unreadable

    def make(trainer_class, plans="nnUNetPlansSegMambaTiny", folder=preprocessed, configuration="3d_fullres", fold=0):
        import torch

        plans = json.loads((folder / f"{plans}.json").read_text())
        dataset_json = json.loads((folder / "dataset.json").read_text())
        plans["continue_training"] = False
        return trainer_class(plans, configuration, fold, dataset_json, torch.device("cpu"))

    yield make
    # What a trainer saves loads for prediction without --trust.
    for path in tmp_path.rglob("checkpoint_*.pth"):
        if why_unreadable(path) is None:
            assert read_without_code(path)["network_weights"]
