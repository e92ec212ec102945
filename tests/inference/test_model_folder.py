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
        assert line.startswith(f"nnunet_ext predict: {damaged}") and "weights_only" not in line
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
