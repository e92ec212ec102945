"""summary.json, the tables and the command line."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from helpers.toy_label_maps import LABELS, case, save
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation import evaluate_folder, evaluate_folds, summarise, write_results
from nnunet_ext.files import write_json


def run(*arguments) -> int:
    return main(["evaluate", *map(str, arguments)])


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def uneven(dataset):
    """case_1 misses the tumour; case_2 has none but a false alarm; case_3 has none, rightly."""
    for index, edits in {
        1: (("predictions", 1),),
        2: (("references", 1),),
        3: (("references", 1), ("predictions", 1)),
    }.items():
        for folder, value in edits:
            array = case(index)
            array[array == 2] = value
            save(dataset / folder / f"case_{index}.nii.gz", array)
    return dataset


def test_missed_structures_and_false_alarms_are_counted_and_charged(uneven):
    evaluation = evaluate_folder(uneven / "references", uneven / "predictions")
    summary = summarise(evaluation)
    assert summary["counts"]["2"] == {"n_cases": 5, "n_both_empty": 1, "missed": 1, "false_alarms": 1}
    dice = [c.metrics[2]["Dice"] for c in evaluation.cases]
    assert dice[1] == dice[2] == 0 and math.isnan(dice[3])
    assert summary["mean"]["2"]["Dice"] == pytest.approx((dice[0] + dice[4]) / 4)
    hd95 = [c.metrics[2]["HD95"] for c in evaluation.cases]
    assert summary["mean"]["2"]["HD95"] == pytest.approx((hd95[0] + hd95[4]) / 2)
    diagonals = [np.linalg.norm(np.multiply(case(i).shape, (2.5, 0.8, 0.7))) for i in (1, 2)]
    assert summary["mean_penalised"]["2"]["HD95"] == pytest.approx((hd95[0] + hd95[4] + sum(diagonals)) / 4)
    for name in ("mean", "mean_penalised"):
        expected = np.mean([summary[name][key]["HD95"] for key in ("1", "2")])
        assert summary["foreground_" + name]["HD95"] == pytest.approx(expected)


def test_files_say_everything(uneven):
    evaluation = evaluate_folder(uneven / "references", uneven / "predictions")
    write_results(evaluation, uneven / "out")
    summary = strict_json((uneven / "out" / "summary.json").read_text())
    entry = summary["metric_per_case"][1]
    assert entry["status"] == {"1": "both", "2": "missed"} and entry["metrics"]["2"]["HD95"] is None
    per_case = rows(uneven / "out" / "per_case.csv")
    values = {(r["case"], r["name"], r["metric"]): r["value"] for r in per_case}
    assert values["case_1", "tumour", "HD95"] == "inf" and values["case_3", "tumour", "HD95"] == "nan"
    assert float(values["case_0", "liver", "Dice"]) == evaluation.cases[0].metrics[1]["Dice"]
    tumour = {r["metric"]: r for r in rows(uneven / "out" / "per_label.csv") if r["name"] == "tumour"}
    assert (tumour["HD95"]["missed"], tumour["HD95"]["false_alarms"], tumour["HD95"]["n"]) == ("1", "1", "2")
    assert tumour["Dice"]["n"] == "4"
    assert sorted(p.name for p in (uneven / "out").iterdir()) == ["per_case.csv", "per_label.csv", "summary.json"]


def test_nnunet_reads_the_summary_and_has_the_same_numbers(uneven):
    targets = [1, 2, (1, 2)]
    write_results(evaluate_folder(uneven / "references", uneven / "predictions", targets), uneven / "out")
    ours = load_summary_json(str(uneven / "out" / "summary.json"))
    theirs = [
        compute_metrics(c["reference_file"], c["prediction_file"], SimpleITKIO(), targets)["metrics"]
        for c in ours["metric_per_case"]
    ]
    for mine, expected in zip(ours["metric_per_case"], theirs, strict=True):
        for target in targets:
            for name, value in expected[target].items():
                found = mine["metrics"][target][name]
                assert found == pytest.approx(value) or (found is None and np.isnan(value))
    assert ours["mean"][(1, 2)]["Dice"] == pytest.approx(np.nanmean([c[(1, 2)]["Dice"] for c in theirs]))


def test_a_label_that_occurs_nowhere_leaves_the_foreground_mean_defined(dataset):
    write_json(dataset / "dataset.json", {"labels": LABELS | {"cyst": 3}})
    summary = summarise(evaluate_folder(dataset / "references", dataset / "predictions"))
    assert math.isnan(summary["mean"]["3"]["Dice"])
    assert summary["foreground_mean"]["Dice"] == pytest.approx(
        np.mean([summary["mean"][key]["Dice"] for key in ("1", "2")])
    )


def test_command_prints_the_table_and_leaves_nnunets_summary_alone(dataset):
    (dataset / "predictions" / "summary.json").write_text("nnU-Net's")
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "evaluate", "-r", "references", "-p", "predictions"],
        cwd=dataset, capture_output=True, text=True, check=True,
    )  # fmt: skip
    header, liver, tumour, *_ = done.stdout.splitlines()
    assert "HD95 mm" in header and "NSD@1mm" in header and liver.split()[:2] == ["1", "liver"]
    assert tumour.split()[:5] == ["2", "tumour", "5", "0", "0"]
    assert (dataset / "predictions" / "evaluation" / "summary.json").is_file()
    assert (dataset / "predictions" / "summary.json").read_text() == "nnU-Net's"
    assert run("-r", dataset / "references", "-p", dataset / "predictions", "-q") == 0  # again, over its own results


def test_command_refuses_to_overwrite_nnunets_summary(dataset, capsys):
    (dataset / "predictions" / "summary.json").write_text('{"foreground_mean": {}}')
    predictions = dataset / "predictions"
    assert run("-r", dataset / "references", "-p", predictions, "-o", predictions) == 1
    assert "summary.json is not from nnunet_ext evaluate and is kept" in capsys.readouterr().err


def test_command_finishes_the_other_cases_and_fails(dataset, capsys):
    bad = dataset / "predictions" / "case_2.nii.gz"
    bad.write_bytes(bad.read_bytes()[:-9])
    assert run("-r", dataset / "references", "-p", dataset / "predictions", "--json") == 1
    printed = capsys.readouterr()
    summary = strict_json(printed.out)
    assert len(summary["metric_per_case"]) == 4
    assert [f["case"] for f in summary["failed"]] == ["case_2"]
    assert "case_2 left out" in printed.err and str(bad) in printed.err


def test_command_lists_missing_predictions(dataset, capsys):
    (dataset / "predictions" / "case_0.nii.gz").unlink()
    arguments = ("-r", dataset / "references", "-p", dataset / "predictions")
    assert run(*arguments) == 1
    assert not (dataset / "predictions" / "evaluation").exists()
    assert run(*arguments, "--allow-missing") == 0
    assert "counted as empty, no prediction: case_0" in capsys.readouterr().err


def test_command_says_what_to_pass_without_labels(dataset, capsys):
    (dataset / "dataset.json").unlink()
    arguments = ("-r", dataset / "references", "-p", dataset / "predictions", "-q")
    assert run(*arguments) == 1
    assert "--dataset-json or give the labels with --labels 1 2 3" in capsys.readouterr().err
    assert run(*arguments, "--labels", "2", "1,2") == 0
    summary = json.loads((dataset / "predictions" / "evaluation" / "summary.json").read_text())
    assert list(summary["mean"]) == ["2", "(1, 2)"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["-p", "x"], ["-p", "x", "--folds", "y"], ["-p", "x", "-r", "y", "--ignore-label", "3"], ["--labels", "one"]],
)
def test_wrong_usage_is_status_2(arguments):
    try:
        status = run(*arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2


def test_output_that_cannot_be_written_is_refused_before_the_work(dataset, capsys):
    (dataset / "file").write_text("")
    assert run("-r", dataset / "references", "-p", dataset / "predictions", "-o", dataset / "file" / "x") == 1
    assert "choose a folder you may write to with -o" in capsys.readouterr().err


@pytest.fixture
def folds(dataset, monkeypatch):
    """An nnU-Net result folder with two finished folds and one that still trains."""
    result = dataset / "results" / "Dataset001_Toy" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    references = dataset / "preprocessed" / "Dataset001_Toy" / "gt_segmentations"
    for index, fold in enumerate((0, 0, 1, 1, 2)):
        save(references / f"case_{index}.nii.gz", case(index))
        if fold < 2:
            save(result / f"fold_{fold}" / "validation" / f"case_{index}.nii.gz", np.roll(case(index), 1, axis=2))
    (result / "fold_2").mkdir()
    (result / "fold_0" / "validation" / "summary.json").write_text("{}")
    write_json(result / "dataset.json", {"labels": LABELS, "file_ending": ".nii.gz"})
    splits = [{"train": [], "val": v} for v in (["case_0", "case_1"], ["case_2", "case_3"], ["case_4"])]
    write_json(references.parent / "splits_final.json", splits)
    monkeypatch.setenv("nnUNet_preprocessed", str(dataset / "preprocessed"))
    return result


def test_folds_are_pooled(folds, capsys):
    assert run("--folds", folds) == 0
    per_case = rows(folds / "evaluation" / "per_case.csv")
    assert {(r["case"], r["fold"]) for r in per_case} == {(f"case_{i}", str(i // 2)) for i in range(4)}
    assert "note: fold 2 has no validation folder and is left out" in capsys.readouterr().err


def test_case_missing_from_its_fold_is_noticed(folds):
    (folds / "fold_1" / "validation" / "case_3.nii.gz").unlink()
    with pytest.raises(UserError, match=r"\(case_3\) .*fold_1/validation"):
        evaluate_folds(folds)
    assert evaluate_folds(folds, allow_missing=True).missing == ("case_3",)


def test_case_in_two_folds_is_refused(folds, dataset):
    save(folds / "fold_1" / "validation" / "case_0.nii.gz", case(0))
    (dataset / "preprocessed" / "Dataset001_Toy" / "splits_final.json").unlink()
    with pytest.raises(UserError, match="case_0 is in folds 0 and 1"):
        evaluate_folds(folds)


def test_folds_without_references_say_so(folds, monkeypatch):
    monkeypatch.delenv("nnUNet_preprocessed")
    with pytest.raises(UserError, match="set nnUNet_preprocessed or name the folder with -r"):
        evaluate_folds(folds)
