"""`nnunet_ext report`: what it says, what it warns of, what it refuses."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.toy_runs import CASES, DATASET, make_dataset, make_run, reference, save, training_log

from nnunet_ext.cli.main import main
from nnunet_ext.evaluation import CONVENTIONS
from nnunet_ext.files import write_json
from nnunet_ext.reports.comparison import compare_runs
from nnunet_ext.reports.methods_text import methods_paragraph, references, why_withheld
from nnunet_ext.reports.render import render
from nnunet_ext.reports.resources import in_words, resources_of
from nnunet_ext.reports.runs import load_runs
from nnunet_ext.training_log import read_training_log

TUMOUR = "tumour <small>"


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A data set and two finished runs: nnU-Net one voxel off, SegMamba exact."""
    make_dataset(tmp_path)
    make_run(tmp_path, "nnUNetTrainerExt", 1)
    make_run(tmp_path, "nnUNetTrainerSegMamba", 0, plans="nnUNetPlansSegMamba")
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def compare(base, *patterns, **options):
    return compare_runs(
        load_runs(patterns or [str(base / "results" / DATASET / "*")], CONVENTIONS["default"]), **options
    )


def run(*arguments) -> int:
    return main(["report", *map(str, arguments)])


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_command_writes_a_page_that_needs_nothing_the_table_in_four_forms_and_a_picture(base):
    pattern = str(base / "results" / DATASET / "*")
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "report", pattern, "-o", "out/r.html", "-n1"],
        cwd=base, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "With 12 cases the intervals are too narrow" in done.stderr and done.stdout == ""
    out = base / "out"
    assert sorted(p.name for p in out.iterdir()) == ["r.csv", "r.html", "r.json", "r.md", "r.png", "r.tex"]
    page = (out / "r.html").read_text()
    assert len(page) < 3e6 and 'http-equiv="Content-Security-Policy"' in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?!data:|#)[a-z/]+", page)
    assert page.count("<svg") > 12 and page.count("data:image/webp;base64,") == 2 * 3 * 3
    assert "tumour &lt;small&gt;" in page and "tumour <small>" not in page
    for words in ("Wilcoxon", "ranks", "Holm", "95 % bootstrap interval", "★", "7.5", "3.00 GiB"):
        assert words in page, words
    content = strict_json(out / "r.json")
    assert [m["name"] for m in content["methods"]] == ["nnU-Net", "SegMamba"]
    summary = strict_json(base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres" / "evaluation" /
                          "summary.json")  # fmt: skip
    row = next(r for r in content["rows"] if (r["metric"], r["label"], r["method"]) == ("Dice", "liver", "nnU-Net"))
    assert row["mean"] == pytest.approx(summary["mean"]["1"]["Dice"]) and row["n"] == 12
    with open(out / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 2 and float(rows[0]["mean"]) == pytest.approx(row["mean"])
    assert "| Dice | liver | SegMamba | 12 | **1.000 ± 0.000** |" in (out / "r.md").read_text()
    assert r"\textbf{1.000 $\pm$ 0.000}" in (out / "r.tex").read_text()


def test_statistics_are_those_of_the_cases(base):
    data = compare(base)
    pair = next(p for p in data.pairs if p.label == "liver" and p.metric.key == "Dice")
    assert (pair.new, pair.old, pair.result.wins, pair.result.losses) == ("SegMamba", "nnU-Net", 12, 0)
    dice = [c.metrics["1"]["Dice"] for c in data.runs[0].cases.values()]
    assert pair.result.difference == pytest.approx(1 - np.mean(dice))
    # Twelve wins of twelve: the smallest two-sided p of the test; Holm over one pair and three labels.
    assert pair.p_holm == pytest.approx(3 * 2 / 2**12, rel=0.5) and data.ranks["Dice"].share[1].tolist() == [1, 0]
    mean = data.per_case["nnU-Net", "mean", "Dice"][CASES[0]]
    first = data.runs[0].cases[CASES[0]].metrics
    assert mean == pytest.approx((first["1"]["Dice"] + first["2"]["Dice"]) / 2)


def test_a_missed_structure_is_charged_and_a_false_alarm_counts_against_one_who_was_right(base):
    def edit(case, prediction):
        if case == CASES[0]:
            prediction[prediction == 2] = 1
        if case == CASES[7]:
            prediction[1, 1:3, 1:3] = 2

    make_run(base, "nnUNetTrainerUNETRPP", 0, edit=edit)
    data = compare(base)
    rows = {(r.method, r.label, r.metric.key): r for r in data.rows}
    own = rows["UNETR++", TUMOUR, "HD95"]
    assert (own.missed, own.false_alarms, own.absent, own.description.n) == (1, 1, 0, 12)
    assert data.per_case["UNETR++", TUMOUR, "HD95"][CASES[0]] == data.runs[0].cases[CASES[0]].diagonal_mm
    other = rows["SegMamba", TUMOUR, "Dice"]
    assert (other.absent, other.description.n) == (1, 11)
    pair = next(
        p for p in data.pairs
        if (p.new, p.old, p.label, p.metric.key) == ("UNETR++", "SegMamba", TUMOUR, "Dice")
    )  # fmt: skip
    assert (pair.result.n, pair.result.losses, pair.result.ties) == (12, 2, 10)


def test_patients_are_the_units_where_a_pattern_is_given(base):
    data = compare(base, patients=r"(pat\d+)_")
    assert len(data.units) == 6 and data.rows[0].description.n == 6
    cases = data.per_case["nnU-Net", "liver", "Dice"]
    assert data.in_units(cases)["pat0"] == pytest.approx((cases[CASES[0]] + cases[CASES[1]]) / 2)
    assert "12 cases of 6 patients" in methods_paragraph(data)


def test_methods_paragraph_says_what_the_runs_recorded(base):
    text = methods_paragraph(compare(base))
    for fact in (
        "12 cases of Dataset001_Toy were predicted in 2-fold cross-validation", "liver, tumour <small>",
        "SegMamba with 1.2 million parameters was trained as nnUNetTrainerSegMamba (nnUNetPlansSegMamba, 3d_fullres)",
        "3 epochs, 10 iterations each, batch size 2, patch size 8×16×16, in bf16, on Toy CPU", "nnunetv2 2.8.1",
        "revision abcdef012345", "larger of the two directed 95th percentiles, mm", "image diagonal", "Wilcoxon",
        "9999 resamples", "repeated trainings was not assessed",
    ):  # fmt: skip
        assert fact in text, fact


def edit_record(folder, fold, **facts):
    """Change a fold's run.json; a dictionary changes only the keys it has."""
    file = folder / f"fold_{fold}" / "run.json"
    record = json.loads(file.read_text())
    merged = {k: {**record.get(k, {}), **v} if isinstance(v, dict) else v for k, v in facts.items()}
    write_json(file, {**record, **merged})


def test_methods_paragraph_counts_the_folds_that_were_planned(base):
    splits = base / "preprocessed" / DATASET / "splits_final.json"
    write_json(splits, [*json.loads(splits.read_text()), *[{"train": [], "val": []}] * 3])
    assert (
        "12 cases of Dataset001_Toy were predicted, the validation cases of folds 0 and 1 of a 5-fold cross-valida"
        in (methods_paragraph(compare(base)))
    )
    splits.unlink()
    assert "the validation cases of folds 0 and 1 of a cross-validation, each" in methods_paragraph(compare(base))
    # Only the cases that are compared count.
    for folder in (base / "results" / DATASET).iterdir():
        (folder / "fold_1").rename(base / f"{folder.name}_1")
        shutil.rmtree(folder / "evaluation")
        break
    text = methods_paragraph(compare(base, common_cases=True))
    assert "6 cases of Dataset001_Toy were predicted, the validation cases of fold 0 of a cross-" in text


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"settings": {"epochs": 2, "iterations": 7}}, "different epochs (fold 0: 3, fold 1: 2)"),
        ({"settings": {"precision": "fp32"}}, "different precision (fold 0: bf16, fold 1: fp32)"),
        ({"settings": {"patch_size": [8, 8, 8]}}, "different patch size (fold 0: 8×16×16, fold 1: 8×8×8)"),
        ({"settings": {"learning_rate": 0.5}}, "different learning rate (fold 0: not recorded, fold 1: 0.5)"),
        ({"plans": "nnUNetPlansOther"}, "different plans (fold 0: not recorded, fold 1: nnUNetPlansOther)"),
        ({"software": {"torch": "2.7.0"}}, "different torch (fold 0: 2.6.0, fold 1: 2.7.0)"),
        ({"settings": {"epochs": 9}}, "fold 1 has trained 3 of its 9 epochs"),
    ],
)
def test_no_methods_paragraph_of_folds_that_were_not_trained_alike(base, facts, reason):
    assert why_withheld(compare(base)) == []
    folder = base / "results" / DATASET / "nnUNetTrainerSegMamba__nnUNetPlansSegMamba__3d_fullres"
    edit_record(folder, 1, **facts)
    data = compare(base)
    assert any(text.startswith("SegMamba: ") and reason in text for text in why_withheld(data))
    assert any(reason in text for text in data.warnings)
    page = render(data, "", None)
    assert "methods-text" not in page and "No text: " in page and html.escape(reason) in page


def test_a_training_that_was_resumed_with_other_settings_is_shown(base):
    folder = base / "results" / DATASET / "nnUNetTrainerSegMamba__nnUNetPlansSegMamba__3d_fullres"
    start = {"event": "start", "epoch": 0, "settings": {"epochs": 2, "precision": "bf16"}}
    same = {"event": "resume", "epoch": 1, "date": "2026-01-02T03:04:05+00:00", "settings": start["settings"]}
    edit_record(folder, 0, history=[start, same])
    data = compare(base)
    assert why_withheld(data) == [] and "2026-01-02T03:04:05+00:00" in render(data, "", None)
    edit_record(folder, 0, history=[start, same, {**same, "epoch": 2, "settings": {"epochs": 3, "precision": "bf16"}}])
    data = compare(base)
    assert why_withheld(data) == ["SegMamba: fold 0 was resumed at epoch 2 with other settings (epochs 2, then 3)"]
    assert "epochs 2, then 3</td>" in render(data, "", None)


def test_a_fold_that_left_no_record_withholds_the_paragraph_too(base):
    folder = base / "results" / DATASET / "nnUNetTrainerSegMamba__nnUNetPlansSegMamba__3d_fullres"
    (folder / "fold_1" / "run.json").unlink()
    (reason, *_) = why_withheld(compare(base))
    assert "SegMamba: its folds were trained with different" in reason and "fold 1: not recorded" in reason


def test_values_that_folds_do_not_share_are_ranges(base):
    folder = base / "results" / DATASET / "nnUNetTrainerSegMamba__nnUNetPlansSegMamba__3d_fullres"
    edit_record(folder, 1, settings={"epochs": 9, "patch_size": [8, 8, 8]}, hardware={"processor": "Other CPU"})
    own = in_words(resources_of(compare(base).runs[1]))
    assert (own["epochs"], own["patch"], own["device"]) == ("3 to 9", "8×8×8 and 8×16×16", "Toy CPU and Other CPU")
    warnings = "\n".join(compare(base).warnings)
    assert "epochs (nnU-Net 3, SegMamba 3 and 9)" in warnings


def test_a_network_named_by_its_path_is_described(base):
    folder = make_run(base, "nnUNetTrainerNetwork", 0, plans="nnUNetPlansSegResNet")
    described = {"path": "monai.networks.nets.SegResNet", "package": "monai 1.6.1", "called_with": "init_filters=16"}
    for file in folder.glob("fold_*/run.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "network": described}))
    data = compare(base)
    assert "SegResNet" in [run.name for run in data.runs]
    text = methods_paragraph(data)
    assert "The network is monai.networks.nets.SegResNet (monai 1.6.1), built with init_filters=16." in text
    assert text.count("The network is") == 1 and len(set(references(data.runs))) == len(references(data.runs)) == 2


def test_unfair_comparisons_are_pointed_out(base):
    def never(case, prediction):
        if CASES.index(case) % 2:
            prediction[prediction == 2] = 0

    other = make_run(base, "nnUNetTrainerUNETRPP", 1, epochs=5, edit=never)
    make_run(base, "nnUNetTrainer", 1, plans="other", record=False)
    # One case of another fold.
    moved = f"validation/{CASES[1]}.nii.gz"
    (other / "fold_1" / moved).rename(other / "fold_0" / moved)
    (base / "preprocessed" / DATASET / "splits_final.json").unlink()
    warnings = "\n".join(compare(base).warnings)
    assert "Folds differ: 1 of 12 cases are in another fold of UNETR++" in warnings
    assert "Schedules differ: epochs (" in warnings and "UNETR++ 5" in warnings
    assert "UNETR++ never found tumour <small> in fold 1" in warnings
    assert "unknown: no run.json" in warnings
    assert "cases without a prediction cannot be noticed" in warnings


def test_runs_under_unlike_circumstances_are_pointed_out(base):
    def record(folder, **facts):
        for file in folder.glob("fold_*/run.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))

    first = base / "results" / DATASET / "nnUNetTrainerSegMamba__nnUNetPlansSegMamba__3d_fullres"
    record(first, backends={"scan": "triton", "convolution": "plain"}, other_datasets=[], environment={})
    other = make_run(base, "nnUNetTrainerUNETRPP", 0)
    environment = {"NNUNET_EXT_SAMPLES": "3", "NNUNET_EXT_EPOCHS": "3", "nnUNet_raw": "/elsewhere"}
    record(other, backends={"scan": "chunked"}, other_datasets=["Dataset005_X"], environment=environment)
    warnings = compare(base).warnings
    assert "Backends differ, times are not comparable: scan (SegMamba triton, UNETR++ chunked)." in warnings
    assert "Further training data differ: data sets (SegMamba none, UNETR++ Dataset005_X)." in warnings
    assert "Environment variables differ: NNUNET_EXT_SAMPLES (SegMamba unset, UNETR++ 3)." in warnings


def test_a_prediction_newer_than_its_evaluation_is_noticed(base):
    folder = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    assert "newer" not in "\n".join(compare(base).warnings)
    summary = folder / "evaluation" / "summary.json"
    os.utime(summary, (summary.stat().st_atime, summary.stat().st_mtime - 100))
    assert "a prediction is newer than the evaluation" in "\n".join(compare(base).warnings)


def test_different_cases_are_refused_not_intersected(base, capsys):
    folder = make_run(base, "nnUNetTrainerUNETRPP", 0)
    (base / "preprocessed" / DATASET / "splits_final.json").unlink()
    (folder / "fold_0" / "validation" / f"{CASES[0]}.nii.gz").unlink()
    pattern = base / "results" / DATASET / "*"
    assert run(pattern, "-o", base / "r.html", "-q") == 1
    message = capsys.readouterr().err
    assert f"UNETR++ lacks 1 ({CASES[0]})" in message and "--common-cases to compare the 11" in message
    assert not (base / "r.html").exists()
    assert run(pattern, "-o", base / "r.html", "-q", "--common-cases") == 0
    assert "Only the 11 cases that all runs have are compared" in (base / "r.html").read_text()


def test_missing_predictions_are_decided_on_by_evaluate(base, capsys):
    folder = make_run(base, "nnUNetTrainerUNETRPP", 0)
    (folder / "fold_0" / "validation" / f"{CASES[0]}.nii.gz").unlink()
    assert run(base / "results" / DATASET / "*", "-o", base / "r.html", "-q") == 1
    assert f"({CASES[0]})" in (message := capsys.readouterr().err) and "nnunet_ext evaluate --allow-missing" in message
    assert main(["evaluate", "--folds", str(folder), "--allow-missing", "-q"]) == 0
    assert run(base / "results" / DATASET / "*", "-o", base / "r.html", "-q") == 0
    assert f"UNETR++: 1 case(s) without a prediction count as empty predictions ({CASES[0]})" in capsys.readouterr().err


def test_other_references_and_rules_are_refused(base, capsys):
    runs = base / "results" / DATASET
    first, second = (runs / n for n in ("nnUNetTrainerExt__nnUNetPlans__3d_fullres",
                                        "nnUNetTrainerSegMamba__nnUNetPlansSegMamba__3d_fullres"))  # fmt: skip
    assert main(["evaluate", "--folds", str(first), "-q"]) == 0
    assert main(["evaluate", "--folds", str(second), "-q", "--nsd-tolerance", "2"]) == 0
    assert run(first, second, "-o", base / "r.html", "-q") == 1
    assert "NSD tolerance 2.0" in capsys.readouterr().err
    changed = reference(0)
    changed[2] = 0
    save(base / "preprocessed" / DATASET / "gt_segmentations" / f"{CASES[0]}.nii.gz", changed)
    assert main(["evaluate", "--folds", str(second), "-q"]) == 0
    assert run(first, second, "-o", base / "r.html", "-q") == 1
    assert f"different references: case {CASES[0]} has" in capsys.readouterr().err


def test_another_convention_has_its_own_evaluation(base):
    assert run(base / "results" / DATASET / "*", "-o", base / "r.html", "-q", "--convention", "unetr++") == 0
    page = (base / "r.html").read_text()
    assert "HD95 [voxels]" in page and "NSD @" not in page and "convention unetr++" in page
    assert "by the convention unetr++ (github.com/Amshaker/unetr_plus_plus" in page
    assert (base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres" / "evaluation_unetr++").is_dir()


def test_folders_of_predictions_with_names_of_their_own(base, capsys):
    labels = base / "preprocessed" / DATASET / "gt_segmentations"
    write_json(labels.parent / "dataset.json", {"labels": {"background": 0, "liver": 1, "tumour": 2}})
    for index, case in enumerate(CASES):
        save(base / "p1" / f"{case}.nii.gz", reference(index))
        save(base / "p2" / f"{case}.nii.gz", np.roll(reference(index), 1, axis=1))
    assert run(f"new=way={base / 'p1'}", base / "p2", "-o", base / "r.html") == 1
    assert "is no folder" in capsys.readouterr().err
    assert run(f"new={base / 'p1'}", base / "p2", "-o", base / "r.html", "-q") == 1
    assert "name the references (-r)" in capsys.readouterr().err
    images = base / "raw" / DATASET / "imagesTr"
    options = ("-r", labels, "--images", images, "-o", base / "r.html", "-q")
    assert run(f"new={base / 'p1'}", base / "p2", *options) == 0
    page = (base / "r.html").read_text()
    assert page.count("data:image/webp") == 18 and 'id="training"' not in page and 'id="cost"' not in page
    assert [m["name"] for m in strict_json(base / "r.json")["methods"]] == ["new", "p2"]


def test_a_moved_result_folder_and_absent_images(base, monkeypatch, capsys):
    moved = base / "elsewhere" / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    source = base / "results" / DATASET / moved.name
    assert main(["evaluate", "--folds", str(source), "-q"]) == 0
    moved.parent.mkdir()
    source.rename(moved)
    assert run(moved, "-o", base / "r.html", "-q") == 0  # one method alone
    page = (base / "r.html").read_text()
    assert page.count("data:image/webp") == 9 and "Wilcoxon" not in page
    monkeypatch.delenv("nnUNet_raw")
    assert run(moved, "-o", base / "r.html", "-q") == 0
    assert "nnUNet_raw, which is not set; name the folder with --images" in capsys.readouterr().err
    assert "Pictures are missing" in (base / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["{runs}/*", "-o", "r.txt"], 2, "must end in .html"),
        (["{runs}/nothing*", "-o", "r.html"], 1, "matches none"),
        (["{runs}/*", "--patients", "(x)", "-o", "r.html"], 1, "does not contain the pattern"),
        (["{runs}/*", "--images", "nowhere", "-o", "r.html"], 1, "--images nowhere is not a folder"),
        (["{runs}/*", "{runs}/nnUNetTrainerExt__nnUNetPlans__3d_fullres", "-o", "r.html"], 1, "is named twice"),
        (["a={runs}/*", "-o", "r.html"], 1, "a name is for one"),
        (["a={runs}/nnUNetTrainerE*", "a={runs}/nnUNetTrainerS*", "-o", "r.html"], 1, "two runs are called 'a'"),
    ],
)
def test_bad_input_is_one_line(base, capsys, arguments, status, message):
    assert run(*(a.format(runs=base / "results" / DATASET) for a in arguments), "-q") == status
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_nnunets_own_summary_is_not_taken_for_an_evaluation(base, capsys):
    folder = base / "results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres"
    write_json(folder / "evaluation" / "summary.json", {"metric_per_case": [], "mean": {}})
    assert run(folder, "-o", base / "r.html", "-q") == 1
    assert "is not from nnunet_ext evaluate" in capsys.readouterr().err


def test_training_log_of_a_resumed_run_is_one_curve(tmp_path):
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(training_log(2))
    (tmp_path / "training_log_2026_1_2_10_00_00.txt").write_text(training_log(4, first=1))
    log = read_training_log(tmp_path)
    assert log.epochs == 4 and log.curves["train_loss"] == {0: 0.5, 1: 0.4, 2: 0.3, 3: 0.2}
    assert log.curves["pseudo_dice"][3] == pytest.approx(0.3)  # the class that is nan is left out
    assert log.seconds_per_case == (3.0, 2.0)
    assert read_training_log(tmp_path / "nowhere") is None


def test_names_tell_runs_apart(base):
    make_run(base, "nnUNetTrainerExt", 1, plans="other")
    make_run(base, "nnUNetTrainerFancy", 1)
    names = [r.name for r in load_runs([str(base / "results" / DATASET / "*")], CONVENTIONS["default"])]
    assert names == ["nnU-Net 3d_fullres nnUNetPlans", "nnU-Net 3d_fullres other", "Fancy", "SegMamba"]
