"""Batches from threads in a training: the same for a seed, errors in one line, nothing left; and nnU-Net's own way."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from nnunet_ext.augmentation.threads import ThreadLoader
from nnunet_ext.errors import TrainingError
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba
from nnunet_ext.trainers.settings import TrainingSettings
from nnunet_ext.trainers.shared import EXIT_RESUBMIT


class LookingTrainer(nnUNetTrainerSegMamba):
    """Trains on nothing and keeps what it was given; sends itself a signal in the epoch it is told."""

    signalled: int | None = None

    def initialize(self) -> None:
        super().initialize()
        self.seen: list[torch.Tensor] = []

    def train_step(self, batch):
        self.seen.append(batch["data"].clone())
        assert not multiprocessing.active_children()
        if self.signalled == self.current_epoch:
            os.kill(os.getpid(), signal.SIGUSR1)
        return {"loss": torch.zeros(()).numpy()}

    def validation_step(self, batch):
        heads = self.label_manager.num_segmentation_heads - 1
        counts = torch.ones(heads).numpy()
        return {"loss": torch.zeros(()).numpy(), "tp_hard": counts, "fp_hard": counts, "fn_hard": counts}


def no_thread_is_left():
    return not [thread for thread in threading.enumerate() if thread.name.startswith("nnunet_ext_")]


def test_a_seed_gives_the_same_batches_by_any_threads_and_after_a_restart(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_SEED", "5")
    alone = make_trainer(LookingTrainer)
    alone.run_training()
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    stopped = make_trainer(LookingTrainer)
    stopped.signalled = 0
    with pytest.raises(SystemExit) as caught:
        stopped.run_training()
    assert caught.value.code == EXIT_RESUBMIT and no_thread_is_left()
    resumed = make_trainer(LookingTrainer)
    resumed.initialize()
    resumed.load_checkpoint(str(Path(resumed.output_folder, "checkpoint_latest.pth")))
    resumed.run_training()
    assert no_thread_is_left()
    assert len(alone.seen) == 4 and len(stopped.seen) == len(resumed.seen) == 2
    assert all(torch.equal(a, b) for a, b in zip(alone.seen, stopped.seen + resumed.seen, strict=True))
    record = json.loads(Path(resumed.output_folder, "run.json").read_text())
    assert record["settings"]["seed"] == 5 and record["settings"]["loader"] == "threads"


def test_a_damaged_case_ends_the_training_with_one_line(make_trainer, preprocessed, tmp_path, monkeypatch):
    folder = tmp_path / "nnUNet_preprocessed" / preprocessed.name
    shutil.copytree(preprocessed, folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    for file in folder.glob("nnUNetPlans_3d_fullres/*.b2nd"):
        if not file.name.endswith("_seg.b2nd"):
            file.write_bytes(file.read_bytes()[:64])
    trainer = make_trainer(LookingTrainer, folder=folder)
    with pytest.raises(TrainingError, match=r"^case \w+ cannot be read: "):
        trainer.run_training()
    assert no_thread_is_left()


def test_the_loader_is_chosen_by_a_variable(make_trainer, monkeypatch):
    trainer = make_trainer(LookingTrainer)
    trainer.initialize()
    assert all(isinstance(loader, ThreadLoader) for loader in trainer.get_dataloaders())
    monkeypatch.setenv("NNUNET_EXT_LOADER", "processes")
    trainer = make_trainer(LookingTrainer)
    trainer.initialize()
    assert all(isinstance(loader, SingleThreadedAugmenter) for loader in trainer.get_dataloaders())
    with pytest.raises(TrainingError, match="NNUNET_EXT_LOADER='thread' must be one of threads, processes"):
        TrainingSettings.from_environment({"NNUNET_EXT_LOADER": "thread"})
