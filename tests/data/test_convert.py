"""Trees laid out like the public data sets become raw data that nnU-Net's reader and our check accept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from helpers.blobs import write
from scipy.ndimage import gaussian_filter

from nnunet_ext.data.check import check_dataset
from nnunet_ext.data.convert import convert
from nnunet_ext.data.layouts_public import AMOS, BTCV, SYNAPSE, SYNAPSE_VALIDATION
from nnunet_ext.errors import UserError

SHAPE = (20, 18, 16)
RNG = np.random.default_rng(0)


def image(path):
    array = gaussian_filter(RNG.normal(0, 500, size=SHAPE), 1).astype(np.int16)
    write(path, array, np.diag([-1.0, -1, 1, 1]))


def label(path, values):
    """One block of three voxels per value along x, in the given order."""
    array = np.zeros(SHAPE, np.uint8)
    for position, value in enumerate(values):
        array[position, 4:7, 5] = value
    write(path, array, np.diag([-1.0, -1, 1, 1]))


def blocks(path):
    return np.asarray(nibabel.load(path).dataobj)[:, 5, 5].tolist()


def errors(folder):
    """What the check finds, but for the label maps, which are all alike here."""
    found = [f for f in check_dataset(folder).findings if f.severity == "error"]
    return [f for f in found if f.check != "duplicate-label"]


def brats(folder, year):
    parts, sep, last = (
        (("t1", "t1ce", "t2", "flair"), "_", 4) if year == 2021 else (("t1n", "t1c", "t2w", "t2f"), "-", 3)
    )
    cases = [f"BraTS2021_{i:05d}" for i in range(6)]
    if year == 2023:
        cases = [f"BraTS-GLI-{i:05d}-{t:03d}" for i in range(6) for t in range(1 + i % 2)]
    for case in cases:
        for part in parts:
            image(folder / case / f"{case}{sep}{part}.nii.gz")
        label(folder / case / f"{case}{sep}seg.nii.gz", (1, 2, last))
    return cases, parts, sep


@pytest.mark.parametrize("year", [2021, 2023])
def test_brats(tmp_path, year):
    cases, parts, sep = brats(tmp_path / "in", year)
    folder = convert(f"brats{year}", tmp_path / "in", tmp_path / "Dataset137_BraTS")
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": [3]}
    assert description["regions_class_order"] == [1, 2, 3] and description["numTraining"] == len(cases)
    assert list(description["channel_names"].values()) == ["T1", "T1ce", "T2", "FLAIR"]
    # Necrosis, oedema, enhancing: 2, 1, 3. WT holds all of them, TC all but oedema.
    assert blocks(folder / f"labelsTr/{cases[0]}.nii.gz")[:4] == [2, 1, 3, 0]
    for channel, part in enumerate(parts):
        written = (folder / f"imagesTr/{cases[0]}_{channel:04d}.nii.gz").read_bytes()
        assert written == (tmp_path / "in" / cases[0] / f"{cases[0]}{sep}{part}.nii.gz").read_bytes()
    assert errors(folder) == []
    if year == 2023:
        folds = json.loads((folder / "splits_final.json").read_text())
        assert sorted(name for fold in folds for name in fold["val"]) == cases
        for fold in folds:
            assert not {name[:15] for name in fold["val"]} & {name[:15] for name in fold["train"]}


def test_brats_with_a_foreign_label(tmp_path):
    cases, _, _ = brats(tmp_path / "in", 2023)
    label(tmp_path / "in" / cases[2] / f"{cases[2]}-seg.nii.gz", (1, 2, 4))
    with pytest.raises(UserError, match=f"{cases[2]}-seg.* the value 4"):
        convert("brats2023", tmp_path / "in", tmp_path / "Dataset137_BraTS")
    assert not (tmp_path / "Dataset137_BraTS").exists()


def abdomen(folder):
    numbers = [*range(1, 11), *range(21, 41)]
    for number in numbers:
        image(folder / f"img/img{number:04d}.nii.gz")
        label(folder / f"label/label{number:04d}.nii.gz", range(1, 14))
    return numbers


def test_synapse_and_btcv(tmp_path):
    abdomen(tmp_path / "RawData/Training")
    image(tmp_path / "RawData/Testing/img/img0061.nii.gz")
    eight = convert("synapse", tmp_path, tmp_path / "Dataset008_Synapse")
    names = json.loads((eight / "dataset.json").read_text())["labels"]
    assert list(names) == ["background", *SYNAPSE] and list(names.values()) == list(range(9))
    found = blocks(eight / "labelsTr/img0001.nii.gz")
    assert found[:13] == [names[organ] if organ in SYNAPSE else 0 for organ in BTCV]
    (fold,) = json.loads((eight / "splits_final.json").read_text())
    assert len(fold["train"]) == 18 and [name[3:] for name in fold["val"]] == list(SYNAPSE_VALIDATION)
    assert [path.name for path in (eight / "imagesTs").iterdir()] == ["img0061_0000.nii.gz"]
    thirteen = convert("btcv", tmp_path, tmp_path / "Dataset013_BTCV", link=True)
    assert blocks(thirteen / "labelsTr/img0001.nii.gz")[:13] == list(range(1, 14))
    assert (thirteen / "imagesTr/img0001_0000.nii.gz").resolve() == tmp_path / "RawData/Training/img/img0001.nii.gz"
    (tmp_path / "RawData/Training/label/label0007.nii.gz").unlink()
    with pytest.raises(UserError, match=r"label0007\.nii\.gz is missing"):
        convert("btcv", tmp_path, tmp_path / "Dataset014_BTCV")


def acdc(folder):
    for part, numbers in (("training", range(1, 7)), ("testing", range(101, 103))):
        for number in numbers:
            base = folder / part / f"patient{number:03d}"
            for frame in (1, 8 + number % 5):
                image(base / f"{base.name}_frame{frame:02d}.nii.gz")
                label(base / f"{base.name}_frame{frame:02d}_gt.nii.gz", (1, 2, 3))
            write(base / f"{base.name}_4d.nii.gz", np.zeros((*SHAPE, 2), np.int16), np.eye(4))
            (base / "Info.cfg").write_text("ED: 1\n")


def test_acdc_command_keeps_patients_together(tmp_path):
    acdc(tmp_path / "database")
    target, preprocessed = tmp_path / "Dataset027_ACDC", tmp_path / "preprocessed"
    line = [sys.executable, "-m", "nnunet_ext", "data", "convert", "acdc", str(tmp_path / "database"), str(target)]
    environment = {**os.environ, "nnUNet_preprocessed": str(preprocessed)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == str(target), done.stderr
    assert len(list((target / "imagesTr").iterdir())) == 12 and len(list((target / "labelsTs").iterdir())) == 4
    folds = json.loads((preprocessed / "Dataset027_ACDC/splits_final.json").read_text())
    assert len(folds) == 5 and sum(len(fold["val"]) for fold in folds) == 12
    for fold in folds:
        assert not {name[:10] for name in fold["val"]} & {name[:10] for name in fold["train"]}
    assert errors(target) == []
    again = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert again.returncode == 1 and "exists already" in again.stderr


def test_amos(tmp_path):
    for part, numbers in (("Tr", (1, 4, 507)), ("Va", (8, 510)), ("Ts", (2, 540))):
        for number in numbers:
            image(tmp_path / f"images{part}/amos_{number:04d}.nii.gz")
            if part != "Ts":
                label(tmp_path / f"labels{part}/amos_{number:04d}.nii.gz", range(1, 16))
    expected = {"amos-ct": [1, 4, 8], "amos-mr": [507, 510], "amos": [1, 4, 8, 507, 510]}
    for number, (layout, cases) in enumerate(expected.items(), 218):
        folder = convert(layout, tmp_path, tmp_path / f"Dataset{number}_AMOS")
        found = sorted(path.name for path in (folder / "labelsTr").iterdir())
        assert found == [f"amos_{case:04d}.nii.gz" for case in cases]
        description = json.loads((folder / "dataset.json").read_text())
        assert list(description["labels"]) == ["background", *AMOS]
        assert (description["channel_names"]["0"] == "CT") == (layout == "amos-ct")


@pytest.mark.parametrize("layout", ["brats2021", "brats2023", "synapse", "btcv", "acdc", "amos"])
def test_wrong_folder(tmp_path, layout):
    with pytest.raises(UserError, match="no labelled case; expected files such as"):
        convert(layout, tmp_path, tmp_path / "Dataset001_X")
    with pytest.raises(UserError, match="not named as nnU-Net wants it"):
        convert(layout, tmp_path, tmp_path / "X")
    assert not list(tmp_path.iterdir())
