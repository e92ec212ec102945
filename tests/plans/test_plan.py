"""`nnunet_ext plan`: plans a user can read, reusing what is preprocessed, and refusing what cannot work."""

from __future__ import annotations

import json

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.plans.presets import AXES, NETWORKS, PRESETS, TITLES


def stock_plans() -> dict:
    unet = {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet"}
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [20, 320, 256],
        "spacing": [10.0, 1.4, 1.4],
        "architecture": {
            **unet,
            "arch_kwargs": {
                "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
            },
        },
    }
    flat = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 12,
        "patch_size": [56, 40],
        "spacing": [1.0, 1.0],
        "architecture": {**unet, "arch_kwargs": {"strides": [[1, 1], [2, 2], [2, 2], [2, 2]]}},
    }
    cascade = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return {
        "dataset_name": "Dataset007_Toy",
        "plans_name": "nnUNetPlans",
        "configurations": {"2d": flat, "3d_fullres": full, "3d_cascade_fullres": cascade},
    }


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset007_Toy"
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans()))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}}
    (folder / "dataset.json").write_text(json.dumps(description))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    return folder


def test_plans_name_the_network_and_keep_the_data(dataset, capsys):
    assert main(["plan", "-d", "7", "--model", "segmamba", "--size", "small"]) == 0
    plans = json.loads((dataset / "nnUNetPlansSegMambaSmall.json").read_text())
    assert plans["plans_name"] == "nnUNetPlansSegMambaSmall"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    assert configuration["architecture"]["network_class_name"] == "nnunet_ext.architectures.segmamba.SegMamba"
    assert configuration["preprocessor_name"] == "ExactFastPreprocessor"
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["dims"] == [24, 48, 96, 192]
    # The coarse axis is spared as nnU-Net spares it.
    assert arguments["strides"] == [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    flat = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert flat["strides"] == [[2, 2], [2, 2], [2, 2], [1, 1]]
    assert plans["configurations"]["3d_cascade_fullres"]["inherits_from"] == "3d_fullres"
    shown = capsys.readouterr().err
    assert "yes, reused" in shown and "-p nnUNetPlansSegMambaSmall -tr nnUNetTrainerSegMamba" in shown


def test_stock_plans_with_the_fast_preprocessor(dataset, capsys):
    assert main(["plan", "-d", "7", "--fast-preprocessing"]) == 0
    expected = stock_plans()
    expected["plans_name"] = "nnUNetPlansFast"
    expected["configurations"]["3d_fullres"]["preprocessor_name"] = "ExactFastPreprocessor"
    assert json.loads((dataset / "nnUNetPlansFast.json").read_text()) == expected
    # What is fast already has nothing to replace; other preprocessors have another output.
    assert main(["plan", "-d", "7", "-p", "nnUNetPlansFast", "--fast-preprocessing"]) == 1
    assert "ExactFastPreprocessor" in capsys.readouterr().err
    assert main(["plan", "-d", "7", "--fast-preprocessing", "--batch-size", "3"]) == 1
    assert "--batch-size belongs to --model" in capsys.readouterr().err


def test_patch_batch_and_name_can_be_chosen(dataset):
    options = ["--patch-size", "16", "64", "64", "--batch-size", "3", "-c", "3d_fullres", "-o", "mine"]
    assert main(["plan", "-d", "7", "--model", "segmamba", "--size", "tiny", *options]) == 0
    plans = json.loads((dataset / "mine.json").read_text())
    assert "2d" not in plans["configurations"]
    configuration = plans["configurations"]["3d_fullres"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([16, 64, 64], 3)
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    assert all(len(stride) == 3 for stride in strides) and strides[0][0] == 1


def test_a_network_for_volumes_leaves_out_what_is_flat(dataset, capsys):
    assert main(["plan", "-d", "7", "--model", "unetrpp", "--size", "tiny"]) == 0
    plans = json.loads((dataset / "nnUNetPlansUNETRPPTiny.json").read_text())
    assert set(plans["configurations"]) == {"3d_fullres", "3d_cascade_fullres"}
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert arguments["patch_size"] == [20, 320, 256]
    assert arguments["strides"] == [[2, 4, 4], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
    capsys.readouterr()
    assert main(["plan", "-d", "7", "--model", "unetrpp", "-c", "2d"]) == 1
    assert "UNETRPP takes 3 axes, so not 2d in nnUNetPlans.json; choose -c 3d_fullres" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "8"], "expected one folder Dataset008_* in "),
        (["-d", "heart"], "-d heart must be a number"),
        (["-d", "7", "-p", "other"], "other.json does not exist; run nnUNetv2_plan_and_preprocess -d 7 first"),
        (["-d", "7", "-c", "3d_lowres"], "-c 3d_lowres is not in nnUNetPlans.json, which has 2d, 3d_fullres"),
        (["-d", "7", "--patch-size", "16", "16", "-c", "3d_fullres"], "has 2 axes, but 3d_fullres has 3"),
        (["-d", "7", "-o", "my__plans"], "may not contain '__'"),
    ],
)
def test_errors_are_one_line(dataset, capsys, options, message):
    before = sorted(dataset.iterdir())
    assert main(["plan", "--model", "segmamba", *options]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert sorted(dataset.iterdir()) == before


def test_every_network_has_every_preset():
    assert NETWORKS.keys() == PRESETS.keys() == TITLES.keys() == AXES.keys()
    assert all(list(presets) == ["tiny", "small", "base"] for presets in PRESETS.values())
