"""A pipeline with every option, and the command `nnunet_ext slurm` as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from nnunet_ext.slurm.job import Resources
from nnunet_ext.slurm.pipeline import Pipeline, Training

DATASET = "Dataset007_Toy"

FULL = Pipeline(
    scheduler="slurm",
    dataset="Dataset004_Hippocampus",
    configuration="3d_fullres",
    runs=(
        Training("nnUNetTrainerSegMamba", "nnUNetPlansSegMambaTiny", "nnUNetPlans_3d_fullres"),
        Training("nnUNetTrainerExt", "nnUNetPlans", "nnUNetPlans_3d_fullres"),
    ),
    folds=("0", "1", "2", "3", "4"),
    folder="/home/me/my jobs",
    raw="/data/nnUNet_raw",
    preprocessed="/data/nnUNet_preprocessed",
    results="/data/nnUNet_results",
    path="/home/me/venv/bin",
    resources=Resources(
        cpus=12, gpus=1, memory_mib=65536, minutes=1440, partition="gpu", account="lab", mail_user="me@example.org",
        mail_type="END,FAIL", extra=("--qos=long",),
    ),
    images="/data/nnUNet_raw/Dataset004_Hippocampus/imagesTs",
    references="/data/nnUNet_raw/Dataset004_Hippocampus/labelsTs",
    scratch="$TMPDIR",
    at_once=4,
    cpu_partition="cpu",
    setup=("module load cuda",),
    variables=(("NNUNET_EXT_EPOCHS", "250"),),
)  # fmt: skip


def slurm(base: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    folders = {name: str(base / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NNUNET_EXT", "nnUNet"))}
    command = [sys.executable, "-m", "nnunet_ext", "slurm", *words]
    return subprocess.run(
        command, cwd=base, env={**environment, **folders, **variables}, capture_output=True, text=True, timeout=120
    )


TRAIN = ("-d", "7", "-tr", "nnUNetTrainerExt", "-c", "3d_fullres")
