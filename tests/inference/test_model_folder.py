"""Model folders of others: what is damaged is named in one line, what would run code is refused."""

from __future__ import annotations

import copy
import json
import random
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.model_folders import write_model
from helpers.promptable_stubs import trained_folder
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ext.cli.main import main
from nnunet_ext.inference.model_folder import open_model_folder

DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
PROMPTS = {
    "version": 1, "space": "voxel", "unit": "voxel",
    "objects": [{"label": 1, "points": [{"xyz": [8, 8, 4], "positive": True}]}],
}  # fmt: skip
JSON_VALUES = (None, True, -1, 0, 2.5, 10**18, 1e308, float("nan"), "", "x" * 5000, "\ud800", [], [[]], {}, {"a": {}})
STORED_VALUES = (None, -1, 0, "", "nowhere", (), (7,), {}, {"a": "b"}, torch.zeros(2), float("nan"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder and a folder with one small image."""
    base = tmp_path_factory.mktemp("model")
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32))
    image.SetSpacing((2.2, 2.2, 5.0))
    (base / "images").mkdir()
    sitk.WriteImage(image, str(base / "images" / "a_0000.nii.gz"))
    return write_model(base, DATASET), base / "images"


def predict(model, images, output, *more):
    words = ("-m", model, "-i", images, "-o", output, "-f", "0", "-device", "cpu", "--disable_tta", *more)
    return main(["predict", *map(str, words)])


def places(value, way=()):
    """The way to every value within a JSON value or a checkpoint."""
    if way:
        yield way
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*way, key))


def mutate(value, values, rng):
    """`value` with one entry removed or replaced."""
    value = copy.deepcopy(value)
    *way, last = rng.choice(list(places(value)))
    inner = value
    for key in way:
        inner = inner[key]
    if rng.random() < 0.25:
        del inner[last]
    else:
        inner[last] = rng.choice(values)
    return value


def cut_or_flipped(data, rng):
    data = bytearray(data)
    if rng.random() < 0.5:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.choice((1, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def damage(model, rng):
    """Damage one file of the folder in one way."""
    path = rng.choice([model / "plans.json", model / "dataset.json", model / "fold_0" / "checkpoint_final.pth"])
    if rng.random() < 0.2:
        path.write_bytes(cut_or_flipped(path.read_bytes(), rng))
    elif path.suffix == ".json":
        path.write_text(json.dumps(mutate(json.loads(path.read_text()), JSON_VALUES, rng)))
    else:
        torch.save(mutate(torch.load(path, weights_only=True), STORED_VALUES, rng), path)


def check_fuzzed(model, images, base, seed, capsys):
    """Success with a label map, or one line and nothing written."""
    damaged, output = base / "model" / model.name, base / "out"
    shutil.copytree(model, damaged)
    damage(damaged, random.Random(seed))
    status = predict(damaged, images, output)
    error = capsys.readouterr().err
    if status:
        assert status == 1 and "Traceback" not in error
        (line,) = error.splitlines()
        # Of a changed file ending, which may be right, only the images can tell.
        places = (f"nnunet_ext predict: {damaged}", f"nnunet_ext predict: {images} holds no image named NAME_0000 with")
        assert line.startswith(places) and "weights_only" not in line
        assert not output.exists()
    else:
        assert sitk.ReadImage(str(output / "a.nii.gz")).GetSize() == (16, 16, 8)
    return status


@pytest.mark.parametrize("seed", range(60))
def test_damaged_model_folders(model, tmp_path, capsys, seed):
    check_fuzzed(*model, tmp_path, seed, capsys)


@pytest.mark.slow
def test_many_damaged_model_folders(model, tmp_path, capsys):
    statuses = [check_fuzzed(*model, tmp_path / str(seed), seed, capsys) for seed in range(60, 1000)]
    assert 0.1 < np.mean(statuses) < 0.98, "the mutations all did nothing, or all the same"


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


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
