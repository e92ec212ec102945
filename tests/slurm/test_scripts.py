"""The scripts are text that a user reads: compared with files to the letter, and run by bash with pretend commands."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import nnunet_dataset
from helpers.pipelines import FULL

from nnunet_ext.errors import UserError
from nnunet_ext.slurm.dialects import DIALECTS, script
from nnunet_ext.slurm.folder import expand, files, load, write
from nnunet_ext.slurm.job import parse_memory, parse_minutes
from nnunet_ext.slurm.pipeline import TRAIN, Pipeline, Small, jobs

GOLDEN = Path(__file__).parent / "golden"


def variant(scheduler: str) -> Pipeline:
    extra = {"slurm": ("--qos=long",), "lsf": ("-app nvidia",), "pbs": ("-l place=free",), "local": ()}[scheduler]
    return replace(FULL, scheduler=scheduler, resources=replace(FULL.resources, extra=extra))


@pytest.mark.parametrize("scheduler", list(DIALECTS))
def test_scripts_are_these(scheduler, monkeypatch):
    monkeypatch.setattr("nnunet_ext.slurm.job.__version__", "0.1.0")  # a release changes no file here
    written = files(variant(scheduler))
    names = [name for name in written if name.endswith(".sh")]
    if os.environ.get("WRITE_GOLDEN"):
        for name in names:
            (GOLDEN / scheduler).mkdir(exist_ok=True)
            (GOLDEN / scheduler / name).write_text(written[name])
    assert names == sorted(path.name for path in (GOLDEN / scheduler).iterdir())
    for name in names:
        assert written[name] == (GOLDEN / scheduler / name).read_text(), f"{scheduler}/{name}"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_are_sound_shell(path):
    subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run([nnunet_dataset.COMMANDS / "shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_several_gpus_and_none():
    several = script(jobs(replace(FULL, resources=replace(FULL.resources, gpus=4)))[1], "slurm")
    assert "#SBATCH --gres=gpu:4\n" in several and " -num_gpus 4 --c &" in several
    assert "nnUNet_n_proc_DA=$((cpus / 4 > 1 ? cpus / 4 - 1 : 1))" in several  # workers of each of the four
    none = script(jobs(replace(FULL, resources=replace(FULL.resources, gpus=0)))[1], "slurm")
    assert "gres" not in none and " -device cpu --c &" in none and 'OMP_NUM_THREADS="$cpus"' in none


def test_steps_without_a_gpu_ask_for_little():
    training = replace(FULL.resources, extra=("--gres=gpu:a100:1", "-G 1", "--qos=gpu", "--account gpus"))

    def asked(**changes) -> dict[str, str]:
        return {job.name[2:]: script(job, "slurm") for job in jobs(replace(FULL, resources=training, **changes))}

    steps = asked()
    for name, (cpus, memory, limit) in {
        "prepare": (8, 32768, "08:00:00"), "select": (4, 16384, "02:00:00"), "evaluate": (4, 16384, "02:00:00"),
        "report": (4, 16384, "02:00:00"), "train": (12, 65536, "24:00:00"), "predict": (12, 65536, "24:00:00"),
    }.items():  # fmt: skip
        text = steps[name]
        for line in (f"--cpus-per-task={cpus}", f"--mem={memory}M", f"--time={limit}", "--qos=gpu", "--account gpus"):
            assert f"#SBATCH {line}\n" in text, (name, line)
        on_gpu = name in ("train", "predict")
        assert ("--gres=gpu:a100:1" in text) == ("-G 1" in text) == ("--gres=gpu:1" in text) == on_gpu
    own = asked(small=Small(cpus=2, memory_mib=100_000, minutes=3000))["report"]
    assert "--cpus-per-task=2\n" in own and "--mem=100000M\n" in own and "--time=50:00:00\n" in own
    # Never more than the training, whose limits the partition may have.
    training = replace(training, cpus=2, memory_mib=3072, minutes=30)
    assert "--cpus-per-task=2\n" in (text := asked()["prepare"]) and "--mem=3072M\n" in text and "00:30:00" in text


def test_steps_without_anything_to_do_are_left_out():
    def names(**changes) -> list[str]:
        return [job.name[2:] for job in jobs(replace(FULL, **changes))]

    assert names() == ["prepare", "train", "select", "predict", "evaluate", "report"]
    assert names(images=None, references=None) == ["prepare", "train", "select", "evaluate", "report"]
    # One fold of all cases has no validation of its own: nothing to select by, and only test cases to evaluate.
    assert names(folds=("all",)) == ["prepare", "train", "predict", "evaluate", "report"]
    assert names(folds=("all",), references=None) == ["prepare", "train", "predict"]
    predict, report = (script(job, "slurm") for job in jobs(replace(FULL, folds=("all",))) if job.name[0] in "46")
    assert " -f all " in predict and "apply_postprocessing" not in predict
    assert "3d_fullres' " in report and f" -r {FULL.references} --images {FULL.images} " in report


def test_description_survives_the_file(tmp_path):
    pipeline = replace(FULL, folder=str(tmp_path / "jobs"))
    write(pipeline)
    assert load(pipeline.folder) == pipeline
    assert (tmp_path / "jobs" / "submit.sh").stat().st_mode & stat.S_IXUSR


def test_edited_scripts_are_kept(tmp_path):
    pipeline = replace(FULL, folder=str(tmp_path))
    write(pipeline)
    edited = tmp_path / "2_train.sh"
    edited.write_text(edited.read_text() + "# mine\n")
    with pytest.raises(UserError, match=r"2_train.sh exists with other content.*--overwrite"):
        write(pipeline)
    assert edited.read_text().endswith("# mine\n")
    write(pipeline, overwrite=True)
    assert not edited.read_text().endswith("# mine\n")


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("90:30", 91), ("24:00:00", 1440), ("2-12", 3600), ("1-00:30", 1470)]
)
def test_time_limits(text, minutes):
    assert parse_minutes(text) == minutes


def test_memory_and_task_lists():
    assert [parse_memory(text) for text in ("64G", "64GB", "512", "2t")] == [65536, 65536, 512, 2 * 1024**2]
    assert expand("0-3,7") == (0, 1, 2, 3, 7)
    for wrong in ("", "G", "64 cows", "0"):
        with pytest.raises(UserError, match="--mem"):
            parse_memory(wrong)
    with pytest.raises(UserError, match="--time soon"):
        parse_minutes("soon")


# The body of 2_train.sh, run by bash with a pretend nnUNetv2_train and scontrol ---------------------------------------

TRAINING = """#!/usr/bin/env python3
import os, pathlib, signal, sys, time
here = pathlib.Path(os.environ["HERE"])
(here / "arguments").write_text(" ".join(sys.argv[1:]))
(here / "variables").write_text("\\n".join(f"{k}={v}" for k, v in os.environ.items()))
def stop(number, frame):
    with open(here / "signals", "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if os.environ["DOES"] == "fails when warned":
        sys.exit(1)
    if number == signal.SIGTERM or os.environ["DOES"] == "saves":
        sys.exit(85)
for number in (signal.SIGUSR1, signal.SIGTERM):
    if os.environ["DOES"] != "deaf":
        signal.signal(number, stop)
(here / os.environ.get("READY", "ready")).touch()
if os.environ["DOES"] == "has ranks":
    # As with -num_gpus: one child per GPU does the work, this process waits and knows no signal.
    import subprocess
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    rank = [sys.executable, "-c", open(__file__).read(), "spawn_main"]
    ranks = [subprocess.Popen(rank, env={**os.environ, "DOES": "saves", "READY": f"ready_{n}"}) for n in range(2)]
    sys.exit(int(any([one.wait() for one in ranks])))
if os.environ["DOES"] == "fails":
    sys.exit("ValueError: no such case")
if os.environ["DOES"] != "finishes":
    time.sleep(60)
"""


@pytest.fixture
def training(tmp_path):
    """A function that starts task 7 of 2_train.sh with a training that does as told; `finish` gives its status."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in {
        "nnUNetv2_train": TRAINING, "scontrol": '#!/bin/sh\necho "$@" > "$HERE/requeued"\n',
    }.items():  # fmt: skip
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    source = tmp_path / "preprocessed" / FULL.dataset
    for name in ("nnUNetPlans_3d_fullres", "nnUNetPlans_2d", "gt_segmentations"):
        (source / name).mkdir(parents=True)
        (source / name / "case").write_text("data")
    (source / "splits_final.json").write_text("[]")
    started = []

    def start(does: str, **changes) -> subprocess.Popen[str]:
        pipeline = replace(
            FULL, folder=str(tmp_path), path=str(binaries), preprocessed=str(source.parent), setup=(),
            results=str(tmp_path / "results"), **changes,
        )  # fmt: skip
        (tmp_path / "train.sh").write_text(script(next(j for j in jobs(pipeline) if j.name == TRAIN), "slurm"))
        environment = {
            **os.environ, "HERE": str(tmp_path), "DOES": does, "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_JOB_ID": "42",
            "SLURM_CPUS_PER_TASK": "6", "TMPDIR": str(tmp_path / "scratch"),
        }  # fmt: skip
        run = subprocess.Popen(
            ["bash", tmp_path / "train.sh"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        started.append(run)
        return run

    yield start
    for run in started:
        run.kill()
        run.wait()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_task_gets_its_fold_its_data_and_its_share_of_the_node(training, tmp_path):
    run = training("finishes")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    expected = "Dataset004_Hippocampus 3d_fullres 2 -tr nnUNetTrainerExt -p nnUNetPlans --c"
    assert (tmp_path / "arguments").read_text() == expected
    variables = dict(line.split("=", 1) for line in (tmp_path / "variables").read_text().splitlines() if "=" in line)
    assert (variables["nnUNet_n_proc_DA"], variables["nnUNet_def_n_proc"]) == ("5", "6")
    assert (variables["OMP_NUM_THREADS"], variables["NNUNET_EXT_EPOCHS"]) == ("1", "250")
    copy = Path(variables["nnUNet_preprocessed"])
    assert copy.parent == tmp_path / "scratch"
    copied = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert copied == {
        f"{FULL.dataset}/{name}"
        for name in ("splits_final.json", "gt_segmentations/case", "nnUNetPlans_3d_fullres/case")
    }
    assert list(copy.parent.iterdir()) == [copy], "a half copy was left behind"
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("does", ["saves", "deaf"])
def test_warning_ends_in_the_queue_again(training, tmp_path, does):
    run = training(does)
    wait_for(tmp_path / "ready")
    run.send_signal(signal.SIGUSR1)
    output, _ = run.communicate(timeout=60)
    assert (tmp_path / "requeued").read_text() == "requeue 42_7\n", output


def test_failure_after_a_warning_is_a_failure(training, tmp_path):
    run = training("fails when warned")
    wait_for(tmp_path / "ready")
    run.send_signal(signal.SIGUSR1)
    run.communicate(timeout=60)
    assert run.returncode == 1 and not (tmp_path / "requeued").exists()


def test_warning_reaches_the_process_of_every_gpu(training, tmp_path):
    run = training("has ranks", resources=replace(FULL.resources, gpus=2))
    for rank in range(2):
        wait_for(tmp_path / f"ready_{rank}")
    run.send_signal(signal.SIGUSR1)
    output, _ = run.communicate(timeout=60)
    assert (tmp_path / "signals").read_text().split() == ["SIGUSR1", "SIGUSR1"]
    assert (tmp_path / "requeued").read_text() == "requeue 42_7\n", output


def test_long_epoch_is_stopped_at_the_batch(training, tmp_path):
    run = training("finishes its epoch", warn_seconds=70)
    wait_for(tmp_path / "ready")
    begun = time.monotonic()
    run.send_signal(signal.SIGUSR1)
    run.communicate(timeout=60)
    assert (tmp_path / "signals").read_text().split() == ["SIGUSR1", "SIGTERM"]
    assert time.monotonic() - begun >= 10, "the epoch had no time to end"
    assert (tmp_path / "requeued").exists()


def test_cancelled_is_not_queued_again(training, tmp_path):
    run = training("saves")
    wait_for(tmp_path / "ready")
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 85 and not (tmp_path / "requeued").exists()


def test_failure_is_the_status_of_the_job(training, tmp_path):
    run = training("fails")
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 1 and "fold 2 ended with status 1" in output
    assert not (tmp_path / "requeued").exists()


def test_finished_fold_is_left_alone(training, tmp_path):
    validation = tmp_path / "results" / FULL.dataset / "nnUNetTrainerExt__nnUNetPlans__3d_fullres/fold_2/validation"
    validation.mkdir(parents=True)
    (validation / "summary.json").write_text("{}")
    run = training("finishes")
    run.communicate(timeout=60)
    assert run.returncode == 0 and not (tmp_path / "arguments").exists()
