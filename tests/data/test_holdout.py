"""Taking part of somebody's data set: the right cases, nothing written to it, and one clear line about each fault."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.data.holdout import hold_out, read_raw_dataset
from nnunet_ext.errors import UserError


def write(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def raw(tmp_path):
    """Eight cases with two channels and labels 0 to 2."""
    folder = tmp_path / "theirs" / "Dataset042_Things"
    rng = np.random.default_rng(0)
    for case in "abcdefgh":
        for channel in range(2):
            write(rng.normal(size=(4, 6, 5)).astype(np.float32), folder / "imagesTr" / f"{case}_000{channel}.nii.gz")
        write(rng.integers(0, 3, size=(4, 6, 5)).astype(np.uint8), folder / "labelsTr" / f"{case}.nii.gz")
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 8,
        "file_ending": ".nii.gz",
        "licence": "CC0",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_links_to_seeded_cases(raw, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    source = read_raw_dataset(raw)
    made = hold_out(source, tmp_path / "one" / raw.name, num_training=5, num_test=2, seed=1)
    again = hold_out(source, tmp_path / "two" / raw.name, num_training=5, num_test=2, seed=1)
    other = hold_out(source, tmp_path / "three" / raw.name, num_training=5, num_test=2, seed=2)
    training, test = names(made / "labelsTr"), names(made / "labelsTs")
    assert (len(training), len(test)) == (5, 2) and not set(training) & set(test)
    assert names(again / "labelsTr") == training and names(again / "labelsTs") == test
    assert names(other / "labelsTs") != test
    for split, labels in (("imagesTr", training), ("imagesTs", test)):
        expected = [f"{label[0]}_000{channel}.nii.gz" for label in labels for channel in range(2)]
        assert names(made / split) == expected
        for name in expected:
            assert (made / split / name).resolve() == raw / "imagesTr" / name
    description = json.loads((made / "dataset.json").read_text())
    assert description["numTraining"] == 5 and description["licence"] == "CC0"
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before


def test_training_keeps_five_cases(raw, tmp_path):
    made = hold_out(read_raw_dataset(raw), tmp_path / "out" / raw.name, num_training=20, num_test=6)
    assert (len(names(made / "labelsTr")), len(names(made / "labelsTs"))) == (5, 3)


def test_files_listed_in_dataset_json(raw, tmp_path):
    description = json.loads((raw / "dataset.json").read_text())
    description["dataset"] = {
        f"case_{case}": {
            "images": [f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz"],
            "label": f"labelsTr/{case}.nii.gz",
        }
        for case in "abcdef"
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    made = hold_out(read_raw_dataset(raw), tmp_path / "out" / raw.name, num_training=5, num_test=1)
    (test,) = names(made / "labelsTs")
    assert test.startswith("case_")
    assert (made / "labelsTs" / test).resolve() == raw / "labelsTr" / test.removeprefix("case_")
    assert "dataset" not in json.loads((made / "dataset.json").read_text())


def damage(raw, how):
    """Make one thing wrong."""
    image, label = raw / "imagesTr" / "c_0001.nii.gz", raw / "labelsTr" / "c.nii.gz"
    if how == "no dataset.json":
        (raw / "dataset.json").unlink()
    elif how == "no images":
        shutil.rmtree(raw / "imagesTr")
    elif how == "missing channel":
        image.unlink()
    elif how == "missing label":
        label.unlink()
    elif how == "five cases":
        for case in "abc":
            for path in raw.rglob(f"{case}*.nii.gz"):
                path.unlink()
    elif how == "truncated image":
        image.write_bytes(image.read_bytes()[:-60])
    elif how == "truncated label":
        label.write_bytes(label.read_bytes()[:-20])
    elif how == "unknown label":
        write(np.full((4, 6, 5), 7, np.uint8), label)
    elif how == "other size":
        write(np.zeros((4, 6, 6), np.uint8), label)
    elif how == "two-dimensional":
        write(np.zeros((6, 5), np.float32), image)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no dataset.json", r"Dataset042_Things has no dataset.json; expected an nnU-Net raw data set"),
        ("no images", r"imagesTr has no file named CASE_0000.nii.gz"),
        ("missing channel", r"c_0001.nii.gz is missing; case c needs this channel \(dataset.json names 2\)"),
        ("missing label", r"labelsTr/c.nii.gz is missing; case c needs this label file"),
        ("five cases", r"has 5 cases; expected at least 5 .* and one to hold out"),
        ("truncated image", r"c_0001.nii.gz is damaged"),
        ("truncated label", r"labelsTr/c.nii.gz is damaged"),
        ("unknown label", r"c.nii.gz holds the value 7; dataset.json knows \[0, 1, 2\]"),
        ("other size", r"c.nii.gz has shape \(4, 6, 6\), but its image"),
        ("two-dimensional", r"c_0001.nii.gz has shape \(6, 5\); .* needs 3D volumes"),
    ],
)
def test_each_fault_gives_one_line_and_no_folder(raw, tmp_path, how, message):
    damage(raw, how)
    with pytest.raises(UserError, match=message) as raised:
        hold_out(read_raw_dataset(raw), tmp_path / "out" / raw.name, num_training=7, num_test=1)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_folder_must_be_named_as_nnunet_wants_it(raw):
    renamed = raw.rename(raw.parent / "things")
    with pytest.raises(UserError, match="things is not named as nnU-Net wants it"):
        read_raw_dataset(renamed)
