"""--local and resume, with pretend commands in the place of nnU-Net's and Slurm's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.errors import UserError
from nnunet_ext.slurm.folder import done_marks, load, write
from nnunet_ext.slurm.job import Resources
from nnunet_ext.slurm.local import _line, run_local
from nnunet_ext.slurm.pipeline import TRAIN as TRAIN_STEP
from nnunet_ext.slurm.pipeline import Pipeline, Training, jobs
from nnunet_ext.slurm.resume import command, plan_resume

# Trains fold $3: as long as a file NAME_$3 is in $HERE, it fails (fail) or waits (wait).
TRAIN = """#!/usr/bin/env bash
echo "$3 $CUDA_VISIBLE_DEVICES" >> "$HERE/trained"
if [ -e "$HERE/fail_$3" ]; then echo "ValueError: no such case" >&2; exit 1; fi
trap 'touch "$HERE/saved_$3"; exit 85' TERM
touch "$HERE/begun_$3"
while [ -e "$HERE/wait_$3" ]; do sleep 0.1; done
validation="$nnUNet_results/Dataset007_Toy/nnUNetTrainerExt__nnUNetPlans__3d_fullres/fold_$3/validation"
mkdir -p "$validation" && echo '{}' > "$validation/summary.json"
"""
OTHERS = '#!/usr/bin/env bash\necho "$(basename "$0") $1 $2" >> "$HERE/ran"\n'


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> Pipeline:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("nnUNetv2_train", "nnunet_ext"):
        (binaries / name).write_text(TRAIN if name == "nnUNetv2_train" else OTHERS)
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("HERE", str(tmp_path))
    described = Pipeline(
        scheduler="local", dataset="Dataset007_Toy", configuration="3d_fullres",
        runs=(Training("nnUNetTrainerExt", "nnUNetPlans", "nnUNetPlans_3d_fullres"),), folds=("0", "1", "2"),
        folder=str(tmp_path / "jobs"), raw=str(tmp_path), preprocessed=str(tmp_path), results=str(tmp_path / "results"),
        path=str(binaries), resources=Resources(cpus=1, gpus=0),
    )  # fmt: skip
    write(described)
    return described


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_failed_fold_costs_no_other_and_the_next_run_goes_on_from_it(pipeline, tmp_path, capsys):
    (tmp_path / "fail_1").touch()
    with pytest.raises(UserError, match=r"fold 1 failed \(ValueError: no such case\).*run the same command again"):
        run_local(pipeline, [])
    assert [line.split()[0] for line in lines(tmp_path / "trained")] == ["0", "1", "2"]
    assert lines(tmp_path / "ran") == ["nnunet_ext slurm prepare"], "nothing is selected without all folds"
    assert "  | ValueError: no such case" in capsys.readouterr().err

    (tmp_path / "fail_1").unlink()
    run_local(pipeline, [])
    assert [line.split()[0] for line in lines(tmp_path / "trained")] == ["0", "1", "2", "1"]
    assert [line.split()[1] for line in lines(tmp_path / "ran")] == ["slurm", "slurm", "evaluate", "report"]

    run_local(pipeline, [])
    assert len(lines(tmp_path / "trained")) == 4 and len(lines(tmp_path / "ran")) == 4


def test_every_task_of_a_step_ends_as_done(pipeline, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    twice = replace(pipeline, runs=(*pipeline.runs, Training("T", "P", "D")), folds=("all",), images=str(images))
    (job,) = (job for job in jobs(twice) if job.tasks and job.name != TRAIN_STEP)
    write(twice, overwrite=True)
    done_marks(twice, job)[0].touch()
    assert _line(twice, job, 0) == "nnUNetTrainerExt nnUNetPlans 4_predict: done"
    assert _line(twice, job, 1) == "T P 4_predict: running"


def test_new_folds_make_later_steps_run_again(pipeline, tmp_path):
    run_local(pipeline, [])
    more = replace(pipeline, folds=("0", "1", "2", "3"))
    write(more, overwrite=True)
    run_local(more, [])
    assert [line.split()[0] for line in lines(tmp_path / "trained")] == ["0", "1", "2", "3"]
    assert [line.split()[1] for line in lines(tmp_path / "ran")].count("report") == 2


def test_one_fold_per_gpu(pipeline, tmp_path):
    for fold in "01":
        (tmp_path / f"wait_{fold}").touch()
    on_gpus = replace(pipeline, resources=Resources(cpus=1, gpus=1))
    write(on_gpus, overwrite=True)
    code = (
        "from nnunet_ext.slurm.folder import load; from nnunet_ext.slurm.local import run_local\n"
        f"run_local(load({pipeline.folder!r}), ['3', '5'])"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "begun_0", tmp_path / "begun_1")
        assert not (tmp_path / "begun_2").exists(), "two GPUs, two folds"
        for fold in "01":
            (tmp_path / f"wait_{fold}").unlink()
        assert run.wait(timeout=120) == 0
    finally:
        run.kill()
    devices = dict(line.split() for line in lines(tmp_path / "trained"))
    assert {devices["0"], devices["1"]} == {"3", "5"} and devices["2"] in ("3", "5")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_lets_the_training_save_and_leaves_nothing_behind(pipeline, tmp_path, number):
    (tmp_path / "wait_0").touch()
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from nnunet_ext.slurm.folder import load; from nnunet_ext.slurm.local import run_local\n"
        "from nnunet_ext.cli.running import stop_on_signals\n"
        f"with stop_on_signals(): run_local(load({pipeline.folder!r}), [])"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "begun_0")
        run.send_signal(number)
        run.wait(timeout=120)
    finally:
        run.kill()
    assert run.returncode != 0 and (tmp_path / "saved_0").exists()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in read(p)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} never came"
        time.sleep(0.05)


# resume --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def submitted(pipeline, tmp_path, monkeypatch):
    """A function that pretends these jobs are in Slurm's queue, and these folds are finished."""
    on_slurm = replace(pipeline, scheduler="slurm", at_once=2)
    write(on_slurm, overwrite=True)
    jobs = "1_prepare 10 -\n2_train 11 0-2\n3_select 12 -\n5_evaluate 13 -\n6_report 14 -\n"
    Path(pipeline.folder, "jobs.txt").write_text(jobs)
    Path(pipeline.folder, "done", "1_prepare").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in ("sbatch", "scontrol"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def pretend(queue: str, finished: str, done: tuple[str, ...] = ()) -> Pipeline:
        (tmp_path / "bin" / "squeue").write_text(f"#!/bin/sh\ncat <<'END'\n{queue}\nEND\n")
        (tmp_path / "bin" / "squeue").chmod(0o755)
        for fold in finished.split():
            validation = on_slurm.result_folder(on_slurm.runs[0]) / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            (validation / "summary.json").write_text("{}")
        for name in done:
            Path(pipeline.folder, "done", name).touch()
        return load(pipeline.folder)

    return pretend


def test_resume_leaves_the_queue_alone_and_chains_behind_it(submitted):
    waiting = "12|PENDING|Dependency\n13|PENDING|Dependency\n14|PENDING|Dependency"
    plan = plan_resume(submitted(f"11_1|RUNNING|None\n{waiting}\n99_2|RUNNING|None", finished="0"))
    assert plan.cancel == ("12", "13", "14"), "they wait for a task that has failed"
    assert [step.step for step in plan.submit] == ["2_train", "3_select", "5_evaluate", "6_report"]
    train, select = plan.submit[:2]
    assert command(train, None, ["--mem=128G"]) == ["--array=2%2", "--mem=128G"]
    assert command(select, "20", []) == ["--dependency=afterok:11_1:20", "--kill-on-invalid-dep=yes"]


def test_resume_with_everything_on_its_way_submits_nothing(submitted):
    queue = "11_1|RUNNING|None\n11_2|PENDING|Priority\n12|PENDING|D\n13|PENDING|D\n14|PENDING|D"
    plan = plan_resume(submitted(queue, finished="0"))
    assert (plan.cancel, plan.submit) == ((), ())


def test_resume_after_the_folds(submitted):
    plan = plan_resume(submitted("", finished="0 1 2", done=("3_select",)))
    assert [(step.step, step.after, step.after_previous) for step in plan.submit] == [
        ("5_evaluate", (), False),
        ("6_report", (), True),
    ]


def test_resume_refuses_folds_of_another_schedule_than_the_scripts_have(submitted, capsys):
    pipeline = submitted("", finished="0")
    folder = pipeline.result_folder(pipeline.runs[0]) / "fold_0"
    (folder / "run.json").write_text(json.dumps({"settings": {"epochs": 3}, "environment": {"NNUNET_EXT_EPOCHS": "3"}}))
    assert main(["slurm", "resume", pipeline.folder, "--dry-run"]) == 1
    assert "fold 0 with NNUNET_EXT_EPOCHS 3 (now unset)" in capsys.readouterr().err
    assert main(["slurm", "resume", pipeline.folder, "--dry-run", "--accept-finished"]) == 0
    # Edited scripts are submitted as they are, so what they export counts.
    script = Path(pipeline.folder, "2_train.sh")
    script.write_text(script.read_text().replace("\ntrainers=", "\nexport NNUNET_EXT_EPOCHS='3'\ntrainers=", 1))
    assert main(["slurm", "resume", pipeline.folder, "--dry-run"]) == 0


def test_broken_jobs_file_is_named(submitted):
    pipeline = submitted("", finished="")
    Path(pipeline.folder, "jobs.txt").write_text("2_train 11\n")
    with pytest.raises(UserError, match=r"jobs.txt, line 1: expected STEP JOB TASKS"):
        plan_resume(pipeline)
    Path(pipeline.folder, "pipeline.json").write_text(json.dumps({"runs": []}))
    with pytest.raises(UserError, match=r"pipeline\.json: resources is missing"):
        load(pipeline.folder)
