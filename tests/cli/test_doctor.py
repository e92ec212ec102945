"""`nnunet_ext doctor`: each problem is named, has a remedy, and only what prevents training is an error."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext.cli import doctor as cli
from nnunet_ext.discovery import SHIMS
from nnunet_ext.discovery.table import OWN, Entry
from nnunet_ext.doctor import machine, probes, software
from nnunet_ext.doctor.finding import Finding

REPOSITORY = Path(__file__).parents[2]
UNWRITABLE = "/proc"  # even for root


def test_a_real_run_proves_the_look_up_and_names_what_is_broken(tmp_path):
    # Start-up files of this checkout may or may not be installed; sitecustomize stands in for them.
    (tmp_path / "sitecustomize.py").write_text("import _nnunet_ext_hook\n_nnunet_ext_hook.install()\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("NNUNET_EXT_", "nnUNet_"))}
    wrong = {
        "nnUNet_preprocessed": str(tmp_path),
        "nnUNet_results": UNWRITABLE,
        "NNUNET_EXT_SCAN": "fast",
        "NNUNET_EXT_EPOCHS": "many",
        "NNUNET_EXT_EPOCH": "5",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SHIMS.parent / "startup"), str(REPOSITORY)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ext", "doctor"],
        env={**clean, **wrong},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (1, "")
    report, _, advice = " ".join(done.stdout.split()).partition("What to do")
    for words in (
        "found through the start-up hook",
        *(f"{entry.name} found in {entry.module}" for entry in OWN),
        "reference on cpu works",
        f"nnUNet_preprocessed {tmp_path}, ",
        "NNUNET_EXT_SCAN='fast' is no backend",
    ):
        assert words in report
    for line in (
        "warning nnUNet_raw: needed for planning and preprocessing: export nnUNet_raw=",
        "BROKEN nnUNet_results: needs write permission for training and prediction: chmod u+w /proc",
        "unset NNUNET_EXT_SCAN",
        "BROKEN NNUNET_EXT_EPOCHS: correct it, or unset NNUNET_EXT_EPOCHS",
        "warning NNUNET_EXT_EPOCH: did you mean NNUNET_EXT_EPOCHS?",
    ):
        assert line in advice
    assert "nnUNet_preprocessed" not in advice


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({"NNUNET_EXT_AUTOLOAD": "0"}, "broken", "nothing: the start-up hook is switched off by NNUNET_EXT_AUTOLOAD=0"),
        ({"NNUNET_EXT_AUTOLOAD": "0", "nnUNet_extTrainer": f"/x{os.pathsep}{SHIMS}/"}, "note", "nnUNet_extTrainer"),
        ({}, "broken", "nothing: "),
    ],
)
def test_without_the_hook_the_second_way_is_explained(monkeypatch, environment, status, words):
    for name in ("NNUNET_EXT_AUTOLOAD", "nnUNet_extTrainer"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    finding = software.look_up({"attached": False, "nnunetv2": "/x", "classes": {}, "messages": []}, [])[0]
    assert finding.status == status and finding.value.startswith(words)
    assert (f"export nnUNet_extTrainer={SHIMS}" in finding.remedy) == (status == "broken")


def test_json_and_exit_status(monkeypatch, capsys):
    good, bad = [Finding("a", "1"), Finding("b", "2", "warning", "x")], [Finding("c", "3", "broken", "y")]
    monkeypatch.setattr(cli, "examine", lambda: iter([("First", good)]))
    assert cli.run(argparse.Namespace(json=True)) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    monkeypatch.setattr(cli, "examine", lambda: iter([("First", good), ("Second", bad)]))
    assert cli.run(argparse.Namespace(json=True)) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["sections"]["Second"] == [{"name": "c", "value": "3", "status": "broken", "remedy": "y"}]


@pytest.mark.parametrize(
    ("value", "status", "word"),
    [
        (None, "broken", "not set"),
        ("", "broken", "not set"),
        ("~/results", "broken", "~/results"),
        ("{tmp}/new/er", "warning", "does not exist yet"),
        ("{tmp}/file", "broken", "is not a folder"),
        (UNWRITABLE, "broken", "is not writable"),
        (UNWRITABLE + "/new", "broken", "cannot be created"),
        ("{tmp}", "ok", "GiB free"),
    ],
)
def test_results_folder(tmp_path, value, status, word):
    (tmp_path / "file").touch()
    environment = {} if value is None else {"nnUNet_results": value.format(tmp=tmp_path)}
    finding = next(finding for finding in machine.folders(environment) if finding.name == "nnUNet_results")
    assert finding.status == status and word in finding.value
    assert bool(finding.remedy) == (status != "ok")
    assert not (tmp_path / "new").exists(), "looking must not create folders"


def test_read_only_raw_data_are_fine():
    assert machine.folders({"nnUNet_raw": UNWRITABLE})[0].status == "ok"


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (None, "broken"),
        ("2.5.1", "broken"),
        ("2.8.1", "ok"),
        ("2.8.1+local", "ok"),
        ("2.9.0", "warning"),
        ("2.10", "warning"),
    ],
)
def test_nnunet_version(version, status):
    finding = software.nnunet_version(version)
    assert finding.status == status and bool(finding.remedy) == (status != "ok")


def test_cpu_torch_with_another_torchvision_is_explained():
    error = "RuntimeError: operator torchvision::nms does not exist"
    (finding,) = software.torchvision({"torchvision": error, "timm": error}, cuda_build=None)
    assert finding.status == "warning" and "CPU only" in finding.value and "nms" in finding.value
    assert "torch torchvision" in finding.remedy
    (finding,) = software.torchvision({"torchvision": error, "timm": error}, cuda_build="13.0")
    assert "different torch versions" in finding.value
    assert software.torchvision({"torchvision": None, "timm": None}, cuda_build=None)[0].status == "ok"


@pytest.mark.parametrize(("value", "status"), [("0", "warning"), ("-1", "broken"), ("all", "broken"), ("1", None)])
def test_worker_counts_nnunet_cannot_use(value, status):
    found = {finding.name: finding.status for finding in machine.cores({"nnUNet_n_proc_DA": value})}
    assert found.get("nnUNet_n_proc_DA") == status


def test_more_workers_than_cores_or_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "available_memory_gib", lambda: 8.0)
    finding = machine.cores({})[-1]
    assert (finding.status, finding.value) == ("warning", "unset: training starts 12 threads for batches on 2 cores")
    # Threads have no memory of their own; processes do.
    assert machine.memory({})[0].status == "ok"
    finding = machine.memory({"NNUNET_EXT_LOADER": "processes"})[0]
    assert (finding.status, finding.value) == (
        "warning", "8.0 GiB available; training and 18 worker processes take about 11.0 GiB before any data"
    )  # fmt: skip
    assert machine.memory({"NNUNET_EXT_LOADER": "processes", "nnUNet_n_proc_DA": "2"})[0].status == "ok"


def test_gpus_are_listed_with_their_memory():
    good = {"name": "Card", "error": None, "free": 8 * machine.GIB, "total": 24 * machine.GIB}
    taken = {"name": "Card", "error": "RuntimeError: no kernel image"}
    first, second = machine.gpu({"imports": {"torch": None}, "devices": [good, taken], "cuda_build": "13.0"})
    assert (first.status, first.value) == ("ok", "Card, 8.0 of 24.0 GiB free")
    assert second.status == "warning" and "no kernel image" in second.value


def test_gpu_that_torch_cannot_use(monkeypatch):
    torch_answer = {"imports": {"torch": None}, "devices": [], "cuda_build": "13.0", "cuda_error": "driver too old"}
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (finding,) = machine.gpu(torch_answer)
    assert finding.status == "warning" and "driver too old" in finding.value
    (finding,) = machine.gpu({**torch_answer, "cuda_build": None})
    assert "built for the CPU only" in finding.value
    (finding,) = machine.gpu({"imports": {"torch": "OSError: libcudart.so"}, "devices": []})
    assert finding.status == "broken" and "libcudart" in finding.value


def test_look_up_reports_why_a_class_is_not_found():
    entry = Entry("Broken", "nnunet_ext.no_such_module")
    answer = {
        "attached": True,
        "nnunetv2": "/nowhere",
        "classes": {"Broken": {"module": None, "error": "RuntimeError: Could not find Broken in nnunetv2 (long)"}},
        "messages": ["nnunet_ext: Broken cannot be loaded from nnunet_ext.no_such_module (ImportError: libcudart.so)"],
    }
    broken = software.look_up(answer, [entry])[-1]
    assert broken.status == "broken" and broken.value.endswith("(ImportError: libcudart.so)")


def test_a_copy_inside_nnunet_is_reported(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "copied.py").write_text("class Mine(nnUNetTrainer):\n    pass\n")
    (finding,) = software.shadowed(tmp_path, [Entry("Mine", "somewhere"), Entry("Other", "somewhere")])
    assert finding.status == "warning" and "copied.py" in finding.value


def test_an_interpreter_that_dies_is_reported():
    assert probes._ask("import os; os.abort()") == {"error": "the interpreter was killed by signal 6"}
    assert probes._ask("import no_such_package")["error"] == "ModuleNotFoundError: No module named 'no_such_package'"
