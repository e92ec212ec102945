"""What may be compared, what is starred, and what became of an evaluation since it was made."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.toy_runs import CASES, DATASET, make_dataset, make_run, reference, save

from nnunet_ext import models
from nnunet_ext.cli.main import main
from nnunet_ext.evaluation import CONVENTIONS
from nnunet_ext.files import read_json, write_json
from nnunet_ext.reports.comparison import compare_runs
from nnunet_ext.reports.evaluation_file import ScoredCase
from nnunet_ext.reports.facts import facts_about
from nnunet_ext.reports.figure_set import difference_plots
from nnunet_ext.reports.render import render
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


def test_no_star_for_a_method_that_missed_a_structure():
    better = run_of("new", np.linspace(0.8, 0.9, 30))
    runs = [run_of("old", np.linspace(0.5, 0.6, 30)), better]
    assert [row.best for row in compare_runs(runs).rows] == [False, True]
    case = better.cases["case_0"]
    better.cases["case_0"] = replace(case, status={"1": "missed"}, metrics={"1": {**case.metrics["1"], "Dice": 0.0}})
    data = compare_runs(runs)
    assert data.pairs[0].p_holm < 0.05 and [row.best for row in data.rows] == [False, False]


def test_below_ten_cases_nothing_is_tested_ranked_or_drawn_case_by_case():
    def made(count: int):
        return compare_runs([run_of("old", np.linspace(0.5, 0.6, count)), run_of("new", np.linspace(0.8, 0.9, count))])

    few, enough = made(9), made(10)
    (pair,) = few.pairs
    assert pair.result.difference == pytest.approx(0.3) and np.isnan(pair.p_holm) and np.isnan(pair.result.p_not_better)
    assert few.ranks == {} and not any(row.best for row in few.rows) and difference_plots(few) == ""
    page = render(few, "", None)
    assert "Below 10 cases nothing is tested." in page
    for absent in (
        "Wilcoxon",
        "P(not better)",
        "How stable",
        "Differences case by case",
        "units",
        "convention default",
    ):
        assert absent not in page, absent
    assert enough.pairs[0].p_holm < 0.05 and enough.ranks and "svg" in difference_plots(enough)
    page = render(enough, "", None)
    assert "Wilcoxon" in page and "probability that the first method is in truth not better" in page
    assert "units" not in page and "Dice ↑" in page


def test_what_reviewers_ask_first_stands_in_the_head(base):
    row = models.find("segmamba")
    tiny = {"network_class_name": row.network, "arch_kwargs": {**row.sizes["tiny"], "strides": 1}}
    make_run(base, "nnUNetTrainerSegMamba", 0, plans="any", architecture=tiny)
    own = {**tiny, "arch_kwargs": {**tiny["arch_kwargs"], "depths": [9]}}
    make_run(base, "nnUNetTrainerSegMamba", 0, plans="other", architecture=own)
    splits = base / "preprocessed" / DATASET / "splits_final.json"
    write_json(splits, [*read_json(splits), *[{"train": [], "val": []}] * 3])
    data = compare_runs(load_runs([str(base / "results" / DATASET / "*")], CONVENTIONS["default"]))
    assert data.methods == ("nnU-Net", "SegMamba tiny", "SegMamba own size")
    text = "trained 30 of nnU-Net's 250,000 iterations; folds 0 and 1 of 5; 1.2 M parameters"
    assert [facts_about(run) for run in data.runs] == [text, *[f"{text}, published 67.4 M"] * 2]
    page = render(data, "", None)
    assert f"SegMamba tiny</span>: {html.escape(text)}, published" in page
    record = base / "results" / DATASET / "nnUNetTrainerSegMamba__any__3d_fullres" / "fold_1" / "run.json"
    write_json(record, {**read_json(record), "settings": {"epochs": 100, "iterations": 25}})
    (changed,) = [run for run in load_runs([str(base / "results" / DATASET / "*any*")], CONVENTIONS["default"])]
    assert facts_about(changed).startswith("trained 30 to 2,500 of nnU-Net's 250,000 iterations")


def test_the_test_set_stands_beside_the_folds(base, capsys):
    folders = []
    for name, shift in (("a", 1), ("b", 0)):
        for index, case in enumerate(CASES[:3]):
            save(base / "labelsTs" / f"test_{case}.nii.gz", reference(index))
            save(base / name / f"test_{case}.nii.gz", np.roll(reference(index), shift, axis=2))
        folders.append(str(base / name))
    write_json(base / "labelsTs" / "dataset.json", {"labels": {"background": 0, "liver": 1, "tumour": 2}})
    second = make_run(base, "nnUNetTrainerSegMamba", 0)
    runs = [str(base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"), str(second)]
    report = ["report", *runs, "-o", str(base / "r.html"), "-q", "--test-set", *folders]
    assert main(report) == 1 and "run nnunet_ext evaluate -r LABELS -p" in capsys.readouterr().err
    for folder in folders:
        labels = ["-r", str(base / "labelsTs"), "--dataset-json", str(base / "labelsTs" / "dataset.json")]
        assert main(["evaluate", *labels, "-p", folder, "-q"]) == 0
    assert main(report) == 0
    page = (base / "r.html").read_text()
    assert 'id="test-main"' in page and "3 cases that no fold has seen" in page and "Test set: With 3 cases" in page
    rows = read_json(base / "r.json")["test_set"]["rows"]
    assert [(row["method"], row["n"]) for row in rows[:2]] == [("nnU-Net", 3), ("SegMamba", 3)]
    assert main(report[:-1]) == 1 and "names 1 folders for 2 runs" in capsys.readouterr().err


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
    assert "6 prediction(s) of fold 1 are not in the evaluation (pat0_scan1, pat1_scan1, pat2_scan1, ...)" in text
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
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 12
