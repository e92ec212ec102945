"""Ctrl-C and SIGTERM end nnUNetv2_train with one line and the status docs/cluster.md states, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers import nnunet_dataset

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on the interpreter's system")

# nnU-Net's command; the named step says that it has begun and takes a minute.
COMMAND = """
import sys, time
from nnunetv2.run import run_training
from nnunet_ext.trainers import segmamba, shared

def lasts(*arguments, **options):
    print("HERE", flush=True)
    time.sleep(60)

step = sys.argv.pop(1)
if step in ("loading", "initialize"):
    if step == "loading":  # as with --c
        run_training.maybe_load_checkpoint = lambda trainer, *more: trainer.initialize()
    segmamba.nnUNetTrainerSegMamba.build_network_architecture = staticmethod(
        lambda plans_manager, configuration_manager, channels, classes, enable_deep_supervision: lasts()
    )
elif step == "validation":
    shared.SharedTrainer.run_training = lambda self: None
    shared.validate_fold = lasts
else:
    batch = shared.SharedTrainer.train_step

    def train_step(self, data):
        print("HERE", flush=True)
        return batch(self, data)

    shared.SharedTrainer.train_step = train_step
run_training.run_training_entry()
"""


@pytest.mark.parametrize(
    ("step", "number", "status", "words"),
    [
        ("loading", signal.SIGINT, 130, "interrupted with exit status 130"),
        ("loading", signal.SIGTERM, 143, "terminated with exit status 143"),
        ("initialize", signal.SIGTERM, 85, "terminated with exit status 85; continue with --c"),
        ("training", signal.SIGINT, 130, "interrupted with exit status 130; continue with --c"),
        ("validation", signal.SIGINT, 130, "interrupted with exit status 130; continue with --c"),
        ("validation", signal.SIGTERM, 85, "terminated with exit status 85; continue with --c"),
    ],
)
def test_signals_end_the_command_with_one_line(preprocessed, tmp_path, step, number, status, words):
    variables = {
        **nnunet_dataset.environment(preprocessed.parent.parent),
        "nnUNet_results": str(tmp_path),
        "NNUNET_EXT_EPOCHS": "2",
        "NNUNET_EXT_ITERATIONS": "500",
    }
    arguments = ("990", "3d_fullres", "0", "-p", "nnUNetPlansSegMambaTiny", "-device", "cpu")
    run = subprocess.Popen(
        [sys.executable, "-c", COMMAND, step, *arguments, "-tr", "nnUNetTrainerSegMamba"],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    overdue = threading.Timer(120, os.killpg, (run.pid, signal.SIGKILL))
    overdue.start()
    try:
        printed = []
        for line in run.stdout:
            printed.append(line)
            if line == "HERE\n":
                break
        # As a terminal and a batch system do it: to the workers as well.
        os.killpg(run.pid, number)
        _, error = run.communicate()
    finally:
        overdue.cancel()
    assert run.returncode == status, (printed, error)
    said = [line for line in error.splitlines() if line.startswith("nnunet_ext: ")]
    assert "Traceback" not in error and len(said) == 1 and words in said[0], error
