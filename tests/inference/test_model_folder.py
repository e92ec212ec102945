"""Model folders of others: what is damaged is named in one line, what would run code is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.model_folders import write_model
from helpers.mutate import Payload
from helpers.promptable_stubs import trained_folder
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ext.cli.main import main
from nnunet_ext.inference.model_folder import open_model_folder

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
PROMPTS = {
    "version": 1, "space": "voxel", "unit": "voxel",
    "objects": [{"label": 1, "points": [{"xyz": [8, 8, 4], "positive": True}]}],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder and a folder with one small image."""
    base = tmp_path_factory.mktemp("model")
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32))
    image.SetSpacing((2.2, 2.2, 5.0))
    (base / "images").mkdir()
    sitk.WriteImage(image, str(base / "images" / "a_0000.nii.gz"))
    return write_model(base, DATASET), base / "images"


@pytest.mark.parametrize("command", ["predict", "predict-prompts"])
def test_a_checkpoint_with_code_is_opened_for_trust_only(model, tmp_path, capsys, command):
    images = model[1]
    if command == "predict":
        folder, words = tmp_path / model[0].name, ["--disable_tta", "-f", "0"]
        shutil.copytree(model[0], folder)
    else:
        folder, words = trained_folder(tmp_path), ["-q", "-p", str(tmp_path)]
        (tmp_path / "a.prompts.json").write_text(json.dumps(PROMPTS))
    checkpoint, marker = folder / "fold_0" / "checkpoint_final.pth", tmp_path / "executed"
    torch.save({**torch.load(checkpoint, weights_only=True), "more": Payload(marker)}, checkpoint)
    words += ["-m", str(folder), "-i", str(images), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main([command, *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{checkpoint} holds more than tensors and plain values" in line and "--trust" in line
    assert "weights_only" not in line and not marker.exists() and not (tmp_path / "out").exists()
    assert main([command, *words, "--trust"]) == 0
    assert marker.exists() and (tmp_path / "out" / "a.nii.gz").is_file()


def test_damaged_folders_of_prompt_models_are_named(model, tmp_path, capsys):
    for number, name in enumerate(("plans.json", "dataset.json", "fold_0/checkpoint_final.pth")):
        folder = trained_folder(tmp_path / str(number))
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
        words = ["-m", str(folder), "-i", str(model[1]), "-p", str(tmp_path), "-o", str(tmp_path / "out"), "-q"]
        assert main(["predict-prompts", "-device", "cpu", *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert str(folder / name) in line and not (tmp_path / "out").exists()


def test_support_names_damaged_plans(model, tmp_path, capsys):
    folder = tmp_path / "nnUNetTrainerUniverSeg__nnUNetPlans__3d_fullres"
    shutil.copytree(model[0], folder)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = "wide"
    (folder / "plans.json").write_text(json.dumps(plans))
    sets = ["--support-images", str(model[1]), "--support-labels", str(model[1])]
    assert main(["support", "--model", str(folder), *sets, "-o", str(tmp_path / "mine.pt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / 'plans.json'}: configurations.3d_fullres.spacing is 'wide'" in line


def test_opening_is_nnunets_own_initialisation(model):
    opened, theirs = (nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False) for _ in range(2))
    open_model_folder(opened, model[0], [0])
    theirs.initialize_from_trained_model_folder(str(model[0]), (0,), "checkpoint_final.pth")
    assert opened.plans_manager.plans == theirs.plans_manager.plans
    assert opened.configuration_manager.configuration == theirs.configuration_manager.configuration
    assert opened.allowed_mirroring_axes == theirs.allowed_mirroring_axes == (0, 2)
    assert opened.trainer_name == theirs.trainer_name and opened.dataset_json == theirs.dataset_json
    for key, value in theirs.network.state_dict().items():
        assert torch.equal(opened.network.state_dict()[key], value), key
