"""Every module and the small path of every command, without what only Linux has. See `helpers.without_posix`."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

from helpers import dying_work, nnunet_dataset, without_posix

import nnunet_ext
from nnunet_ext import workers
from nnunet_ext.processes import kill_group, own_group, terminate_group

TESTS = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, pathlib
import nnunet_ext
(root,) = map(pathlib.Path, nnunet_ext.__path__)
paths = [path.relative_to(root.parent).with_suffix("") for path in sorted(root.rglob("*.py"))]
names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
left = ("triton_kernels", "__main__", "_nnunet_ext_hook")  # of a GPU, of a command, of Python's own start
wrong = []
for name in names:
    if not name.endswith(left):
        try:
            importlib.import_module(name)
        except (ImportError, AttributeError, OSError) as error:
            wrong.append(f"{name}: {error!r}")
assert not wrong, "\\n".join(wrong)
print(len(names))
"""

# One process for all commands, because each would import the same packages.
COMMANDS = """
import contextlib, io, json, os, sys
from pathlib import Path

import numpy as np
from helpers import blobs, promptable_stubs, toy_label_maps, toy_runs
from helpers.sampled_maps import sampled_label_maps
from nnunet_ext.cli.main import main

def run(*words, status=0):
    # What is redirected on Windows is encoded so.
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    with contextlib.redirect_stdout(out):
        got = main([str(word) for word in words])
    out.seek(0)
    said = out.read()
    assert got in (status if isinstance(status, tuple) else (status,)), f"{words}: exit status {got}\\n{said}"
    return said

base = Path(sys.argv[1])
assert json.loads(run("models", "--json")) and run("models")

references, predictions = base / "labelsTr", base / "predictions"
toy_label_maps.save(references / "a.nii.gz", toy_label_maps.case(0))
toy_label_maps.save(predictions / "a.nii.gz", toy_label_maps.case(0))
run("evaluate", "-r", references, "-p", predictions, "--labels", 1, 2, "-n", 1)
assert json.loads((predictions / "evaluation" / "summary.json").read_text())["foreground_mean"]["Dice"] == 1

toy_runs.make_dataset(base)
toy_runs.make_run(base, "nnUNetTrainerExt", 1)
toy_runs.make_run(base, "nnUNetTrainerSegMamba", 0)
for name in ("raw", "preprocessed", "results"):
    os.environ[f"nnUNet_{name}"] = str(base / name)
run("report", base / "results" / toy_runs.DATASET / "*", "-o", base / "report.html", "-n", 1)
assert b"<svg" in (base / "report.html").read_bytes()

blobs.make(base / "raw" / "Dataset003_Blobs")
run("data", "check", 3, "-n", 1, "--patients", "(.)_", "--folds", 3, "--splits", base / "splits.json")
run("data", "clean", 3, "--rules", "finite")

from nnunet_ext.data.holdout import hold_out, read_raw_dataset
held = hold_out(read_raw_dataset(base / "raw" / "Dataset003_Blobs"), base / "held" / "Dataset003_Blobs", 5, 1)
assert len(list((held / "labelsTr").iterdir())) == 5  # copies, where links are not allowed

from nnunet_ext.diffusion.samples_file import write_samples
maps = sampled_label_maps((5, 9, 8), 3, 3)
toy_label_maps.save(base / "images" / "a_0000.nii.gz", maps[0])
write_samples(base / "samples", "a", maps, base / "images" / "a_0000.nii.gz", settings={})
assert run("uncertainty", "-i", base / "samples")

point = {"xyz": [3, 4, 3], "positive": True}
prompts = {"version": 1, "space": "voxel", "unit": "voxel", "objects": [{"name": "liver", "points": [point]}]}
(base / "prompts").mkdir()
(base / "prompts" / "a.prompts.json").write_text(json.dumps(prompts))
model = promptable_stubs.trained_folder(base / "model")
run("predict-prompts", "-device", "cpu", "-i", base / "images", "-p", base / "prompts", "-o", base / "out", "-m", model)
assert (base / "out" / "a.nii.gz").is_file()

plans = {"configurations": {"3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres"}}}
(base / "preprocessed" / toy_runs.DATASET / "nnUNetPlans.json").write_text(json.dumps(plans))
slurm = ("slurm", "-d", 1, "-tr", "nnUNetTrainerExt", "-c", "3d_fullres")
assert "#SBATCH" in run(*slurm, "--dry-run")
run(*slurm, "-o", base / "jobs")
assert b"\\r" not in (base / "jobs" / "2_train.sh").read_bytes(), "no shell reads carriage returns"
run("slurm", "status", base / "jobs")

assert "cores" in run("doctor", status=(0, 1))
"""

RUN_AND_STOP = """
import sys
from pathlib import Path
from nnunet_ext.cli.running import _started, run_logged, stop_on_signals
with stop_on_signals():
    run_logged([Path(sys.executable).name, "-c", "print(6 * 7)"], Path("log"), Path("."), {}, lambda line: line)
    with _started([sys.executable, "-c", "import time; time.sleep(300)"], Path("."), {}) as run:
        pass
    assert run.poll() not in (None, 0)
"""


def run_without_posix(
    code: str, folder: Path, *arguments: object, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, in `folder`; its warnings about texts of unnamed encoding are errors."""
    environment = {
        **nnunet_dataset.environment(folder),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "PYTHONIOENCODING": "cp1252",
        "USER": "nobody",
        **variables,
    }
    start = "from helpers import without_posix; without_posix.enter()\n"
    command = [sys.executable, "-X", "warn_default_encoding", "-c", start + code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def test_every_module_can_be_imported(tmp_path):
    done = run_without_posix(IMPORT_ALL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 150


def test_small_path_of_the_commands(tmp_path):
    done = run_without_posix(COMMANDS, tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr


def test_commands_in_a_process_are_run_and_stopped(tmp_path):
    done = run_without_posix(RUN_AND_STOP, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "42\n"


def test_no_line_needs_what_only_posix_has():
    """Also where no small path comes by: such names are used where their absence is provided for, nowhere else."""
    provided_for = {("processes.py", "killpg"), ("trainers/checkpoint_files.py", "link")}
    root = Path(nnunet_ext.__file__).parent
    names = {*without_posix.OF_OS, *without_posix.OF_SIGNAL}
    used = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("os", "signal")
            ):
                if node.attr in names:
                    used.add((path.relative_to(root).as_posix(), node.attr))
    assert used == provided_for


def test_groups_on_windows(monkeypatch):
    class Command:
        def __init__(self):
            self.did = []

        def send_signal(self, number):
            self.did.append(number)

        def kill(self):
            self.did.append("killed")

    monkeypatch.delattr(os, "killpg", raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    assert own_group() == {"creationflags": 512}
    command = Command()
    terminate_group(command)
    kill_group(command)
    assert command.did == [1, "killed"]


def test_no_more_workers_than_the_system_can_wait_for(monkeypatch):
    sizes = []

    class Pool(workers.ProcessPoolExecutor):
        def __init__(self, size, **options):
            sizes.append(size)
            super().__init__(1, **options)

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(workers, "MOST_PROCESSES", 61)
    assert len(list(workers.in_workers(dying_work.half_unless_seven, range(8, 108), 128))) == 100
    assert sizes == [61]
