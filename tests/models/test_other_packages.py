"""A package of somebody else with one network, one trainer and one row, under nnU-Net's own commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from helpers import nnunet_dataset

TOY = Path(__file__).parent.parent / "toy_model"
DATASET = "Dataset990_Phantoms"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH with the package in it, as pip installs it."""
    target = tmp_path_factory.mktemp("site")
    command = [shutil.which("uv", path=str(nnunet_dataset.COMMANDS)) or "uv", "pip", "install", "--no-deps"]
    done = subprocess.run(
        [*command, "--python", sys.executable, "--target", str(target), str(TOY)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def run(installed, preprocessed, tmp_path_factory):
    """A command with the package installed, and results of its own."""
    base, results = preprocessed.parent.parent, tmp_path_factory.mktemp("results")
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH", "")]))

    def command(*words: str):
        short = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1"}
        return nnunet_dataset.run(base, *words, PYTHONPATH=path, nnUNet_results=str(results), **short)

    command.base, command.results = base, results
    return command


def test_the_list_and_the_doctor_name_it(run):
    listed = run("nnunet_ext", "models").stdout
    assert "nnUNetTrainerToy\n" in listed and "two convolutions" in listed and "doi:10.0000/toy" in listed
    rows = {row["name"]: row for row in json.loads(run("nnunet_ext", "models", "--json").stdout)}
    toy = rows["nnUNetTrainerToy"]
    assert toy["planner"] == "nnUNetPlannerToy" and toy["sizes"] == ["tiny", "base"]


def test_planned_by_nnunets_own_command(run):
    run("nnUNetv2_plan_and_preprocess", "-d", "990", "-pl", "nnUNetPlannerToy", "-gpu_memory_target", "1.5", "--no_pp")
    plans = json.loads((run.base / "nnUNet_preprocessed" / DATASET / "nnUNetToyPlans.json").read_text())
    assert plans["experiment_planner_used"] == "nnUNetPlannerToy"
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"] == "toy_model.network.ToyNet"
    assert architecture["arch_kwargs"] == {"width": 16, "axes": 3}


def test_sizes_and_memory(run):
    plan = ("nnunet_ext", "plan", "-d", "990", "--model", "toy", "-c", "3d_fullres")
    offers = json.loads(run(*plan, "--memory", "1", "8", "--json").stdout)
    assert offers[0]["fit"]["gigabytes"] <= 1 and offers[1]["fit"]["batch_size"] >= offers[0]["fit"]["batch_size"]
    assert "nnUNetTrainerToy" in run(*plan, "--size", "tiny", "-o", "nnUNetPlansToyTiny").stderr


@pytest.mark.slow
def test_trains_and_predicts(run, tmp_path):
    """By the unmodified nnU-Net, its worker processes included."""
    plan = ("nnunet_ext", "plan", "-d", "990", "--model", "toy", "-c", "3d_fullres", "--size", "tiny")
    run(*plan, "--patch-size", "16", "32", "32", "--batch-size", "2", "-o", "nnUNetPlansToyTiny")
    which = ("-tr", "nnUNetTrainerToy", "-p", "nnUNetPlansToyTiny")
    run("nnUNetv2_train", "990", "3d_fullres", "0", *which, "-device", "cpu")
    folder = run.results / DATASET / "nnUNetTrainerToy__nnUNetPlansToyTiny__3d_fullres"
    record = json.loads((folder / "fold_0" / "run.json").read_text())
    assert record["trainer"] == "nnUNetTrainerToy" and record["gmacs_per_patch"] > 0
    assert (folder / "fold_0" / "validation" / "summary.json").is_file()
    images = run.base / "nnUNet_raw" / DATASET / "imagesTs"
    common = ("-d", "990", "-i", str(images), "-c", "3d_fullres", *which, "-f", "0", "-device", "cpu")
    run("nnUNetv2_predict", *common, "-o", str(tmp_path / "theirs"))
    run("nnunet_ext", "predict", *common, "-o", str(tmp_path / "ours"))
    theirs, ours = (sorted((tmp_path / which).glob("*.nii.gz")) for which in ("theirs", "ours"))
    assert [p.name for p in theirs] == [p.name for p in ours] and ours
    for a, b in zip(theirs, ours, strict=True):
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (a, b))
        assert (a == b).all()
