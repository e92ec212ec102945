"""Cleaning: what each rule changes, that it says so first, and that the log leads back to the original."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers.blobs import CASES, write

from nnunet_ext.data.check import check_dataset
from nnunet_ext.data.clean import clean_dataset, expand_rules
from nnunet_ext.data.inspect_case import hash_voxels
from nnunet_ext.data.volumes import read_volume
from nnunet_ext.errors import UserError

IMAGE, LABEL = "imagesTr/a_01_0000.nii.gz", "labelsTr/a_01.nii.gz"


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def edit(path, function, affine=None):
    image = nibabel.load(path)
    write(path, function(np.asarray(image.dataobj).copy()), image.affine if affine is None else affine(image.affine))


def put(array, index, value):
    array[index] = value
    return array


def changes(log, rule, name="a_01"):
    return [c for case in log["cases"] if case["name"] == name for c in case["changes"] if c["rule"] == rule]


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_repairs_leave_nothing_to_find(clean, tmp_path):
    """Six defects: found before, gone after, originals untouched, and the log tells where each file came from."""
    edit(clean / IMAGE, lambda a: put(a.astype(np.float32), (3, 3, 3), np.nan))
    edit(clean / LABEL, lambda a: a.astype(np.float32))
    edit(clean / "labelsTr/b_02.nii.gz", lambda a: a, lambda m: put(m.copy(), (0, 3), m[0, 3] + 0.2))
    for name in ("imagesTr/c_01_0000.nii.gz", "labelsTr/c_01.nii.gz"):
        edit(
            clean / name,
            lambda a: a[::-1].copy(),
            lambda m: m @ np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        )
    sheared = nibabel.load(clean / "imagesTr/c_02_0000.nii.gz")
    sheared.set_sform(sheared.affine @ np.array([[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 1)
    nibabel.save(sheared, clean / "imagesTr/c_02_0000.nii.gz")
    path = clean / "dataset.json"
    path.write_text(path.read_text().replace('"right organ": 2', '"right organ": 5'))
    for case in CASES:
        edit(clean / f"labelsTr/{case}.nii.gz", lambda a: np.where(a == 2, np.asarray(5, a.dtype), a))
    before = check_dataset(clean)
    expected = {"not-finite", "label-type", "grid-differs-slightly", "orientation-differs", "simpleitk-refuses"}
    assert expected | {"labels-not-consecutive"} <= {f.check for f in before.findings}

    files = snapshot(clean)
    log = clean_dataset(clean, ["repairs"], tmp_path / "Dataset043_Clean")
    assert snapshot(clean) == files
    after = check_dataset(tmp_path / "Dataset043_Clean")
    assert after.findings == (), after.findings
    # Same anatomy at the same place: centroids in patient coordinates did not move.
    for old, new in zip(before.cases, after.cases, strict=True):
        assert np.allclose(old.label.centroid_mm[1], new.label.centroid_mm[1], atol=0.3)
        assert old.label.voxels[5] == new.label.voxels[2]
    assert json.loads((tmp_path / "Dataset043_Clean/cleaning.json").read_text())["cases"] == log["cases"]
    for case in log["cases"]:
        for record in case["files"]:
            assert hash_voxels(read_volume(record["source"]).array) == record["blake2b_before"]
            stored = hash_voxels(read_volume(tmp_path / "Dataset043_Clean" / record["file"]).array)
            assert stored == record.get("blake2b_after", record["blake2b_before"])
    (replaced,) = changes(log, "finite")
    assert replaced["replaced_voxels"] == 1 and replaced["by"] == np.nanmin(voxels(clean / IMAGE))


def test_shift_of_a_whole_label_is_not_hidden(clean):
    edit(clean / LABEL, lambda a: a, lambda m: put(m.copy(), (0, 3), m[0, 3] + 50))
    (found,) = changes(clean_dataset(clean, ["copy-header"]), "copy-header")
    assert found["moved_mm"] == pytest.approx(50) and not found["copied"]


def test_dry_by_default(clean):
    files = snapshot(clean.parent)
    log = clean_dataset(clean, ["sam-med3d"])
    assert snapshot(clean.parent) == files
    # Blobs of 9 mm are below 1 cm3, so these rules leave nothing; writing that would be no data set.
    assert all(case["dropped"] == "no target is left" for case in log["cases"])
    with pytest.raises(UserError, match="leave no training case"):
        clean_dataset(clean, ["sam-med3d"], clean.parent / "Dataset044_Empty")
    assert snapshot(clean.parent) == files


def test_mostly_background_and_components(clean):
    def scatter(labels):
        labels[labels == 2] = 0
        for i in range(6):  # six components of 2, 3, ... voxels
            labels[0 : i + 2, 2 * i, 0] = 2
        return labels

    edit(clean / LABEL, scatter)
    (found,) = changes(clean_dataset(clean, ["largest-components"]), "largest-components")
    assert found["label"] == 2 and found["voxels"] == [2]
    found = changes(clean_dataset(clean, ["drop-mostly-background"]), "drop-mostly-background")
    assert [change["label"] for change in found] == [2]  # 27 of 14400 voxels; the other organ fills more than 1 %


@pytest.mark.parametrize("flipped", [False, True])
def test_sides(clean, tmp_path, flipped):
    """Both organs as one label, in either orientation of the array; one case with the two halves grown together."""
    path = clean / "dataset.json"
    path.write_text(path.read_text().replace('"left organ": 1, "right organ": 2', '"kidneys": 1'))
    truth = {}
    for case in CASES:
        file = clean / f"labelsTr/{case}.nii.gz"
        truth[case] = voxels(file)
        edit(file, lambda a: (a > 0).astype(np.uint8))
    fused = truth["b_01"].copy()
    fused[8:22, 12, 10] = 1
    edit(clean / "labelsTr/b_01.nii.gz", lambda a: (fused > 0).astype(np.uint8))
    if flipped:
        mirror = np.array([[-1, 0, 0, 29], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        for file in sorted(clean.glob("*/*.nii.gz")):
            edit(file, lambda a: a[::-1].copy(), lambda m: m @ mirror)
    log = clean_dataset(clean, ["split-sides"], tmp_path / "Dataset045_Sides")
    assert log["labels_after"] == {"background": 0, "left kidneys": 1, "right kidneys": 2}
    for case in CASES:
        found = voxels(tmp_path / "Dataset045_Sides" / "labelsTr" / f"{case}.nii.gz")
        found = found[::-1] if flipped else found
        (change,) = changes(log, "split-sides", case)
        assert change["components_cut_at_the_midline"] == (case == "b_01")
        if case == "b_01":
            assert np.array_equal(found[truth[case] > 0], truth[case][truth[case] > 0])
        else:
            assert np.array_equal(found, truth[case])
    assert check_dataset(tmp_path / "Dataset045_Sides").errors == 0
    with pytest.raises(UserError, match="spleen is no label"):
        clean_dataset(clean, ["split-sides"], symmetric=["spleen"])


def test_unreadable_cases(clean):
    (clean / IMAGE).write_bytes((clean / IMAGE).read_bytes()[:50])
    with pytest.raises(UserError, match=r"a_01_0000.*drop-unreadable"):
        clean_dataset(clean, ["finite"])
    dropped = [case["name"] for case in clean_dataset(clean, ["drop-unreadable"])["cases"] if case["dropped"]]
    assert dropped == ["a_01"]


def test_bad_rules(clean, tmp_path):
    with pytest.raises(UserError, match="tidy is no rule; choose from sam-med3d"):
        expand_rules(["tidy"])
    with pytest.raises(UserError, match="exists already"):
        clean_dataset(clean, ["finite"], tmp_path)


def test_command(clean, tmp_path):
    edit(clean / IMAGE, lambda a: put(a.astype(np.float32), (3, 3, 3), np.inf))

    def command(*arguments):
        line = [sys.executable, "-m", "nnunet_ext", "data", "clean", str(clean), *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)

    new = tmp_path / "Dataset046_New"
    dry = command("--rules", "finite")
    assert dry.returncode == 0 and "finite: changes 1 of 6 cases" in dry.stdout and "nothing written" in dry.stderr
    assert command("--rules", "finite", "-o", new).returncode == 2 and not Path(new).exists()
    assert command("--rules", "finite", "-o", new, "--apply").returncode == 0
    assert np.isfinite(voxels(new / IMAGE)).all()
