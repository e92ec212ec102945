"""Names a shell would read as commands: bash runs every script with stubs, which must get them to the letter."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.pipelines import FULL, TRAIN, slurm

from nnunet_ext.slurm.folder import write
from nnunet_ext.slurm.pipeline import Training

NAMES = [
    "Odd$(touch PWNED)", "Odd`touch PWNED`", "Odd;touch PWNED;", 'Odd";touch PWNED;"', "Odd';touch PWNED;'",
    "Odd&touch PWNED&", "Odd|touch PWNED", "Odd>PWNED", "Odd${PWNED:=x}", "Odd\\", "Odd\\$(touch PWNED)", "a  b ",
    "#c", "*", "%j%%", "~", "!!", "é 脳 \u2028", "-rf", "$HOME", "'\"\\", "(x)", "{a,b}", "[0-9]", "=",
]  # fmt: skip
STUB = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } >> "$CALLS"
cat > /dev/null
echo "Job <7> is submitted"
"""
COMMANDS = (
    "nnunet_ext",
    "nnUNetv2_train",
    "nnUNetv2_predict",
    "nnUNetv2_apply_postprocessing",
    "sbatch",
    "bsub",
    "qsub",
)


def calls(file: Path) -> list[list[str]]:
    """The commands that were run, with their arguments."""
    if not file.exists():
        return []
    return [call.split("\0")[:-1] for call in file.read_text().split("\n\0")[:-1]]


@pytest.mark.parametrize(
    ("scheduler", "name"),
    [("slurm", name) for name in NAMES] + [(other, name) for other in ("lsf", "pbs", "local") for name in NAMES[1::8]],
)
def test_names_are_never_commands(tmp_path, scheduler, name):
    stubs = tmp_path / f"bin {name.replace(':', '')}"  # PATH cannot hold a colon
    stubs.mkdir()
    for command in COMMANDS:
        (stubs / command).write_text(STUB)
        (stubs / command).chmod(0o755)
    dataset = f"Dataset801_{name}"
    places = {kind: str(tmp_path / f"{kind} {name}") for kind in ("raw", "preprocessed", "results", "folder", "images")}
    pipeline = replace(
        FULL, scheduler=scheduler, dataset=dataset, configuration=name, path=str(stubs), setup=(), scratch="$TMPDIR",
        runs=(Training("nnUNetTrainerExt", name, name),), folds=("0",), references=places["images"],
        resources=replace(FULL.resources, extra=()), variables=(("NNUNET_EXT_EPOCHS", name),), **places,
    )  # fmt: skip
    write(pipeline)
    source = Path(places["preprocessed"], dataset)
    for folder in (source / name, source / "gt_segmentations"):
        folder.mkdir(parents=True, exist_ok=True)
    (source / "splits_final.json").write_text("[]")
    run_name = f"nnUNetTrainerExt__{name}__{name}"
    pooled = Path(places["results"], dataset, run_name, "crossval_results_folds_0")
    pooled.mkdir(parents=True)
    (pooled / "dataset.json").write_text("{}")
    final = Path(places["folder"], "predictions", f"{run_name}_postprocessed")
    final.mkdir(parents=True)

    log = tmp_path / "calls"
    here = tmp_path / "here"
    here.mkdir()
    indices = {"SLURM_ARRAY_TASK_ID": "0", "LSB_JOBINDEX": "1", "PBS_ARRAY_INDEX": "0"}
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}", "HOME": str(tmp_path), "CALLS": str(log), "TMPDIR": str(here),
        **indices,
    }  # fmt: skip
    scripts = sorted(Path(places["folder"]).glob("*.sh"))
    assert len(scripts) == 6 + (scheduler != "local")
    for script in scripts:
        done = subprocess.run(
            ["bash", script, "0"], cwd=here, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (script.name, done.stderr)
    assert not list(tmp_path.rglob("PWNED")), "a name was run as a command"

    made = {(call[0], *call[1:3]) if call[0] == "nnunet_ext" else call[0]: call for call in calls(log)}
    assert made["nnunet_ext", "slurm", "prepare"][3:9] == ["-d", dataset, "-c", name, "-p", name]
    assert made["nnUNetv2_train"][1:] == [dataset, name, "0", "-tr", "nnUNetTrainerExt", "-p", name, "--c"]
    predicted = f"{places['folder']}/predictions/{run_name}"
    assert made["nnUNetv2_predict"][1:13] == [
        "-d", dataset, "-i", places["images"], "-o", predicted, "-tr", "nnUNetTrainerExt", "-p", name, "-c", name,
    ]  # fmt: skip
    applied = made["nnUNetv2_apply_postprocessing"]
    assert applied[2] == predicted and applied[4] == str(final) and applied[8] == f"{pooled}/postprocessing.pkl"
    assert made["nnunet_ext", "evaluate", "-r"][3:6] == [places["images"], "-p", str(final)]
    if scheduler != "local":
        submitted = {"slurm": "sbatch", "lsf": "bsub", "pbs": "qsub"}[scheduler]
        assert [call[0] for call in calls(log)].count(submitted) == 6
    lines = [line for script in scripts for line in script.read_text().split("\n")]
    for line in (line for line in lines if line.startswith(("#SBATCH", "#BSUB", "#PBS"))):
        shlex.split(line.removeprefix("#"))  # every quote is closed
        assert "%j%%" not in line  # would be replaced


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--partition", "gpu\ntouch PWNED"), "line break"),
        (("--account", "a\rb"), "line break"),
        (("--mail-user", "a\x1bb"), "line break"),
        (("--setup", "module load cuda\ntouch PWNED"), "line break"),
        (("--sbatch", "--qos=a\ntouch PWNED"), "line break"),
        (("--scratch", "$TMPDIR\ntouch PWNED"), "line break"),
        (("--scratch", "$(touch PWNED)"), "--scratch .* must be a folder"),
        (("-o", "jobs\nPWNED"), "line break"),
        (("-i", "in\nPWNED"), "line break"),
        (("--sbatch", "a'b"), "no closing quotation"),
        (("--sbatch", "long"), "--sbatch long is no option"),
        (("--sbatch", """--comment='a"'"'b'" -x"""), "both kinds of quotes"),
        (("--partition=-x",), "begins with a dash"),
        (("--account", "a\\b"), "backslash"),
        (("-o", "x" * 300), "too long"),
        (("-p", "x" * 300), "too long"),
    ],
)
def test_what_no_script_can_hold_is_refused(base, words, message):
    before = sorted(base.rglob("*"))
    done = slurm(base, *TRAIN, *words)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("nnunet_ext slurm: ")
    assert re.search(message, line, re.IGNORECASE), line
    assert sorted(base.rglob("*")) == before


def test_folder_with_a_line_break_in_its_name_is_refused(base):
    (base / "nnUNet_preprocessed" / "Dataset008_a\ntouch PWNED").mkdir()
    done = slurm(base, "-d", "8", *TRAIN[2:])
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "line break" in done.stderr


def test_variables_of_other_names_are_left_out(base):
    done = slurm(base, *TRAIN, "--dry-run", **{"NNUNET_EXT_EPOCHS;touch PWNED;": "1", "NNUNET_EXT_EPOCHS": "a b"})
    assert "PWNED" not in done.stdout and "export NNUNET_EXT_EPOCHS='a b'\n" in done.stdout


def test_values_with_blanks_stay_one_word(base):
    done = slurm(base, *TRAIN, "--dry-run", "--partition", "a b", "--sbatch", "--comment='c # d' --constraint a100")
    assert '#SBATCH --partition="a b"\n' in done.stdout
    assert '#SBATCH --comment="c # d"\n' in done.stdout and "#SBATCH --constraint a100\n" in done.stdout
