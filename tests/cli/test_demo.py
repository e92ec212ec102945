"""The demo's refusals, and what it does with the commands it runs. The demo itself takes minutes: `.ci/run` runs it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_ext.cli.demo import _results, _small_patch
from nnunet_ext.cli.main import main
from nnunet_ext.cli.progress import Epochs, stages
from nnunet_ext.data.phantoms import make_dataset
from nnunet_ext.files import write_json


def demo(*arguments, folder):
    command = [sys.executable, "-m", "nnunet_ext", "demo", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def refusal(*arguments, folder, status=1):
    """The one line on stderr of a demo that did nothing."""
    run = demo(*arguments, folder=folder)
    assert run.returncode == status, run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("nnunet_ext demo: ") and run.stdout == ""
    return line


def test_data_that_is_no_data_set(tmp_path):
    assert "has no dataset.json" in refusal("--data", tmp_path, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_few_cases_leave_no_folder(tmp_path):
    data = make_dataset(tmp_path / "Dataset001_Few", num_training=5, num_test=0)
    run = demo("--data", data, "-o", "out", folder=tmp_path)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert "has 5 cases; expected at least 5" in line and "one to hold out" in line
    (data / "imagesTr" / "phantom_002_0000.nii.gz").unlink()
    (data / "imagesTr" / "phantom_002_0001.nii.gz").touch()
    assert "phantom_002_0000.nii.gz is missing" in refusal("--data", data, "-o", "out", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset001_Few"]


def test_folders_it_must_not_touch(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for flags in ([], ["--overwrite"]):
        assert "not from an earlier demo" in refusal("-o", mine, *flags, folder=tmp_path)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]

    earlier = tmp_path / "nnunet_ext_demo"
    earlier.mkdir()
    (earlier / "demo.json").write_text("{}")
    assert "add --overwrite" in refusal(folder=tmp_path)
    data = make_dataset(earlier / "Dataset001_Inside", num_training=1, num_test=0)
    assert "which --overwrite removes" in refusal("--overwrite", "--data", data, folder=tmp_path)
    assert data.is_dir()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert "file is a file; choose another folder" in refusal("-o", "file", folder=tmp_path)
    assert "cannot write" in refusal("-o", "file/demo", folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "flags", [["--epochs", "0"], ["--cases", "5"], ["--seed", "-1"], ["--trainer", "nnUNetTrainerNoSuch"]]
)
def test_wrong_usage(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["demo", *flags])
    assert exit.value.code == 2 and flags[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def run_fake(tmp_path, script, **popen):
    """A process that calls `run_logged` on a shell script of that content, found on PATH."""
    fake = tmp_path / "nnUNetv2_fake"
    fake.write_text("#!/bin/sh\n" + script)
    fake.chmod(0o755)
    code = (
        # A test run in the background hands down ignored signals.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "import sys; from pathlib import Path; from nnunet_ext.cli import running, main\n"
        "from nnunet_ext.errors import UserError\n"
        "with running.stop_on_signals():\n"
        "    try:\n"
        "        running.run_logged(['nnUNetv2_fake', 'a b'], Path('log'), Path('.'), {'THIS': '1'},\n"
        "                           lambda line: line.upper() if 'show' in line else None)\n"
        "    except UserError as error:\n"
        "        sys.exit(str(error))\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen,
    )  # fmt: skip


def test_command_is_printed_logged_and_shown_in_brief(tmp_path):
    run = run_fake(tmp_path, 'echo "show $THIS $1"; echo hidden; echo "40%|####"; echo hidden too >&2\n')
    out, err = run.communicate()
    assert run.returncode == 0 and err == ""
    assert out == "\n$ nnUNetv2_fake 'a b'\nSHOW 1 A B\n"
    assert (tmp_path / "log").read_text() == "show 1 a b\nhidden\n40%|####\nhidden too\n"


def test_failure_shows_last_lines_and_names_the_log(tmp_path):
    run = run_fake(tmp_path, "echo 'ValueError: no cases'; echo 'RuntimeError: worker died'; seq 100\nexit 7\n")
    _, err = run.communicate()
    lines = err.splitlines()
    assert lines[:-1] == [f"  | {number}" for number in range(86, 101)]
    assert lines[-1] == (
        "nnUNetv2_fake failed with exit status 7 (ValueError: no cases); its last lines are above, all of them in log"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_stops_command_and_workers(tmp_path, number):
    run = run_fake(tmp_path, "sleep 300 & echo $$ $! > pids.new; mv pids.new pids; wait; sleep 300\n")
    deadline = time.monotonic() + 120
    while not (tmp_path / "pids").exists():
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(alive(pid) for pid in pids)
    run.send_signal(number)
    run.communicate()
    assert run.returncode != 0
    while any(alive(pid) for pid in pids):  # the kernel needs a moment to reap an orphan
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_one_line_per_epoch():
    show = Epochs(num_epochs=4)
    log = """
2026-01-31 12:00:00.100000: Epoch 1
2026-01-31 12:00:00.100001: Current learning rate: 0.0076
2026-01-31 12:00:09.000000: train_loss -0.2513
2026-01-31 12:00:09.000001: val_loss 0.11
2026-01-31 12:00:09.000002: Pseudo dice [np.float32(0.8), np.float32(0.4), np.float32(nan), 6e-05]
2026-01-31 12:00:10.000003: Epoch time: 10.0 s
2026-01-31 12:00:10.000004: Yayy! New best EMA pseudo Dice: 0.6
"""
    shown = [text for line in log.splitlines() if (text := show(line)) is not None]
    (line,) = shown
    assert line.split() == ("epoch 2/4 loss -0.2513 pseudo Dice 0.40 (0.80 0.40 nan 0.00) 10.0 s, 0:20 left".split())


def test_citations_and_bars_stay_in_the_log():
    assert stages("Preprocessing dataset Dataset900_Phantoms") == "  Preprocessing dataset Dataset900_Phantoms"
    for line in ("", "#" * 80, "Please cite the following paper", " 40%|####      | 4/10 [00:02<00:03,  1.9it/s]"):
        assert stages(line) is None


def test_missed_label_makes_hd95_infinite(tmp_path):
    def case(name, dice, hd95, status):
        metrics = {str(k): {"Dice": d, "HD95": h} for k, (d, h) in enumerate(zip(dice, hd95, strict=True))}
        return {"case": name, "metrics": metrics, "status": {str(k): s for k, s in enumerate(status)}}

    summary = {
        "metric_per_case": [
            case("good", [0.9, 0.7], [1.0, 2.0], ["both", "both"]),
            case("missed", [0.9, 0.0], [1.0, None], ["both", "missed"]),
            case("absent", [0.9, None], [1.0, None], ["both", "both_empty"]),
        ],
        "foreground_mean": {"Dice": 0.7, "HD95": None},
        "counts": {"0": {"missed": 0, "false_alarms": 0}, "1": {"missed": 1, "false_alarms": 0}},
    }
    write_json(tmp_path / "evaluation" / "summary.json", summary)
    results = _results(tmp_path)
    assert results["cases"]["good"] == {"dice": pytest.approx(0.8), "hd95_mm": pytest.approx(1.5)}
    assert results["cases"]["missed"] == {"dice": pytest.approx(0.45), "hd95_mm": math.inf}
    assert results["cases"]["absent"] == {"dice": pytest.approx(0.9), "hd95_mm": pytest.approx(1.0)}
    assert (results["mean_foreground_dice"], results["missed"]) == (0.7, 1)


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        ([24, 64, 64], [16, 48, 48]),
        ([128, 128, 128], [40, 40, 40]),
        ([5, 320, 320], [5, 144, 144]),
        ([20, 48, 48], [20, 48, 48]),
    ],
)
def test_patch_for_the_cpu(planned, expected):
    assert _small_patch(planned) == expected
