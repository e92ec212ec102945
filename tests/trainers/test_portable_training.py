"""Plans, a training step, its checkpoints and a prediction without what only Linux has. See `helpers.without_posix`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers import nnunet_dataset

TESTS = Path(__file__).parents[1]

TRAIN = """
import json, sys
from pathlib import Path

import torch
from nnunet_ext.cli.main import main
from nnunet_ext.trainers.checkpoints import LATEST
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba

folder = Path(sys.argv[1])
assert main(["plan", "-d", "990", "--model", "segmamba", "--size", "tiny", "--patch-size", "16", "32", "32",
             "--batch-size", "2", "-c", "3d_fullres", "-o", "nnUNetPlansPortable"]) == 0
plans = json.loads((folder / "nnUNetPlansPortable.json").read_text())
description = json.loads((folder / "dataset.json").read_text())

def trainer():
    settings = {**plans, "continue_training": False}
    made = nnUNetTrainerSegMamba(settings, "3d_fullres", 0, description, torch.device("cpu"))
    made.perform_actual_validation = lambda *_: None  # nnU-Net's own, with worker processes
    return made

first = trainer()
first.run_training()
path = Path(first.output_folder)
second = trainer()
second.initialize()
second.save_checkpoint(str(path / LATEST))
second.save_checkpoint(str(path / LATEST))  # over the one before, which is kept
third = trainer()
third.load_checkpoint(str(path / LATEST))
third.save_checkpoint(str(path / LATEST))
assert third.was_initialized

model = ("-d", "990", "-c", "3d_fullres", "-tr", "nnUNetTrainerSegMamba", "-p", "nnUNetPlansPortable", "-f", "0")
images = folder.parents[1] / "nnUNet_raw" / folder.name / "imagesTs"
how = ("-device", "cpu", "-npp", "1", "-step_size", "1", "--disable_tta", "--disable_progress_bar")
assert main(["predict", *model, "-i", str(images), "-o", "predictions", *how]) == 0
"""


def test_plans_training_checkpoints_and_prediction(preprocessed, tmp_path):
    base = preprocessed.parent.parent
    environment = {
        **nnunet_dataset.environment(base),
        **{f"NNUNET_EXT_{name}": "1" for name in ("EPOCHS", "ITERATIONS", "VAL_ITERATIONS", "CHECKPOINT_EVERY")},
        "nnUNet_results": str(tmp_path / "results"),
        "nnUNet_n_proc_DA": "0",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
        "USER": "nobody",
    }
    start = "from helpers import without_posix; without_posix.enter()\n"
    command = [sys.executable, "-X", "warn_default_encoding", "-c", start + TRAIN, str(preprocessed)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1
    (folder,) = (tmp_path / "results" / preprocessed.name).glob("*/fold_0")
    assert json.loads((folder / "run.json").read_text())["peak_memory_bytes"] is None, "a peak from nowhere"
    assert {"checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth"} <= {
        path.name for path in folder.iterdir()
    }
