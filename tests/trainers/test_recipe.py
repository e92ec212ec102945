"""How weights are updated: each paper's recipe, and what the environment changes of it."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext import models
from nnunet_ext.errors import TrainingError
from nnunet_ext.trainers.checkpoints import LATEST
from nnunet_ext.trainers.recipe import ADAMW, Recipe, learning_rate, optimizer_and_schedule
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba
from nnunet_ext.trainers.settings import TrainingSettings
from nnunet_ext.trainers.shared import epochs_without_progress

# Optimiser, highest learning rate, weight decay, schedule, epochs of warm-up, largest norm of the gradients.
NNUNET = ("sgd", 1e-2, 3e-5, "poly", 0, 12.0)
PAPERS = {
    "nnUNetTrainerExt": NNUNET,
    "nnUNetTrainerSegMamba": NNUNET,
    "nnUNetTrainerUNETRPP": NNUNET,
    "nnUNetTrainerMedSegDiffV2": ("adamw", 3e-4, 1e-2, "poly", 0, 1.0),
    "nnUNetTrainerMedSegDiffV2Direct": ("adamw", 3e-4, 1e-2, "poly", 0, 1.0),
    "nnUNetTrainerMedSegDiffV2Paper": ("adamw", 1e-4, 1e-2, "constant", 0, 1.0),
    "nnUNetTrainerNetwork": ("adamw", 3e-4, 1e-2, "poly", 0, 1.0),
    "nnUNetTrainerSAMMed3D": ("adamw", 3e-4, 0.1, "poly", 0, 1.0),
    "nnUNetTrainerInteractive": ("adamw", 1e-3, 1e-2, "poly", 0, 1.0),
    "nnUNetTrainerUniverSeg": ("adamw", 1e-4, 0.0, "poly", 0, 5.0),
}


def test_every_trainer_has_its_papers_recipe():
    plain = models.load("nnunet_ext.trainers.plain:nnUNetTrainerExt")
    rows = {t.name: models.load(f"{t.module}:{t.name}") for model in models.OWN for t in model.trainers}
    found = {name: astuple(trainer.recipe) for name, trainer in {plain.__name__: plain, **rows}.items()}
    assert found == PAPERS


def test_defaults_update_as_nnunet_does():
    def updated(make):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        optimizer, schedule = make(network)
        for epoch in range(4):
            schedule.step(epoch)
            optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        return [*network.parameters()]

    def of_nnunet(network):
        stand_in = nnUNetTrainer.__new__(nnUNetTrainer)
        stand_in.network, stand_in.num_epochs = network, 4
        stand_in.initial_lr, stand_in.weight_decay = 1e-2, 3e-5
        return stand_in.configure_optimizers()

    ours = updated(lambda network: optimizer_and_schedule(network, Recipe(), epochs=4))
    assert all(torch.equal(a, b) for a, b in zip(ours, updated(of_nnunet), strict=True))


def test_schedules_have_known_values():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    reference = PolyLRScheduler(optimizer, 1.0, 8)
    for epoch in range(8):
        reference.step(epoch)
        assert learning_rate(Recipe(learning_rate=1.0), epoch, 8) == reference.get_last_lr()[0]
    warm = Recipe(learning_rate=1.0, schedule="cosine", warmup_epochs=3)
    rates = [learning_rate(warm, epoch, 7) for epoch in range(7)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert learning_rate(Recipe(learning_rate=1.0, schedule="constant"), 6, 7) == 1


def test_another_optimiser_brings_its_own_usual_recipe():
    wanted = TrainingSettings.from_environment({"NNUNET_EXT_OPTIMIZER": "adamw", "NNUNET_EXT_WEIGHT_DECAY": "0"})
    assert wanted.recipe(Recipe()) == Recipe("adamw", ADAMW.learning_rate, 0.0, gradient_clip=ADAMW.gradient_clip)
    own = Recipe("adamw", learning_rate=1e-4, gradient_clip=5.0)
    assert wanted.recipe(own) == Recipe("adamw", 1e-4, 0.0, gradient_clip=5.0)
    assert TrainingSettings.from_environment({"NNUNET_EXT_OPTIMIZER": "sgd"}).recipe(own) == Recipe()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NNUNET_EXT_OPTIMIZER", "lion", "NNUNET_EXT_OPTIMIZER='lion' must be one of sgd, adamw"),
        ("NNUNET_EXT_SCHEDULE", "step", "NNUNET_EXT_SCHEDULE='step' must be one of poly, cosine, constant"),
        ("NNUNET_EXT_LEARNING_RATE", "2", "NNUNET_EXT_LEARNING_RATE='2' must be a number above 0 and up to 1"),
        ("NNUNET_EXT_WEIGHT_DECAY", "-1", "NNUNET_EXT_WEIGHT_DECAY='-1' must be a number from 0 and up to 1"),
        ("NNUNET_EXT_GRADIENT_CLIP", "inf", "NNUNET_EXT_GRADIENT_CLIP='inf' must be a number above 0"),
        ("NNUNET_EXT_WARMUP_EPOCHS", "0.5", "NNUNET_EXT_WARMUP_EPOCHS='0.5' must be a whole number"),
        ("NNUNET_EXT_PATIENCE", "0", "NNUNET_EXT_PATIENCE='0' must be a whole number of at least 1"),
    ],
)
def test_wrong_values_are_named(variable, value, message):
    with pytest.raises(TrainingError, match=message):
        TrainingSettings.from_environment({variable: value})


def test_the_environment_changes_the_training_and_its_record(make_trainer, monkeypatch):
    asked = {
        "OPTIMIZER": "adamw", "LEARNING_RATE": "2e-3", "WEIGHT_DECAY": "0.05", "SCHEDULE": "cosine",
        "WARMUP_EPOCHS": "1", "GRADIENT_CLIP": "0.001", "EPOCHS": "3", "CHECKPOINT_EVERY": "1",
    }  # fmt: skip
    for name, value in asked.items():
        monkeypatch.setenv(f"NNUNET_EXT_{name}", value)
    trainer = make_trainer(nnUNetTrainerSegMamba)
    clipped = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: clipped.append(norm) or clip(p, norm))
    trainer.run_training()
    record = json.loads(Path(trainer.output_folder, "run.json").read_text())["settings"]
    assert {name.upper(): str(record[name.lower()]) for name in asked} == {**asked, "LEARNING_RATE": "0.002"}
    assert isinstance(trainer.optimizer, torch.optim.AdamW) and set(clipped) == {0.001}
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.05
    assert trainer.logger.get_value("lrs", step=None) == pytest.approx([1e-3, 2e-3, 1e-3])

    final = str(Path(trainer.output_folder, "checkpoint_final.pth"))
    monkeypatch.setenv("NNUNET_EXT_WEIGHT_DECAY", "0.01")
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.load_checkpoint(final)
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.01
    monkeypatch.setenv("NNUNET_EXT_OPTIMIZER", "sgd")
    with pytest.raises(TrainingError, match="was trained with adamw, not sgd; set NNUNET_EXT_OPTIMIZER=adamw"):
        make_trainer(nnUNetTrainerSegMamba).load_checkpoint(final)


def test_a_warm_up_as_long_as_the_training_is_refused(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_WARMUP_EPOCHS", "2")
    with pytest.raises(TrainingError, match="NNUNET_EXT_WARMUP_EPOCHS=2 must be fewer than the 2 epochs"):
        make_trainer(nnUNetTrainerSegMamba)


class OwnOptimiser(nnUNetTrainerSegMamba):
    def configure_optimizers(self):
        return nnUNetTrainer.configure_optimizers(self)


def test_an_optimiser_of_ones_own_is_not_asked_in_vain(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_SCHEDULE", "cosine")
    with pytest.raises(TrainingError, match=r"OwnOptimiser has its own configure_optimizers.* NNUNET_EXT_SCHEDULE"):
        make_trainer(OwnOptimiser).initialize()


def test_epochs_since_the_best_are_counted():
    assert [epochs_without_progress(values) for values in ([], [0.1], [0.1, 0.2], [0.3, 0.2, 0.3])] == [0, 0, 0, 2]
    assert epochs_without_progress([float("nan"), 0.1, float("nan")]) == 1


class LearnsNothing(nnUNetTrainerSegMamba):
    def validation_step(self, batch):
        found = super().validation_step(batch)
        return {**found, **{name: np.full_like(found[name], 3) for name in ("tp_hard", "fp_hard", "fn_hard")}}


def test_patience_ends_the_training_and_a_continued_one_at_once(make_trainer, monkeypatch):
    for name, value in {"PATIENCE": "2", "EPOCHS": "50", "ITERATIONS": "1"}.items():
        monkeypatch.setenv(f"NNUNET_EXT_{name}", value)
    trainer = make_trainer(LearnsNothing)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert len(trainer.logger.get_value("train_losses", None)) == 3
    assert (folder / "checkpoint_final.pth").is_file() and not (folder / LATEST).exists()
    why = "the EMA Dice has not risen for 2 epochs (NNUNET_EXT_PATIENCE=2)"
    assert json.loads((folder / "run.json").read_text())["ended_early"] == why
    again = make_trainer(LearnsNothing)
    again.load_checkpoint(str(folder / "checkpoint_final.pth"))
    again.run_training()
    assert again.current_epoch == 3 and len(again.logger.get_value("train_losses", None)) == 3


def test_plans_may_say_how_to_train_and_the_environment_wins(make_trainer, preprocessed, tmp_path, monkeypatch):
    plans = json.loads((preprocessed / "nnUNetPlansSegMambaTiny.json").read_text())
    training = {"epochs": 7, "iterations": 9, "optimizer": "adamw", "learning_rate": 0.003}
    plans["configurations"]["3d_fullres"]["training"] = training

    def make():
        (tmp_path / "own.json").write_text(json.dumps(plans))
        (tmp_path / "dataset.json").write_bytes((preprocessed / "dataset.json").read_bytes())
        return make_trainer(nnUNetTrainerSegMamba, "own", tmp_path)

    monkeypatch.delenv("NNUNET_EXT_ITERATIONS")
    trainer = make()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (2, 9)
    assert trainer.recipe == Recipe("adamw", learning_rate=0.003)
    monkeypatch.setenv("NNUNET_EXT_LEARNING_RATE", "0.5")
    assert make().recipe == Recipe("adamw", learning_rate=0.5)
    # Another optimiser than the plans': its own usual recipe, not their learning rate.
    monkeypatch.delenv("NNUNET_EXT_LEARNING_RATE")
    monkeypatch.setenv("NNUNET_EXT_OPTIMIZER", "sgd")
    assert make().recipe == Recipe()
    for wrong, message in (
        ({"momentum": 0.9}, "nnUNetPlansSegMambaTiny.json: 'training' has 'momentum'; it may have epochs, iterations"),
        ({"learning_rate": "fast"}, "'training' taken as NNUNET_EXT_LEARNING_RATE='fast' must be a number above 0"),
        ([], "nnUNetPlansSegMambaTiny.json: 'training' has"),
    ):
        plans["configurations"]["3d_fullres"]["training"] = wrong
        with pytest.raises(TrainingError, match=message):
            make()
