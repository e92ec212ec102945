"""`nnunet_ext slurm`, as a user runs it: what it refuses, what it shows, what it writes and what it tells of a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.pipelines import DATASET, FULL, TRAIN, slurm

from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.files import write_json, write_text
from nnunet_ext.slurm.compose import compose
from nnunet_ext.slurm.job import Resources
from nnunet_ext.slurm.outcome import outcome
from nnunet_ext.slurm.pipeline import predictions
from nnunet_ext.slurm.progress import progress_line, read_progress


def test_writes_and_shows(base):
    done = slurm(base, *TRAIN, "--at-once", "2", "--short-training", NNUNET_EXT_EPOCHS="50", nnUNet_compile="f")
    assert done.returncode == 0, done.stderr
    assert "6_report    Compare the runs on one page.  [4 CPUs, 16 GiB, 2:00 h]" in done.stdout
    assert "2_train     Train Dataset007_Toy 3d_fullres" in done.stdout and "[5 x 12 CPUs, 1 GPU" in done.stdout
    assert "nothing submitted" in done.stderr and done.stderr.strip().endswith("submit.sh")
    folder = base / f"slurm_{DATASET}_3d_fullres"
    assert {path.name for path in folder.iterdir()} == {
        "pipeline.json", "submit.sh", "logs", "done", "1_prepare.sh", "2_train.sh", "3_select.sh", "4_predict.sh",
        "5_evaluate.sh", "6_report.sh",
    }  # fmt: skip
    train = (folder / "2_train.sh").read_text()
    assert "export NNUNET_EXT_EPOCHS=50\n" in train and "export nnUNet_compile=f\n" in train
    assert "#SBATCH --array=0-4%2\n" in train


def test_what_this_shell_has_set_is_listed_and_a_short_training_is_asked_about(base):
    trial = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_PRECISION": "bf16", "nnUNet_n_proc_DA": "1"}
    done = slurm(base, *TRAIN, **trial)
    assert done.returncode == 2 and not (base / f"slurm_{DATASET}_3d_fullres").exists()
    *listed, refusal = done.stderr.splitlines()
    assert listed == [
        "set in this shell, and so in the scripts:", "  NNUNET_EXT_EPOCHS=1  (nnU-Net's own: 1000)",
        "  NNUNET_EXT_PRECISION=bf16", "  nnUNet_n_proc_DA=1  (instead of what follows from 12 CPUs)",
    ]  # fmt: skip
    assert "NNUNET_EXT_EPOCHS=1 is set in this shell and makes every training short; unset it" in refusal
    assert slurm(base, *TRAIN, "--dry-run", **trial).returncode == 0, "nothing is written"
    longer = slurm(base, *TRAIN, NNUNET_EXT_EPOCHS="2000")
    assert longer.returncode == 0 and "  NNUNET_EXT_EPOCHS=2000" in longer.stderr
    assert "set in this shell" not in slurm(base, *TRAIN, "-o", "other").stderr
    misspelt = slurm(base, *TRAIN, "--dry-run", NNUNET_EXT_EPOCS="5").stderr
    assert "NNUNET_EXT_EPOCS=5  (has no effect: did you mean NNUNET_EXT_EPOCHS?)" in misspelt


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1)])
def test_the_question_about_a_short_training(base, monkeypatch, capsys, answer, status):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(base / name))
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "5")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda: answer)
    assert main(["slurm", *TRAIN, "-o", str(base / "jobs")]) == status
    assert "NNUNET_EXT_EPOCHS=5: this makes every training short. Write it" in capsys.readouterr().err
    assert (base / "jobs").exists() == (status == 0)


def finish(base: Path, fold: int, record: dict | None) -> None:
    """A finished fold of nnUNetTrainerExt, with this run.json."""
    folder = base / "nnUNet_results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres" / f"fold_{fold}"
    (folder / "validation").mkdir(parents=True, exist_ok=True)
    (folder / "validation" / "summary.json").write_text("{}")
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("how", [("--local", "--gpus", "0"), ()])
def test_folds_that_were_finished_by_another_schedule_are_refused(base, how):
    trial = {"settings": {"epochs": 1, "iterations": 250}, "environment": {"NNUNET_EXT_EPOCHS": "1"}}
    finish(base, 0, trial)
    done = slurm(base, *TRAIN, *how)
    assert done.returncode == 1 and not (base / f"slurm_{DATASET}_3d_fullres").exists()
    (line,) = done.stderr.splitlines()
    assert "nnUNetTrainerExt nnUNetPlans fold 0 with NNUNET_EXT_EPOCHS 1 (now unset)" in line
    assert "fold_0), or keep what is there with --accept-finished" in line


@pytest.mark.parametrize(
    ("record", "variables", "difference"),
    [
        ({"settings": {"epochs": 1}}, {"NNUNET_EXT_EPOCHS": "2"}, "NNUNET_EXT_EPOCHS 1 (now 2)"),
        ({"settings": {"precision": "fp32"}, "environment": {}}, {"NNUNET_EXT_PRECISION": "bf16"}, "fp32 (now bf16)"),
        ({"environment": {"NNUNET_EXT_EPISODE_DATASETS": "5"}}, {}, "NNUNET_EXT_EPISODE_DATASETS 5 (now unset)"),
        ({"settings": {"batch_size": 3}}, {}, "batch size 3 (the plans now say 2)"),
        ({"settings": {"learning_rate": 0.01}, "environment": {}}, {"NNUNET_EXT_LEARNING_RATE": "1e-2"}, None),
        ({"settings": {"epochs": 1000}, "environment": {}}, {"NNUNET_EXT_EPOCHS": "1000"}, None),
        ({"settings": {"epochs": 7}}, {}, None),  # a record from before variables were recorded
        ({"settings": 3, "environment": []}, {}, None),
        (None, {"NNUNET_EXT_EPOCHS": "2"}, None),  # nnU-Net's own trainers leave none
    ],
)
def test_what_is_another_schedule(base, monkeypatch, record, variables, difference):
    finish(base, 1, record)
    plans = base / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"
    configuration = {"data_identifier": "nnUNetPlans_3d_fullres", "batch_size": 2, "patch_size": [8, 8, 8]}
    plans.write_text(json.dumps({"configurations": {"3d_fullres": configuration}}))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(base / name))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    arguments = (DATASET, ["nnUNetTrainerExt"], "3d_fullres", ["nnUNetPlans"], ["0", "1"], Resources())
    if difference is None:
        compose(*arguments)
    else:
        with pytest.raises(UserError, match=re.escape(difference)):
            compose(*arguments)
        assert compose(*arguments, accept_finished=True).accept_finished


def test_local_run_without_a_shell_writes_nothing(base):
    done = slurm(base, *TRAIN, "--local", "--gpus", "0", PATH=str(base))
    assert done.returncode == 1 and "bash is not on PATH" in done.stderr and "Traceback" not in done.stderr
    assert not (base / f"slurm_{DATASET}_3d_fullres").exists()


def test_dry_run_writes_nothing(base):
    done = slurm(base, *TRAIN, "--dry-run")
    assert done.returncode == 0 and "#SBATCH --signal=B:USR1@300\n" in done.stdout
    assert not (base / f"slurm_{DATASET}_3d_fullres").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-d", "8", *TRAIN[2:]), r"expected one folder Dataset008_\* in .*_raw or .*_preprocessed, found none"),
        (("-d", "7", "-tr", "nnUNetTrainerExtt", "-c", "3d_fullres"), "did you mean nnUNetTrainerExt"),
        (("-d", "7", "-tr", "nnUNetTrainerInteractive", "-c", "3d_fullres"), "segments nothing by itself"),
        ((*TRAIN[:-1], "4d"), "-c 4d is not in nnUNetPlans.json, which has 3d_fullres"),
        ((*TRAIN[:-1], "3d_cascade_fullres"), "predicts in two stages"),
        ((*TRAIN, "-p", "nnUNetPlansOther"), "nnUNetPlansOther.json does not exist"),
        ((*TRAIN, "-p", "nnUNetPlans", "nnUNetPlansSegMambaTiny"), "-p has 2 plans for 1 trainers"),
        ((*TRAIN, "-f", "0", "one"), "-f one is no fold"),
        ((*TRAIN, "--time", "0:10", "--gpus", "0"), "--time 0:10 is less than a minute"),
        ((*TRAIN, "--time", "5"), "--warn 300 is more than half of the time limit"),
        ((*TRAIN, "--gpus", "1", "--local"), "--gpus 1, but 0 can be seen here"),
        ((*TRAIN, "-i", "nowhere"), "nowhere is no folder"),
        (("status", "nowhere"), "nowhere/pipeline.json does not exist"),
    ],
)
def test_refusals_are_one_line(base, words, message):
    done = slurm(base, *words, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("nnunet_ext slurm: ")
    assert re.search(message, line), line


def test_wrong_usage():
    done = slurm(Path.cwd(), "-d", "7")
    assert done.returncode == 2 and "-tr and -c are needed" in done.stderr


LOG = """
2026-01-31 12:00:00.100000: Epoch {epoch}
2026-01-31 12:00:09.000000: train_loss {loss}
2026-01-31 12:00:09.000002: Pseudo dice [np.float32(0.8), np.float32({dice}), np.float32(nan)]
2026-01-31 12:00:10.000003: Epoch time: {seconds} s
"""


def make_fold(base: Path, fold: int, finished: bool = False) -> Path:
    """A run folder after epochs 0 to 3, an interruption that lost all but the first, and epochs 1 and 2 again."""
    folder = base / "nnUNet_results" / DATASET / "nnUNetTrainerExt__nnUNetPlans__3d_fullres" / f"fold_{fold}"
    (folder / "validation").mkdir(parents=True)
    (folder / "debug.json").write_text('{"num_epochs": "10"}')
    first = "".join(LOG.format(epoch=e, loss=-0.1 * e, dice=0.2, seconds=10) for e in range(4))
    again = "".join(LOG.format(epoch=e, loss=-0.2 * e, dice=0.4, seconds=20) for e in (1, 2))
    # Hours are not padded in nnU-Net's names, so sorted as text the second would come first.
    (folder / "training_log_2026_1_31_9_00_00.txt").write_text(first)
    (folder / "training_log_2026_1_31_12_00_00.txt").write_text(again + "\n2026-01-31 12:00:10.1: Epoch 3\n")
    if finished:
        (folder / "checkpoint_final.pth").touch()
        (folder / "validation" / "summary.json").write_text("{}")
    return folder


def test_progress_counts_a_repeated_epoch_once(base):
    progress = read_progress(make_fold(base, 0))
    assert (progress.epochs, progress.total, progress.finished) == (3, 10, False)
    assert progress.losses == (0.0, -0.2, -0.4)
    assert progress.dice == (0.5, pytest.approx(0.6), pytest.approx(0.6))
    assert progress.ema_dice == pytest.approx(0.81 * 0.5 + (0.09 + 0.1) * 0.6)
    assert progress.seconds_left == pytest.approx(7 * 50 / 3)


def test_a_fold_that_found_nothing_says_that_it_learnt_nothing(base):
    slurm(base, *TRAIN, "--scheduler", "lsf", "-o", "jobs")
    folder = make_fold(base, 0, finished=True)
    for log in folder.glob("training_log_*"):
        log.write_text(re.sub(r"np\.float32\(0\.\d+\)", "np.float32(0.0004)", log.read_text()))
    assert progress_line(read_progress(folder)) == "finished, epoch 3/10, EMA Dice 0.000: learnt nothing"
    assert "0.000, learnt nothing" in slurm(base, "status", "jobs").stdout
    (folder / "checkpoint_final.pth").unlink()
    (folder / "validation" / "summary.json").unlink()
    assert "learnt" not in progress_line(read_progress(folder)), "it may yet"


def test_the_end_of_a_pipeline_names_the_chosen_run_and_the_test_scores(tmp_path):
    pipeline = replace(FULL, results=str(tmp_path / "results"), folder=str(tmp_path / "jobs"))
    assert outcome(pipeline) == []
    best = {"trainer": "nnUNetTrainerExt", "plans_identifier": "nnUNetPlans", "configuration": "3d_fullres"}
    found = {"result_on_crossval_pre_pp": 0.8125, "selected_model_or_models": [best]}
    write_json(tmp_path / "results" / FULL.dataset / "inference_information.json", {"best_model_or_ensemble": found})
    for run, dice in zip(pipeline.runs, (0.75, 0.5), strict=True):
        mean = {"Dice": dice, "HD95": 3.0}
        counts = {"1": {"n_cases": 20, "missed": 2}, "2": {"n_cases": 20, "missed": 1}}
        summary = {"foreground_mean_penalised": mean, "counts": counts}
        write_json(predictions(pipeline, run) / "evaluation" / "summary.json", summary)
    write_text(tmp_path / "jobs" / "report.html", "")
    folders = [f"  {predictions(pipeline, run) / 'evaluation'}" for run in pipeline.runs]
    assert outcome(pipeline) == [
        "chosen by nnU-Net's rule, the mean Dice over the folds: nnUNetTrainerExt nnUNetPlans (0.812)",
        "test set, mean over the labels (a missed structure counts: Dice 0, the image's diagonal):",
        "  trainer                plans                    cases   Dice  HD95 mm  missed",
        "  nnUNetTrainerSegMamba  nnUNetPlansSegMambaTiny     20  0.750     3.00       3",
        "  nnUNetTrainerExt       nnUNetPlans                 20  0.500     3.00       3",
        *folders,
        f"report: {tmp_path / 'jobs' / 'report.html'}",
    ]
    assert outcome(replace(pipeline, folds=("all",), references=None)) == [
        f"report: {tmp_path / 'jobs' / 'report.html'}"
    ]


def test_status_of_a_folder_without_a_scheduler(base):
    slurm(base, *TRAIN, "--scheduler", "lsf", "-o", "jobs")
    make_fold(base, 0, finished=True)
    make_fold(base, 1)
    done = slurm(base, "status", "jobs")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1][2:6] == ["0", "finished", "3/10", "0.519"]
    assert rows[2][2:6] == ["1", "begun", "3/10", "0.519"]
    assert rows[3][2:6] == ["2", "waiting", "-", "-"]
    assert "1 of 5 folds finished" in done.stdout
    assert done.returncode == 0
    # LSF counts array tasks from 1.
    log = "2026-01-31 12:00:00 nnUNetTrainerExt nnUNetPlans fold 1 on node\nKilled\n... fold 1 ended with status 137\n"
    (base / "jobs" / "jobs.txt").write_text("2_train 77 0-4\n")
    (base / "jobs" / "logs" / "2_train_77_2.log").write_text(log)
    done = slurm(base, "status", "jobs")
    assert "fold 1 failed: killed by signal 9" in done.stdout and "  | Killed\n" in done.stdout
    assert done.returncode == 1 and "submit.sh again" in done.stderr
    facts = json.loads(slurm(base, "status", "jobs", "--json").stdout)
    assert facts["folds"][1]["losses"] == [0.0, -0.2, -0.4] and facts["finished"] is False
