"""Small preprocessed data sets for tests that train: made once per test run by nnU-Net's own command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

COMMANDS = Path(sys.executable).parent
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def environment(base: Path) -> dict[str, str]:
    """nnU-Net's folders under `base`, one worker of each kind, one thread."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("NNUNET_EXT_", "nnUNet"))},
        **{name: str(base / name) for name in FOLDERS},
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def run(base: Path, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with `base`'s folders; with `check`, fail showing its output."""
    done = subprocess.run(
        command, env={**environment(base), **variables}, capture_output=True, text=True, timeout=600, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def make(base: Path, number: int = 990, labels: dict | None = None, **dataset_json: object) -> Path:
    """Phantoms, preprocessed for 3d_fullres with a patch of 16x32x32 and batch 2; returns the preprocessed folder.

    Args:
        base: gets nnU-Net's three folders.
        number: the data set's.
        labels: replaces the labels of dataset.json, for regions or an ignore label.
        **dataset_json: further entries of dataset.json.
    """
    from nnunet_ext.data.phantoms import make_dataset

    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    raw = make_dataset(base / "nnUNet_raw" / f"Dataset{number}_Phantoms", num_training=5, num_test=1)
    description = json.loads((raw / "dataset.json").read_text())
    if labels is not None:
        description["labels"] = labels
    (raw / "dataset.json").write_text(json.dumps({**description, **dataset_json}))
    flags = ("-c", "3d_fullres", "-np", "1", "-npfp", "1")
    run(base, "nnUNetv2_plan_and_preprocess", "-d", str(number), *flags)
    small = ("--patch-size", "16", "32", "32", "--batch-size", "2", "-c", "3d_fullres")
    run(base, "nnunet_ext", "plan", "-d", str(number), "--model", "segmamba", "--size", "tiny", *small)
    return base / "nnUNet_preprocessed" / raw.name
