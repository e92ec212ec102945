"""`nnunet_ext plan`: plans a user can read, reusing what is preprocessed, and refusing what cannot work."""

from __future__ import annotations

import json
import math

import pytest

from nnunet_ext import models
from nnunet_ext.cli.main import main
from nnunet_ext.plans import fit, write
from nnunet_ext.plans.memory import StepMemory


def stock_plans() -> dict:
    unet = {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet"}
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [20, 320, 256],
        "median_image_size_in_voxels": [17.0, 310.0, 250.0],
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
        "median_image_size_in_voxels": [50.0, 35.0],
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
    def estimate(model, arguments, channels, classes, patch, batch):
        """A tenth of a gigabyte of weights and a thousand bytes per voxel: a quick stand-in."""
        return StepMemory(10**8, 0, 0, 1000 * math.prod(patch) * batch)

    for module in (fit, write):
        monkeypatch.setattr(module, "estimate", estimate)
    folder = tmp_path / "Dataset007_Toy"
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(stock_plans()))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": 1}, "numTraining": 20}
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
    assert (
        " GB estimated" in shown
        and "yes, reused" in shown
        and "nnUNetv2_train 7 3d_fullres 0 -p nnUNetPlansSegMambaSmall -tr nnUNetTrainerSegMamba" in shown
    )


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
    assert "UNETR++ takes 3 axes, so not 2d in nnUNetPlans.json; choose -c 3d_fullres" in capsys.readouterr().err


def test_table_of_gpus_writes_nothing(dataset, capsys):
    before = sorted(dataset.iterdir())
    command = ["plan", "-d", "7", "--model", "segmamba", "--size", "tiny", "-c", "2d"]
    assert main([*command, "--memory", "2", "0.9", "0.1", "--json"]) == 0
    shown = capsys.readouterr()
    offers = json.loads(shown.out)
    assert [offer["gpu_gigabytes"] for offer in offers] == [0.1, 0.9, 2.0]
    assert offers[0]["fit"] is None and "more than 0.1 GB" in offers[0]["refusal"]
    small, large = (offer["fit"] for offer in offers[1:])
    # A twentieth of all voxels is 550 samples of 56x40; 2 GB hold fewer.
    assert small["patch_size"] == large["patch_size"] == [56, 40]
    assert 2 <= small["batch_size"] < large["batch_size"] <= 550
    assert small["gigabytes"] <= 0.9 and large["gigabytes"] <= 2
    assert "nothing fits" in shown.err and "--gpu-memory-target 2" in shown.err
    assert sorted(dataset.iterdir()) == before
    assert main([*command, "--memory", "0.1"]) == 1
    capsys.readouterr()

    assert main([*command, "--gpu-memory-target", "2", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["configurations"][0]
    assert (written["patch_size"], written["batch_size"]) == (large["patch_size"], large["batch_size"])
    assert written["arguments"] == large["arguments"] and written["gigabytes"] <= 2
    plans = json.loads((dataset / "nnUNetPlansSegMambaTiny2GB.json").read_text())
    assert plans["configurations"]["2d"]["batch_size"] == large["batch_size"]


def test_gpus_that_allow_the_same_share_a_row_that_says_why(dataset, capsys):
    command = ["plan", "-d", "7", "--model", "segmamba", "--size", "tiny"]
    assert main([*command, "--memory", "1", "5", "100", "200"]) == 0
    rows = [" ".join(row.split()) for row in capsys.readouterr().err.splitlines()]
    whole = "the patch is already the whole image"
    assert rows[1] == f"1 GB 2d 56x40 77 1.0 GB {whole}"
    # 550 samples are a twentieth of all voxels.
    limited = "the batch is limited to 5% of the data set's voxels; --batch-size overrides"
    assert rows[2].startswith("5 to 200 GB 2d 56x40 5") and rows[2].endswith(f"{whole}; {limited}")
    assert rows[3].startswith("1 GB 3d_fullres ") and rows[3].endswith("the memory")
    assert main([*command, "--memory", "100", "200", "-c", "2d", "--batch-size", "700"]) == 0
    shown = capsys.readouterr().err
    (row,) = [" ".join(line.split()) for line in shown.splitlines() if " GB " in line]
    assert row.startswith("100 to 200 GB 2d 56x40 700 ") and row.endswith(f" GB {whole}")
    assert "--size tiny --batch-size 700 --gpu-memory-target 200" in shown
    assert main([*command, "-c", "2d", "--batch-size", "7", "--gpu-memory-target", "5"]) == 0
    plans = json.loads((dataset / "nnUNetPlansSegMambaTiny5GB.json").read_text())
    assert plans["configurations"]["2d"]["batch_size"] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-d", "8"], "expected one folder Dataset008_* in "),
        (["-d", "heart"], "data set 'heart' must be a number such as 4"),
        (["-d", "7", "-p", "other"], "other.json does not exist; run nnUNetv2_plan_and_preprocess -d 7 first"),
        (["-d", "7", "-c", "3d_lowres"], "-c 3d_lowres is not in nnUNetPlans.json, which has 2d, 3d_fullres"),
        (["-d", "7", "--patch-size", "16", "16", "-c", "3d_fullres"], "has 2 axes, but 3d_fullres has 3"),
        (["-d", "7", "-o", "my__plans"], "may not contain '__'"),
        (["-d", "7", "--gpu-memory-target", "8", "--patch-size", "8", "8"], "leave out --patch-size"),
        (["-d", "7", "--gpu-memory-target", "0.5"], "SegMamba base needs 0.8 GB for a batch of 2"),
        (["-d", "7", "--memory", "8", "-o", "mine"], "--plans-name belongs to plans that are written"),
    ],
)
def test_errors_are_one_line(dataset, capsys, options, message):
    before = sorted(dataset.iterdir())
    assert main(["plan", "--model", "segmamba", *options]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert sorted(dataset.iterdir()) == before


def test_every_network_has_every_preset():
    assert all(list(model.sizes) == ["tiny", "small", "base"] for model in models.OWN if model.planner)
