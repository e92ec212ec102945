"""What may be compared, what is starred, and what became of an evaluation since it was made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.toy_runs import CASES, DATASET, make_dataset, make_run, reference, save

from nnunet_ext.cli.main import main
from nnunet_ext.evaluation import CONVENTIONS
from nnunet_ext.files import read_json, write_json
from nnunet_ext.reports.comparison import compare_runs
from nnunet_ext.reports.evaluation_file import ScoredCase
from nnunet_ext.reports.runs import Method, load_runs


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A data set of two folds and one finished run."""
    make_dataset(tmp_path)
    make_run(tmp_path, "nnUNetTrainerExt", 1)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path


def warnings(base: Path) -> str:
    runs = load_runs([str(base / "results" / DATASET / "*")], CONVENTIONS["default"])
    return "\n".join(compare_runs(runs).warnings)


def run_of(name: str, dice: np.ndarray) -> Method:
    """A method with one label and these values of Dice."""
    cases = {
        f"case_{i}": ScoredCase(
            f"case_{i}", None, {"1": "both"}, {"1": {"Dice": float(d), "n_ref": 5, "volume_ref_ml": 1.0}}, 10.0,
            Path("r"), None,
        )
        for i, d in enumerate(dice)
    }  # fmt: skip
    settings = {"nsd_tolerance_mm": 1.0, "ignore_label": None, "convention": "default", "conventions": {}}
    return Method(name, Path(name), {"1": "liver"}, cases, settings, (), {}, (), (), (), False)


def test_no_star_for_a_method_that_the_test_finds_worse():
    # 20 large wins, 80 small losses: the mean is for the new method, the signed ranks are against it.
    gain = np.concatenate([np.full(20, 0.26), np.full(80, -0.04)]) + np.linspace(0, 1e-4, 100)
    data = compare_runs([run_of("old", np.full(100, 0.6)), run_of("new", 0.6 + gain)])
    (pair,) = data.pairs
    assert pair.result.difference > 0 and pair.p_holm < 0.05 and pair.result.losses == 80
    assert [row.best for row in data.rows] == [False, False]
    data = compare_runs([run_of("old", np.full(100, 0.6)), run_of("new", 0.6 + abs(gain))])
    assert [row.best for row in data.rows] == [False, True]


def test_a_fold_that_finished_after_the_evaluation_is_noticed(base):
    folder = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    late = folder / "fold_1"
    late.rename(base / "late")
    text = warnings(base)  # evaluates what is there
    assert (
        "fold(s) 1 of the 2 in splits_final.json are not there and left out" in text
        and "not in the evaluation" not in text
    )
    late.mkdir()
    assert "fold 1 has no validation folder and is left out" in warnings(base)
    late.rmdir()
    (base / "late").rename(late)
    text = warnings(base)
    assert "4 prediction(s) of fold 1 are not in the evaluation (pat0_scan1, pat1_scan1, pat2_scan1, ...)" in text
    assert main(["evaluate", "--folds", str(folder), "-q"]) == 0
    text = warnings(base)
    assert "left out" not in text and "not in the evaluation" not in text


def test_splits_are_found_with_other_references(base, capsys):
    # The references of nnUNet_raw have no splits_final.json beside them.
    for index, case in enumerate(CASES):
        save(base / "raw" / DATASET / "labelsTr" / f"{case}.nii.gz", reference(index))
    folder = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    (folder / "fold_1").rename(base / "late")
    arguments = ["evaluate", "--folds", str(folder), "-r", str(base / "raw" / DATASET / "labelsTr"), "-q"]
    assert main(arguments) == 0
    assert "fold(s) 1 of the 2 in splits_final.json are not there" in capsys.readouterr().err


def test_other_references_of_the_same_size_are_refused(base, capsys):
    first = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    second = make_run(base, "nnUNetTrainerSegMamba", 1)
    assert main(["evaluate", "--folds", str(first), "-q"]) == 0
    moved = reference(0)[:, :, ::-1]  # as many voxels of each label, elsewhere
    save(base / "preprocessed" / DATASET / "gt_segmentations" / f"{CASES[0]}.nii.gz", moved)
    assert main(["evaluate", "--folds", str(second), "-q"]) == 0
    capsys.readouterr()
    report = ["report", str(first), str(second), "-o", str(base / "r.html"), "-q"]
    assert main(report) == 1
    assert f"different references: case {CASES[0]} has as many reference voxels per label, but in other places" in (
        capsys.readouterr().err
    )
    # An evaluation without a digest is compared by counts, and the report says so.
    summary = first / "evaluation" / "summary.json"
    content = read_json(summary)
    for entry in content["metric_per_case"]:
        del entry["reference_digest"]
    write_json(summary, content)
    assert main(report) == 0
    assert "known by their voxels per label alone" in capsys.readouterr().err


def test_a_reference_is_the_same_in_any_integer_type(base):
    folder = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    found = []
    for kind in (np.uint8, np.int32, np.float32):
        save(base / "preprocessed" / DATASET / "gt_segmentations" / f"{CASES[0]}.nii.gz", reference(0).astype(kind))
        assert main(["evaluate", "--folds", str(folder), "-q"]) == 0
        cases = json.loads((folder / "evaluation" / "summary.json").read_text())["metric_per_case"]
        found.append([case["reference_digest"] for case in cases])
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 8
