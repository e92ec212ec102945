"""`nnunet_ext predict-fewshot`: files in, label maps out on the same grid, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.model_folders import plans
from helpers.toy_networks import Copy, MeanLabel

from nnunet_ext.architectures.universeg import UniverSeg
from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.few_shot import folder as few_shot_folder
from nnunet_ext.support.pool import Pool

VALUES = (7, 255)


def scene(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map: an ellipse of value 7 and a box of value 255, elsewhere for every seed."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    centre = rng.uniform(0.35, 0.45, len(shape))
    labels = np.zeros(shape, np.uint8)
    labels[sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True)) < 0.06] = 7
    labels[np.all([(g > 0.55) & (g < 0.93 - 0.02 * (seed % 5)) for g in grids], axis=0)] = 255
    image = 100 + 60 * (labels == 7) + 120 * (labels == 255) + rng.normal(0, 8, shape)
    return image.clip(0, 255), labels


def write(folder: Path, name: str, array: np.ndarray, spacing, origin=None, direction=None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(spacing)
    if origin is not None:
        image.SetOrigin(origin)
        image.SetDirection(direction)
    sitk.WriteImage(image, str(folder / name))


def support(base: Path, shapes, ending: str, spacing) -> None:
    for seed, shape in enumerate(shapes):
        image, labels = scene(seed, shape)
        write(base / "images", f"s{seed}_0000{ending}", image, spacing)
        write(base / "labels", f"s{seed}{ending}", labels, spacing)


def command(base: Path, *more: str) -> list[str]:
    return [
        "predict-fewshot", "--weights", str(base / "weights.pt"), "--support-images", str(base / "images"),
        "--support-labels", str(base / "labels"), "-i", str(base / "in"), "-o", str(base / "out"),
        "--device", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    torch.save(UniverSeg([2, 3]).state_dict(), tmp_path / "weights.pt")
    return tmp_path


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_volume_keeps_its_geometry_and_labels_land_in_place(axis, weights, monkeypatch):
    shape, spacing = (15, 41, 28), (0.7, 0.9, 2.5)
    support(weights, [shape], ".nii.gz", spacing)
    image, labels = scene(0, shape)
    c, s = np.cos(0.3), np.sin(0.3)
    write(weights / "in", "q_0000.nii.gz", image, spacing, (5, -6, 7), (c, -s, 0, s, c, 0, 0, 0, -1))
    monkeypatch.setattr(few_shot_folder, "load_network", lambda path: (Copy(), None))
    assert main(command(weights, "--axis", axis, "--support-size", "64", "-q")) == 0
    before, after = (sitk.ReadImage(str(weights / folder)) for folder in ("in/q_0000.nii.gz", "out/q.nii.gz"))
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(after, what)(), getattr(before, what)(), atol=1e-6)
    found = sitk.GetArrayFromImage(after)
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, *VALUES}
    # Slices that hold no label are copied from those that do; where there are both, they land in place.
    held = np.moveaxis(labels, "zyx".index(axis), 0)
    mine = np.moveaxis(found, "zyx".index(axis), 0)
    used = np.all([(held == value).any(axis=(1, 2)) for value in VALUES], axis=0)
    assert used.any()
    assert (held[used] == mine[used]).mean() > 0.995


def test_png_by_the_command_of_a_user(weights):
    support(weights, [(50, 70), (50, 70), (64, 64)], ".png", (1, 1))
    rgb = np.stack([scene(4, (45, 66))[0]] * 3, axis=-1).astype(np.uint8)
    (weights / "in").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(rgb, isVector=True), str(weights / "in" / "q_0000.png"))
    run = [sys.executable, "-m", "nnunet_ext", *command(weights, "--image-size", "32", "--ensemble", "3")]
    done = subprocess.run([*run, "--support-size", "2", "--uncertainty"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "label 7: 3 support slices of 3 cases" in done.stderr and "research only (OpenRAIL++-M)" in done.stderr
    found = sitk.ReadImage(str(weights / "out" / "q.png"))
    assert found.GetSize() == (66, 45) and set(np.unique(sitk.GetArrayFromImage(found))) <= {0, *VALUES}
    variance = sitk.GetArrayFromImage(sitk.ReadImage(str(weights / "out" / "uncertainty" / "q.nii.gz")))
    assert variance.shape == (45, 66) and variance.dtype == np.float32 and 0 < variance.max() <= 0.25


def test_results_bring_a_dataset_json_so_that_they_can_be_evaluated(weights, monkeypatch, capsys):
    """And where labels lie at the same place in all volumes, the strategy that uses it is named."""
    support(weights, [(12, 32, 32)] * 2, ".nii.gz", (1, 1, 1))
    image, labels = scene(0, (12, 32, 32))
    write(weights / "in", "q_0000.nii.gz", image, (1, 1, 1))
    write(weights / "truth", "q.nii.gz", labels, (1, 1, 1))
    monkeypatch.setattr(few_shot_folder, "load_network", lambda path: (Copy(), None))
    monkeypatch.setattr(Pool, "is_aligned", lambda self: True)
    assert main(command(weights)) == 0
    assert "--strategy position takes slices from the same place" in capsys.readouterr().err
    own = {"labels": {"background": 0, **{str(value): value for value in VALUES}}}
    assert json.loads((weights / "out" / "dataset.json").read_text()) == own
    assert main(["evaluate", "-r", str(weights / "truth"), "-p", str(weights / "out"), "-q", "-n1"]) == 0
    (weights / "out" / "dataset.json").unlink()
    declared = {"labels": {"background": 0, **{f"organ {value}": value for value in VALUES}}, "file_ending": ".nii.gz"}
    (weights / "dataset.json").write_text(json.dumps(declared))
    assert main(command(weights, "-q")) == 0
    assert json.loads((weights / "out" / "dataset.json").read_text()) == declared


def test_volumes_are_aligned_where_labels_lie_at_the_same_place(weights):
    def pool(*starts: int) -> Pool:
        for number, start in enumerate(starts):
            labels = np.zeros((20, 16, 16), np.uint8)
            labels[start : start + 4, 4:9, 4:9] = 1
            write(weights / "images", f"s{number}_0000.nii.gz", labels.astype(np.float32), (1, 1, 1))
            write(weights / "labels", f"s{number}.nii.gz", labels, (1, 1, 1))
        return few_shot_folder.read_support(weights / "images", weights / "labels", 16, "z")

    assert not pool(8).is_aligned(), "one case says nothing"
    assert pool(8, 9).is_aligned() and not pool(2, 14).is_aligned()


def test_the_variance_is_that_of_the_draws(weights):
    support(weights, [(32, 32)] * 4, ".png", (1, 1))
    pool = few_shot_folder.read_support(weights / "images", weights / "labels", 32, "z")
    views, slices = few_shot_folder.read_image([weights / "images" / "s0_0000.png"], 32, "z")
    settings = {"support_size": 1, "strategy": "random", "seed": 0, "device": torch.device("cpu")}
    (prediction,) = few_shot_folder.predict_case(MeanLabel(), views, slices, pool, "other", ensemble=40, **settings)
    first, second = (pool.masks[:, task].float().div(255).round().mean(dim=0).numpy() for task in (0, 1))
    agreed = np.isin(first, (0, 1)) & np.isin(second, (0, 1))
    assert prediction.variance[agreed].max() < 1e-3 and (first[agreed] == 1).any()
    half = (first == 0.5) & np.isin(second, (0, 1))
    assert half.any() and prediction.variance[half] == pytest.approx(0.25, abs=0.04)


def test_own_checkpoint_brings_its_sizes(tmp_path):
    from nnunet_ext.architectures.universeg.few_shot import FewShotNetwork

    torch.manual_seed(0)
    network = FewShotNetwork(1, 3, encoder_blocks=[(2, 3), 4], image_size=48)
    torch.save({"network_weights": network.state_dict(), "current_epoch": 3}, tmp_path / "checkpoint_final.pth")
    core, size = few_shot_folder.load_network(tmp_path / "checkpoint_final.pth")
    assert size == 48
    for key, value in network.core.state_dict().items():
        assert torch.equal(core.state_dict()[key], value)


def test_a_case_does_not_support_itself(weights):
    support(weights, [(32, 32)], ".png", (1, 1))
    write(weights / "in", "s0_0000.png", scene(0, (32, 32))[0], (1, 1))
    pool = few_shot_folder.read_support(weights / "images", weights / "labels", 32, "z")
    views, slices = few_shot_folder.read_image([weights / "in" / "s0_0000.png"], 32, "z")
    settings = {"support_size": 4, "ensemble": 1, "strategy": "balanced", "seed": 0, "device": torch.device("cpu")}
    with pytest.raises(UserError, match="s0: label 7 is in no other support case"):
        next(few_shot_folder.predict_case(Copy(), views, slices, pool, "s0", **settings))


def spoil(base: Path, what: str) -> None:
    image, labels = scene(9, (32, 32))
    if what == "missing label":
        (base / "labels" / "s1.png").unlink()
    elif what == "label alone":
        write(base / "labels", "x.png", labels, (1, 1))
    elif what == "other grid":
        write(base / "labels", "s1.png", labels[:30], (1, 1))
    elif what == "nothing marked":
        for path in (base / "labels").iterdir():
            write(base / "labels", path.name, np.zeros((32, 32)), (1, 1))
    elif what == "interpolated":
        (base / "labels" / "s1.png").unlink()
        sitk.WriteImage(sitk.GetImageFromArray(labels.astype(np.float32) / 2), str(base / "labels" / "s1.nii.gz"))
    elif what == "NaN":
        (base / "labels" / "s1.png").unlink()
        labels = np.where(labels == 7, np.nan, labels).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(base / "labels" / "s1.nii.gz"))
    elif what == "name":
        write(base / "in", "other.png", image, (1, 1))
    elif what == "channel":
        write(base / "in", "q_0001.png", image, (1, 1))
    elif what == "damaged":
        (base / "in" / "q_0000.png").write_bytes(b"no image")
    elif what == "weights":
        torch.save({"conv.weight": torch.zeros(1)}, base / "weights.pt")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing label", "s1_0000.png has no label map in"),
        ("label alone", "x.png has no image in"),
        ("other grid", "s1.png has (1, 30, 32) pixels but"),
        ("nothing marked", "marks anything; labels are values above 0"),
        ("interpolated", "s1.nii.gz holds the value 3.5; a label map has whole numbers"),
        ("NaN", "s1.nii.gz holds the value nan; a label map has whole numbers"),
        ("name", "other.png has no channel number; rename it to other_0000.png"),
        ("channel", "has 2 channels and"),
        ("damaged", "in/q_0000.png is damaged, cut short or no image"),
        ("weights", "weights.pt: these are no weights of UniverSeg"),
    ],
)
def test_mistakes_are_named_with_the_file(what, message, weights, capsys):
    support(weights, [(32, 32)] * 2, ".png", (1, 1))
    write(weights / "in", "q_0000.png", scene(5, (32, 32))[0], (1, 1))
    spoil(weights, what)
    assert main(command(weights, "--image-size", "32", "-q")) == 1
    error = capsys.readouterr().err
    assert error.startswith("nnunet_ext predict-fewshot: ") and len(error.splitlines()) == 1 and message in error
    assert not list((weights / "out").rglob("*")) if (weights / "out").exists() else True


def test_a_damaged_image_costs_only_itself_and_a_damaged_support_says_so(weights, capsys):
    support(weights, [(6, 32, 32)] * 2, ".nii.gz", (1, 1, 1))
    for name in "abc":
        write(weights / "in", f"{name}_0000.nii.gz", scene(5, (6, 32, 32))[0], (1, 1, 1))
    for path in (weights / "in" / "b_0000.nii.gz", weights / "images" / "s1_0000.nii.gz"):
        path.write_bytes(path.read_bytes()[:-100])
        assert main(command(weights, "--image-size", "32", "-q")) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path} is damaged or cut short" in line
        assert sorted(path.name for path in (weights / "out").iterdir()) == ["a.nii.gz", "c.nii.gz", "dataset.json"]


@pytest.mark.parametrize("what", ["image cut short", "label cut short", "label of NaN"])
def test_support_files_are_made_of_whole_files(tmp_path, capsys, what):
    model = tmp_path / "nnUNetTrainerUniverSeg__nnUNetPlans__2d"
    model.mkdir()
    described = plans()
    described["configurations"] = {"2d": {**described["configurations"]["3d_fullres"], "patch_size": [32, 32]}}
    described["configurations"]["2d"]["spacing"] = [1.0, 1.0]
    (model / "plans.json").write_text(json.dumps(described))
    facts = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 7}, "file_ending": ".nii.gz"}
    (model / "dataset.json").write_text(json.dumps(facts))
    support(tmp_path, [(6, 32, 32)], ".nii.gz", (1, 1, 1))
    damaged = tmp_path / ("images/s0_0000.nii.gz" if "image" in what else "labels/s0.nii.gz")
    if "short" in what:
        damaged.write_bytes(damaged.read_bytes()[:-30])
    else:
        sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(damaged)), sitk.sitkFloat32) + float("nan"), str(damaged))
    sets = ["--support-images", str(tmp_path / "images"), "--support-labels", str(tmp_path / "labels")]
    assert main(["support", "--model", str(model), *sets, "-o", str(tmp_path / "mine.pt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(damaged) in line and ("damaged or cut short" in line or "holds the value nan" in line)
    assert not (tmp_path / "mine.pt").exists()


@pytest.mark.parametrize("options", [["--uncertainty"], ["--ensemble", "3", "--strategy", "similar"]])
def test_options_that_would_do_nothing_are_refused(options, weights, capsys):
    assert main(command(weights, *options)) == 2
    assert "--ensemble" in capsys.readouterr().err


def test_published_weights_start_a_training(tmp_path, monkeypatch, capsys):
    from nnunet_ext.architectures.universeg.few_shot import FewShotNetwork

    folder = tmp_path / "Dataset007_Toy"
    folder.mkdir()
    architecture = {
        "network_class_name": "nnunet_ext.architectures.universeg.FewShotNetwork",
        "arch_kwargs": {"encoder_blocks": [2, 3], "image_size": 16},
        "_kw_requires_import": [],
    }
    configuration = {
        "data_identifier": "toy", "patch_size": [16, 16], "batch_size": 2, "architecture": architecture,
        "spacing": [1, 1],
    }  # fmt: skip
    plans = {"dataset_name": folder.name, "plans_name": "toy", "configurations": {"2d": configuration}}
    (folder / "toy.json").write_text(json.dumps({**plans, "label_manager": "LabelManager"}))
    labels = {"background": 0, "a": 1, "b": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "MRI"}}))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    torch.manual_seed(0)
    official = UniverSeg([2, 3])
    torch.save(official.state_dict(), tmp_path / "v1.pt")
    start = tmp_path / "start.pth"
    words = ["import-weights", "--model", "universeg", "-i", str(tmp_path / "v1.pt"), "-d", "7", "-p", "toy"]
    assert main([*words, "-o", str(start)]) == 0
    assert "20 tensors copied, 0 adapted, 0 left" in (said := capsys.readouterr().err)
    assert f"nnUNetv2_train 7 2d 0 -p toy -tr nnUNetTrainerUniverSeg -pretrained_weights {start}" in said
    # nnU-Net's own loader asks for every key and shape of the network it has just built.
    network = FewShotNetwork(1, 3, **architecture["arch_kwargs"])
    network.load_state_dict(torch.load(start, weights_only=True)["network_weights"])
    assert all(torch.equal(v, official.state_dict()[k]) for k, v in network.core.state_dict().items())
    torch.save(UniverSeg([4, 3]).state_dict(), tmp_path / "v1.pt")
    assert main([*words, "-o", str(start)]) == 1
    assert "weights do not fit UniverSeg" in capsys.readouterr().err
