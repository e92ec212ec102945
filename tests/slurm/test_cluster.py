"""Ten folds on a real Slurm, with everything that happens to jobs on a cluster; the cluster is started by the test.

One array run serves all tests here: `story` lets it happen and notes what was seen, the tests look at the notes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers import nnunet_dataset, slurm_cluster

from nnunet_ext.slurm.progress import read_progress

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm_cluster.why_not() is not None, reason=f"no Slurm: {slurm_cluster.why_not()}"),
]
HERE = Path(__file__).parent
INTERRUPTED, OTHER, PLANS = "nnUNetTrainerRepeatable", "nnUNetTrainerExt", "nnUNetPlansSmall"
EPOCHS = 4
PATIENCE_SECONDS = 1500


@dataclass
class Story:
    """What was seen while the array ran.

    Attributes:
        folder: of the pipeline.
        results: nnU-Net's result folder of the interrupted trainer.
        reference: the same of an uninterrupted run on this machine, folds 0 and 1.
        drained: status while the node was drained and nothing ran any more.
        broken: status, and its text, when the array had ended and two folds had failed.
        resumed: what `resume` printed.
        final: status at the end.
    """

    folder: Path
    results: Path
    reference: Path
    restarts: int = -1
    drained: dict = field(default_factory=dict)
    broken: dict = field(default_factory=dict)
    broken_text: str = ""
    resumed: str = ""
    final: dict = field(default_factory=dict)
    warned: str = ""
    local_output: str = ""
    local_again: str = ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    running = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        running.start()
        yield running
    finally:
        running.stop()
        assert running.processes() == [], "something was left running"


@pytest.fixture(scope="module")
def story(cluster, tmp_path_factory) -> Story:
    base = tmp_path_factory.mktemp("nnunet with a space")
    # One region of all labels: with each of them nnU-Net tries another post-processing, in new processes.
    dataset = nnunet_dataset.make(base, labels={"background": 0, "abdomen": [1, 2, 3, 4]}, regions_class_order=[1])
    write_small_plans(dataset)
    variables = {
        **cluster.environment, **nnunet_dataset.environment(base), "SLURM_CONF": cluster.environment["SLURM_CONF"],
        "PATH": f"{nnunet_dataset.COMMANDS}{os.pathsep}{slurm_cluster.PATH}",
        "nnUNet_extTrainer": str(HERE / "trainers"), "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1",
        "NNUNET_EXT_EPOCHS": str(EPOCHS), "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1",
        "NNUNET_EXT_CHECKPOINT_EVERY": "1",
    }  # fmt: skip
    what = ("-d", "990", "-c", "3d_fullres", "-p", PLANS, "--gpus", "0", "--cpus", "1", "--short-training")
    folder = base / "jobs"
    results = base / "nnUNet_results" / dataset.name / f"{INTERRUPTED}__{PLANS}__3d_fullres"
    reference = base / "reference" / dataset.name / results.name
    seen = Story(folder, results, reference)

    def command(*words: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["nnunet_ext", "slurm", *words], env={**variables, **more}, cwd=base, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
        return done

    def status() -> dict:
        return json.loads(command("status", str(folder), "--json", check=False).stdout)

    limits = ("--mem", "3G", "--time", "30", "--at-once", "2", "--scratch", str(base / "scratch"))
    warned = submit_job_that_is_warned(cluster, base / "warned")
    command(*what, "-tr", INTERRUPTED, OTHER, *limits, "-o", str(folder), "--submit")
    train = next(line.split()[1] for line in (folder / "jobs.txt").read_text().splitlines() if "train" in line)
    # Too little memory for the last task; and the second will die in the middle of writing a checkpoint.
    cluster.run("scontrol", "update", f"JobId={train}_9", "MinMemoryNode=300")
    (results / "fold_1").mkdir(parents=True)
    (results / "fold_1" / "kill_while_saving").touch()

    # A warning in the middle of the second epoch, as before a time limit; and the node is drained.
    wait_until(lambda: epoch_began(results / "fold_0", 1), seen, pause_seconds=0.1)
    # Slurm 22.05 signals the task, says that it could not signal the pending ones, and tries again five seconds later.
    cluster.run("timeout", "3", "scancel", "--batch", "--signal=USR1", f"{train}_0", check=False)
    cluster.run("scontrol", "update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=maintenance")
    wait_until(lambda: not any(fold["state"] == "running" for fold in status()["folds"]), seen)
    seen.drained = status()
    seen.restarts = int(
        cluster.run("scontrol", "show", "job", "-o", f"{train}_0").stdout.split("Restarts=")[1].split()[0]
    )
    cluster.run("scontrol", "update", f"NodeName={cluster.node}", "State=RESUME")

    wait_until(lambda: not active(status()), seen)
    seen.broken = status()
    seen.broken_text = command("status", str(folder), check=False).stdout
    seen.resumed = command("resume", str(folder)).stdout
    wait_until(lambda: not active(status()), seen)
    seen.final = status()
    seen.warned = warned.read_text()

    local = (*what, "-tr", INTERRUPTED, "-f", "0", "1", "--local", "-o", str(base / "local"))
    (base / "reference").mkdir()
    seen.local_output = command(*local, nnUNet_results=str(base / "reference")).stdout
    seen.local_again = command(*local, nnUNet_results=str(base / "reference")).stdout
    return seen


def write_small_plans(dataset: Path) -> None:
    """nnU-Net's own network in three stages of a few channels."""
    plans = json.loads((dataset / "nnUNetPlans.json").read_text())
    plans["plans_name"] = PLANS
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(patch_size=[16, 32, 32], batch_size=2)
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3, features_per_stage=[4, 8, 8], kernel_sizes=[[3, 3, 3]] * 3, n_conv_per_stage=[1, 1, 1],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], n_conv_per_stage_decoder=[1, 1],
    )  # fmt: skip
    (dataset / f"{PLANS}.json").write_text(json.dumps(plans))


def submit_job_that_is_warned(cluster, folder: Path) -> Path:
    """A job that waits for Slurm's own warning before its time limit; returns its log."""
    folder.mkdir()
    (folder / "job.sh").write_text(
        "#!/bin/bash\n"
        f'#SBATCH --output="{folder}/log"\n#SBATCH --open-mode=append\n#SBATCH --requeue\n#SBATCH --mem=100M\n'
        "#SBATCH --signal=B:USR1@30\n#SBATCH --time=1\n"
        "sleep 300 & pid=$!\n"
        "trap 'echo warned; kill $pid; exec scontrol requeue $SLURM_JOB_ID' USR1\n"
        '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || { echo "started again"; kill $pid; exit 0; }\n'
        "wait $pid\n"
    )
    cluster.run("sbatch", str(folder / "job.sh"))
    return folder / "log"


def epoch_began(fold: Path, epoch: int) -> bool:
    return any(f": Epoch {epoch} " in log.read_text() + " " for log in fold.glob("training_log_*.txt"))


def active(status: dict) -> bool:
    return any(part["state"] in ("running", "pending") for part in status["folds"] + status["steps"])


def wait_until(true, seen: Story, pause_seconds: float = 2.0) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        logs = sorted((seen.folder / "logs").glob("*"), key=lambda path: path.stat().st_mtime)
        assert time.monotonic() < end, f"it never happened; {logs[-1]}: {logs[-1].read_text()[-2000:]}"
        time.sleep(pause_seconds)


def folds(status: dict, *states: str) -> set[int]:
    return {fold["task"] for fold in status["folds"] if fold["state"] in states}


def first_epochs(fold: Path) -> list[int]:
    """The epoch each start of the training began with."""
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    starts = [
        [
            int(line.split("Epoch ")[1])
            for line in log.read_text().splitlines()
            if ": Epoch " in line and line.split("Epoch ")[1].strip().isdecimal()
        ]
        for log in logs
    ]
    return [epochs[0] for epochs in starts if epochs]


def dice(fold: Path) -> list:
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    return [case["metrics"] for case in summary["metric_per_case"]]


def test_every_fold_and_every_step_finish(story):
    assert story.final["finished"] is True
    assert folds(story.final, "finished") == set(range(10))
    assert {step["state"] for step in story.final["steps"]} == {"finished"}
    assert all((fold["epoch"], fold["epochs"]) == (EPOCHS, EPOCHS) for fold in story.final["folds"])
    for trainer in (INTERRUPTED, OTHER):
        run = story.results.parent / f"{trainer}__{PLANS}__3d_fullres"
        pooled = json.loads((run / "evaluation" / "summary.json").read_text())
        assert len(pooled["metric_per_case"]) == 5
        assert len(list((story.folder / "predictions" / f"{run.name}_postprocessed").glob("*.nii.gz"))) == 1
    assert (story.folder / "report.html").stat().st_size > 1000


def test_warned_task_is_queued_again_and_goes_on_with_the_next_epoch(story):
    fold = story.results / "fold_0"
    assert story.restarts == 1
    begun = first_epochs(fold)
    assert len(begun) == 2 and begun[0] == 0 and 2 <= begun[1] < EPOCHS
    losses = read_progress(fold).losses
    assert losses == read_progress(story.reference / "fold_0").losses and len(losses) == EPOCHS


def test_task_killed_while_saving_goes_on_from_the_checkpoint_before(story):
    fold = story.results / "fold_1"
    killed = story.broken["folds"][1]
    assert (killed["state"], killed["detail"]) == ("failed", "killed by signal 9")
    assert first_epochs(fold) == [0, 1], "the epoch whose checkpoint was never finished is run again"
    losses = read_progress(fold).losses
    assert losses == read_progress(story.reference / "fold_1").losses and len(losses) == EPOCHS


@pytest.mark.parametrize("fold", [0, 1])
def test_evaluation_equals_that_of_an_uninterrupted_run(story, fold):
    assert dice(story.results / f"fold_{fold}") == dice(story.reference / f"fold_{fold}")


def test_lack_of_memory_is_reported_with_the_log(story):
    (task,) = (fold for fold in story.broken["folds"] if fold["task"] == 9)
    assert task["state"] == "failed" and task["detail"].startswith("out of memory; resume with --sbatch=--mem=")
    assert any("memory" in line for line in task["tail"])
    assert f"{OTHER} {PLANS} fold 4 failed: out of memory" in story.broken_text
    assert "  | " in story.broken_text


def test_only_what_failed_is_submitted_again(story):
    assert folds(story.broken, "finished") == set(range(10)) - {1, 9}
    assert all(step["state"] == "waiting" for step in story.broken["steps"][1:])
    submitted = [(line.split()[0], line.split()[2]) for line in story.resumed.splitlines()]
    assert submitted == [
        ("2_train", "1,9"), ("3_select", "-"), ("4_predict", "0,1"), ("5_evaluate", "-"), ("6_report", "-"),
    ]  # fmt: skip


def test_drained_node_loses_nothing(story):
    assert folds(story.drained, "running") == set()
    assert 0 in folds(story.drained, "pending"), "the warned task waits for the node"
    assert folds(story.drained, "pending", "finished", "failed") == set(range(10))


def test_slurm_warns_the_script_before_the_time_limit(story):
    assert story.warned.split("\n")[0] == "warned" and "started again" in story.warned


def test_local_runs_it_all_and_again_nothing(story):
    for line in (f"{INTERRUPTED} {PLANS} fold 0: finished, epoch {EPOCHS}/{EPOCHS}", "6_report: done"):
        assert line in story.local_output
    assert story.local_again.count("finished before") == 2 and "begun" not in story.local_again
    assert "report: " in story.local_again


def test_scratch_holds_whole_copies_only(story):
    copies = [path for path in (story.folder.parent / "scratch").iterdir()]
    assert len(copies) == 1 and not copies[0].name.startswith(".")
    shutil.rmtree(copies[0])
