"""`nnunet_ext predict-prompts`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.promptable_stubs import trained_folder

from nnunet_ext.architectures.sam_med3d import VARIANTS, SAMMed3D
from nnunet_ext.cli.main import main


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "predict-prompts", "-device", "cpu", *map(str, words)],
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture
def scene(tmp_path):
    """Two images and prompts of two objects for the first; a model with random weights."""
    (tmp_path / "images").mkdir()
    (tmp_path / "prompts").mkdir()
    data = np.random.default_rng(0).standard_normal((12, 20, 18)).astype(np.float32) + 5
    for case in ("a", "b"):
        volume = sitk.GetImageFromArray(data)
        volume.SetSpacing((1.0, 1.2, 2.0))
        volume.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
        sitk.WriteImage(volume, str(tmp_path / "images" / f"{case}_0000.nii.gz"))
    write_prompts(tmp_path, "a", [3, 4, 5])
    # Weights whose answers leave a part of the image alone.
    return tmp_path, trained_folder(tmp_path, seed=4)


def write_prompts(base, case, xyz, **entries):
    objects = [
        {
            "label": 1,
            "name": "liver",
            "points": [{"xyz": xyz, "positive": True}, {"xyz": [9, 9, 9], "positive": False}],
        },
        {"name": "spleen", "points": [{"xyz": [12, 12, 6], "positive": True}], **entries},
    ]
    content = {"version": 1, "space": "voxel", "unit": "voxel", "objects": objects}
    (base / "prompts" / f"{case}.prompts.json").write_text(json.dumps(content))


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_label_maps_in_the_geometry_of_the_images(scene):
    base, model = scene
    done = command("-i", base / "images", "-p", base / "prompts", "-o", base / "out", "-m", model, "-q")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "nnunet_ext predict-prompts: b: no prompt file, left out\n"
    found, image = (sitk.ReadImage(str(base / part)) for part in ("out/a.nii.gz", "images/a_0000.nii.gz"))
    assert found.GetSize() == image.GetSize()
    described = (base / "out" / "dataset.json").read_text()
    assert json.loads(described) == json.loads((model / "dataset.json").read_text())
    np.testing.assert_allclose(found.GetDirection(), image.GetDirection(), atol=1e-6)
    assert set(np.unique(sitk.GetArrayFromImage(found))) <= {0, 1, 2}


def test_masks_and_label_maps_to_continue_from(scene, capsys):
    base, model = scene
    mask = sitk.ReadImage(str(base / "images" / "a_0000.nii.gz"))
    labels = np.zeros((12, 20, 18), dtype=np.uint8)
    labels[2:9, 6:16, 5:14], labels[10:, 18:, 16:] = 2, 3
    before = sitk.GetImageFromArray(labels)
    before.CopyInformation(mask)
    (base / "before").mkdir()
    sitk.WriteImage(before, str(base / "before" / "a.nii.gz"))
    words = ["predict-prompts", "-device", "cpu", "-i", str(base / "images"), "-p", str(base / "prompts"), "-q", "-m"]
    results = []
    for more in ((), ("--previous", str(base / "before"))):
        assert main([*words, str(model), "-o", str(base / f"out{len(more)}"), *more]) == 0
        results.append(read(base / f"out{len(more)}" / "a.nii.gz"))
    plain, continued = results
    assert not (plain == 3).any()
    kept = (labels == 3) & ~np.isin(continued, [1, 2])
    assert kept.any() and (continued[kept] == 3).all()  # a label without prompts stays where nothing new is
    assert not np.array_equal(plain, np.where(continued == 3, 0, continued))
    # The same mask named in the prompt file.
    write_prompts(base, "a", [3, 4, 5], mask="../before/a.nii.gz")
    assert main([*words, str(model), "-o", str(base / "own")]) == 0
    assert np.array_equal(read(base / "own" / "a.nii.gz") == 2, continued == 2)


def test_drawing_for_nnunets_own_command(scene, capsys):
    base, model = scene
    folders = ["-i", str(base / "images"), "-p", str(base / "prompts"), "-o", str(base / "drawn"), "-m", str(model)]
    assert main(["predict-prompts", "-device", "cpu", *folders, "-q", "--draw", "--radius", "2.5"]) == 0
    assert "a: 1 negative clicks not drawn" in capsys.readouterr().err
    drawn = read(base / "drawn" / "a.nii.gz")
    assert drawn[5, 4, 3] == 1 and drawn[6, 12, 12] == 2 and drawn[9, 9, 9] == 0
    assert drawn[6, 4, 3] == 1 and drawn[7, 4, 3] == 0 and drawn[5, 4, 5] == 1  # 2 mm along z, 1 mm along x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "{base}/images"], "images holds no plans.json; give the folder"),
        (["-m", "{model}", "--labels", "liver"], "--labels 'liver' must be NAME=VALUE"),
        (["-m", "{model}", "--previous", "{base}/images"], "a.nii.gz does not exist; every case needs a label map"),
        (["--weights", "{base}/none.pth"], "none.pth does not exist; give the path of a downloaded checkpoint"),
        (["--weights", "{base}/none.pth", "--draw"], "--draw needs -m"),
    ],
)
def test_errors_are_one_line(scene, options, message, capsys):
    base, model = scene
    words = [word.format(base=base, model=model) for word in options]
    folders = ["-i", str(base / "images"), "-p", str(base / "prompts"), "-o", str(base / "out")]
    assert main(["predict-prompts", "-device", "cpu", *folders, *words]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (base / "out").exists()


def test_a_bad_point_fails_its_case_and_no_other(scene, capsys):
    base, model = scene
    write_prompts(base, "b", [3, 40, 5])
    folders = ["-i", str(base / "images"), "-p", str(base / "prompts"), "-o", str(base / "out")]
    assert main(["predict-prompts", "-device", "cpu", *folders, "-m", str(model), "-q"]) == 1
    error = capsys.readouterr().err
    assert "b.prompts.json: object 1, point 1 at (3, 40, 5) lies outside" in error and "to (17, 19, 11)" in error
    assert sorted(path.name for path in (base / "out").iterdir()) == ["a.nii.gz", "dataset.json"]


@pytest.mark.parametrize("kind", ["image cut short", "mask cut short", "mask of NaN", "mask of fractions"])
def test_a_damaged_file_fails_its_case_and_no_other(scene, capsys, kind):
    base, model = scene
    write_prompts(base, "b", [3, 4, 5])
    (base / "masks").mkdir()
    for case in "ab":
        sitk.WriteImage(
            sitk.ReadImage(str(base / "images" / f"{case}_0000.nii.gz")) * 0, str(base / "masks" / f"{case}.nii.gz")
        )
    damaged = base / ("images/a_0000.nii.gz" if kind == "image cut short" else "masks/a.nii.gz")
    if "cut short" in kind:
        damaged.write_bytes(damaged.read_bytes()[:-20])
    else:
        volume = sitk.ReadImage(str(damaged)) + (float("nan") if "NaN" in kind else 0.5)
        sitk.WriteImage(volume, str(damaged))
    folders = ["-i", str(base / "images"), "-p", str(base / "prompts"), "-o", str(base / "out")]
    more = ["-m", str(model), "-q", "--previous", str(base / "masks")]
    assert main(["predict-prompts", "-device", "cpu", *folders, *more]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(damaged) in line and ("whole numbers" in line or "damaged or cut short" in line)
    assert sorted(path.name for path in (base / "out").iterdir()) == ["b.nii.gz", "dataset.json"]


@pytest.mark.slow
def test_official_weights_need_no_training(scene):
    """A file as the official code saves it, of the published size; names get values from --labels."""
    base, _ = scene
    torch.manual_seed(0)
    training_state = {
        "epoch": 3, "model_state_dict": SAMMed3D(**VARIANTS["vit_b_ori"]).state_dict(), "losses": [np.float64(1.5)],
        "lr_scheduler_state_dict": {"milestones": Counter({120: 1})}, "best_dice": 0.5,
        "args": Namespace(lr=8e-4, work_dir="work_dir", multi_click=False),
    }  # fmt: skip
    torch.save(training_state, base / "sam_med3d_turbo.pth")
    words = (
        "-i",
        base / "images",
        "-p",
        base / "prompts",
        "-o",
        base / "out",
        "--weights",
        base / "sam_med3d_turbo.pth",
    )
    refused = command(*words)
    assert refused.returncode == 1 and "is of 'spleen'; add --labels spleen=1 or other values" in refused.stderr
    done = command(*words, "--labels", "liver=1", "spleen=7")
    assert done.returncode == 0, done.stderr
    assert read(base / "out" / "a.nii.gz").shape == (12, 20, 18)
