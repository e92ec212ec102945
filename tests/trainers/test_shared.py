"""What every trainer promises: settings that act, checkpoints that survive, signals, and NaN that stops."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import nnunet_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.errors import TrainingError
from nnunet_ext.files import write_json
from nnunet_ext.inference.model_folder import open_model_folder
from nnunet_ext.reports.training_records import read_run_record
from nnunet_ext.trainers.checkpoints import BEST, LATEST, PREVIOUS
from nnunet_ext.trainers.run_record import add_validation, count_gmacs
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba
from nnunet_ext.trainers.settings import TrainingSettings
from nnunet_ext.trainers.shared import EXIT_RESUBMIT

PLANS = "nnUNetPlansSegMambaTiny"


class SignalledTrainer(nnUNetTrainerSegMamba):
    """Sends itself a signal in the given batch of the given epoch."""

    send = None
    steps = 0

    def train_step(self, batch):
        self.steps += 1
        if self.send and (self.current_epoch, self.steps) == self.send[1]:
            os.kill(os.getpid(), self.send[0])
        return super().train_step(batch)


def files(trainer) -> set[str]:
    return {p.name for p in Path(trainer.output_folder).iterdir()}


def epoch_in(path: Path) -> int:
    return torch.load(path, weights_only=False)["current_epoch"]


def test_settings_are_used_and_recorded(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_PRECISION", "bf16")
    monkeypatch.setenv("NNUNET_EXT_EPOCS", "5")
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert "WARNING: the variable NNUNET_EXT_EPOCS has no effect; did you mean NNUNET_EXT_EPOCHS?" in log
    assert log.count("nnunet_ext: first batch after ") == 1
    record = json.loads(Path(trainer.output_folder, "run.json").read_text())
    used = {k: record["settings"][k] for k in ("epochs", "iterations", "val_iterations", "precision", "patch_size")}
    assert used == {
        "epochs": 2, "iterations": 2, "val_iterations": 1, "precision": "bf16", "patch_size": [16, 32, 32],
    }  # fmt: skip
    assert len(record["epoch_seconds"]) == 2
    assert record["backends"] == {"scan": "cpu", "convolution": "cpu"} and record["other_datasets"] == []
    assert record["environment"]["NNUNET_EXT_PRECISION"] == "bf16"
    assert record["environment"]["nnUNet_n_proc_DA"] == "0" and "PATH" not in record["environment"]
    assert record["parameters"] == sum(p.numel() for p in trainer.network.parameters())
    assert record["peak_memory_bytes"] > 1e8 and set(record["software"]) >= {"git", "nnunetv2", "torch", "nnunet_ext"}
    assert len(trainer.logger.get_value("train_losses", None)) == 2
    assert "checkpoint_final.pth" in files(trainer)
    assert not {LATEST, PREVIOUS} & files(trainer)
    assert any(Path(trainer.output_folder, "tensorboard").glob("events*"))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NNUNET_EXT_EPOCHS", "ten", "NNUNET_EXT_EPOCHS='ten' must be a whole number of at least 1"),
        ("NNUNET_EXT_ITERATIONS", "0", "NNUNET_EXT_ITERATIONS='0' must be"),
        ("NNUNET_EXT_PRECISION", "half", "NNUNET_EXT_PRECISION='half' must be one of fp16, bf16, fp32"),
    ],
)
def test_wrong_variables_are_named(variable, value, message):
    with pytest.raises(TrainingError, match=message):
        TrainingSettings.from_environment({variable: value})


def test_multiply_adds_are_those_of_convolutions_and_leave_the_network_as_it_is():
    layers = [torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.Conv3d(4, 3, 1)]
    network = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]).train()
    before = [p.clone() for p in network.parameters()]
    voxels = 8 * 16 * 16
    expected = voxels * (2 * 4 * 27 + 4 * 3) / 1e9
    assert count_gmacs(network, 2, (8, 16, 16), torch.device("cpu")) == round(expected, 3) == 0.0
    assert count_gmacs(network, 2, (80, 160, 160), torch.device("cpu")) == pytest.approx(1000 * expected, abs=5e-4)
    assert network.training and all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    data_dependent = torch.nn.Module()
    data_dependent.forward = lambda x: x if x.sum() > 0 else -x
    assert count_gmacs(data_dependent, 2, (8, 8, 8), torch.device("cpu")) is None


def test_validation_time_is_added_to_the_record(tmp_path):
    add_validation(str(tmp_path), 12.0, 3)  # nothing to add to
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "run.json", {"parameters": 5})
    add_validation(str(tmp_path), 12.0, 3)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == {"parameters": 5, "validation": {"seconds": 12.0, "cases": 3}}


def test_wrong_variable_ends_the_command_with_one_line(preprocessed):
    base = preprocessed.parent.parent
    command = ("nnUNetv2_train", "990", "3d_fullres", "0", "-p", "nnUNetPlansSegMambaTiny", "-device", "cpu")
    done = nnunet_dataset.run(base, *command, "-tr", "nnUNetTrainerSegMamba", check=False, NNUNET_EXT_PRECISION="fp17")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("nnunet_ext: NNUNET_EXT_PRECISION='fp17' must be one of")
    assert "Traceback" not in done.stderr
    assert not any((base / "nnUNet_results").iterdir())


def test_fp16_on_the_cpu_is_refused(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_PRECISION", "fp16")
    with pytest.raises(TrainingError, match="needs a CUDA device"):
        make_trainer(nnUNetTrainerSegMamba)


def test_results_folder_that_cannot_be_written_is_named(make_trainer, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file" / "results"))
    with pytest.raises(TrainingError, match=r"nnUNet_results=.*cannot be written"):
        make_trainer(nnUNetTrainerSegMamba)


def test_fewer_than_five_cases_is_explained(make_trainer, monkeypatch):
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    monkeypatch.setattr(trainer, "preprocessed_dataset_folder_base", "/nowhere")
    monkeypatch.setattr(trainer.dataset_class, "get_identifiers", staticmethod(lambda folder: ["a", "b", "c", "d"]))
    with pytest.raises(TrainingError, match="has 4 cases and nnU-Net's five folds need at least 5"):
        trainer.do_split()


def test_usr1_finishes_the_epoch_and_resumes_after_it(make_trainer, monkeypatch):
    trainer = make_trainer(SignalledTrainer)
    trainer.send = (signal.SIGUSR1, (0, 1))
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_RESUBMIT == 85
    assert trainer.steps == 2, "the epoch was not finished"
    assert signal.getsignal(signal.SIGUSR1) is before
    latest = Path(trainer.output_folder, LATEST)
    assert epoch_in(latest) == 1

    resumed = make_trainer(SignalledTrainer)
    resumed.load_checkpoint(str(latest))
    assert resumed.current_epoch == 1
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value), key
    resumed.run_training()
    assert resumed.steps == 2
    assert len(resumed.logger.get_value("train_losses", None)) == 2


def test_sigterm_stops_at_the_next_batch_and_repeats_the_epoch(make_trainer):
    trainer = make_trainer(SignalledTrainer)
    trainer.send = (signal.SIGTERM, (1, 3))
    with pytest.raises(SystemExit) as stopped:
        trainer.run_training()
    assert stopped.value.code == EXIT_RESUBMIT
    assert trainer.steps == 3
    resumed = make_trainer(SignalledTrainer)
    resumed.load_checkpoint(str(Path(trainer.output_folder, LATEST)))
    assert resumed.current_epoch == 1
    resumed.run_training()
    assert len(resumed.logger.get_value("train_losses", None)) == 2


def test_a_finished_run_that_goes_on_says_what_changes_and_keeps_its_history(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "1")
    first = make_trainer(nnUNetTrainerSegMamba)
    first.run_training()
    final = str(Path(first.output_folder, "checkpoint_final.pth"))

    def go_on(epochs: int) -> tuple[list[str], dict]:
        monkeypatch.setenv("NNUNET_EXT_EPOCHS", str(epochs))
        trainer = make_trainer(nnUNetTrainerSegMamba)
        trainer.load_checkpoint(final)
        trainer.run_training()
        lines = Path(trainer.log_file).read_text().splitlines()
        record = json.loads(Path(trainer.output_folder, "run.json").read_text())
        return [line for line in lines if "WARNING" in line], record

    warnings, record = go_on(1)  # as for a validation that was cut off
    assert warnings == [] and record["settings"]["epochs"] == 1
    ((warning,), record) = go_on(2)
    assert "epoch 1 continues a run of other settings: epochs 1, now 2. The learning rate goes from 0.01" in warning
    assert f" to {0.01 * 0.5**0.9:.3g}; run.json keeps both" in warning
    assert [(entry["event"], entry["epoch"], entry["settings"]["epochs"]) for entry in record["history"]] == [
        ("start", 0, 1), ("resume", 1, 1), ("resume", 1, 2),
    ]  # fmt: skip
    assert all(entry["date"] and entry["software"]["torch"] for entry in record["history"])
    ((warning,), record) = go_on(1)
    assert "the checkpoint has 2 epochs, more than 1: none follows" in warning
    assert record["settings"]["epochs"] == 2, "the settings the network was trained with"
    assert len(record["epoch_seconds"]) == 2 and read_run_record(Path(final).with_name("run.json"))["history"]


def test_a_finished_run_that_went_on_and_was_killed_continues_from_its_latest_checkpoint(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "1")
    trainer = make_trainer(SignalledTrainer)
    trainer.run_training()
    final = str(Path(trainer.output_folder, "checkpoint_final.pth"))
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "3")
    longer = make_trainer(SignalledTrainer)
    longer.load_checkpoint(final)
    longer.send = (signal.SIGUSR1, (1, 1))
    with pytest.raises(SystemExit):
        longer.run_training()
    resumed = make_trainer(SignalledTrainer)
    resumed.load_checkpoint(final)  # as for --val: the network that was finished
    assert resumed.current_epoch == 1
    resumed.plans_manager.plans["continue_training"] = True
    resumed.load_checkpoint(final)  # what nnU-Net asks for after --c
    assert resumed.current_epoch == 2


def test_latest_follows_the_interval_and_keeps_the_one_before(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "4")
    monkeypatch.setenv("NNUNET_EXT_CHECKPOINT_EVERY", "1")
    trainer = make_trainer(SignalledTrainer)
    trainer.send = (signal.SIGUSR1, (2, 5))
    with pytest.raises(SystemExit):
        trainer.run_training()
    folder = Path(trainer.output_folder)
    assert (epoch_in(folder / LATEST), epoch_in(folder / PREVIOUS)) == (3, 2)

    whole = (folder / LATEST).read_bytes()
    (folder / LATEST).write_bytes(whole[: len(whole) // 2])
    resumed = make_trainer(SignalledTrainer)
    resumed.load_checkpoint(str(folder / LATEST))
    assert resumed.current_epoch == 2
    warnings = [line for line in Path(resumed.log_file).read_text().splitlines() if "WARNING" in line]
    assert len(warnings) == 1 and "is damaged" in warnings[0] and PREVIOUS in warnings[0]

    for name in (PREVIOUS, BEST):
        (folder / name).unlink()
    with pytest.raises(TrainingError, match=r"damaged .* no earlier checkpoint"):
        make_trainer(SignalledTrainer).load_checkpoint(str(folder / LATEST))


def test_interrupted_write_leaves_the_old_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    path = Path(trainer.output_folder, LATEST)
    trainer.save_checkpoint(str(path))
    old = path.read_bytes()

    def dies(content, filename):
        Path(filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == old
    assert not [name for name in files(trainer) if name.startswith(".writing")]


def test_full_disk_ends_a_training_with_one_line_and_the_old_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    path = Path(trainer.output_folder, LATEST)
    trainer.save_checkpoint(str(path))
    old = path.read_bytes()
    words = "[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError(words)):

        def full(content, filename, error=error):
            Path(filename).write_bytes(b"half")
            raise error

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(TrainingError, match=r"cannot write .*checkpoint_latest\.pth: .*make room"):
            trainer.save_checkpoint(str(path))
        assert path.read_bytes() == old and not [name for name in files(trainer) if name.startswith(".writing")]


@pytest.mark.parametrize(
    ("precision", "remedy"), [("fp32", "a lower NNUNET_EXT_LEARNING_RATE"), ("bf16", "NNUNET_EXT_PRECISION=fp32")]
)
def test_nan_loss_stops_and_names_the_batch(make_trainer, monkeypatch, precision, remedy):
    monkeypatch.setenv("NNUNET_EXT_PRECISION", precision)
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    path = Path(trainer.output_folder, LATEST)
    trainer.save_checkpoint(str(path))
    trainer.lr_scheduler.step(0)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    batch = {
        "data": torch.full((2, 1, 16, 32, 32), float("nan")),
        "target": torch.zeros(2, 1, 16, 32, 32, dtype=torch.int16),
        "keys": np.array(["case_03", "case_07"]),
    }
    message = rf"loss is nan in epoch 0 at learning rate 0\.01.*case_03, case_07.* train with {remedy}$"
    with pytest.raises(TrainingError, match=message) as caught:
        trainer.train_step(batch)
    assert isinstance(caught.value, SystemExit) and caught.value.code == f"nnunet_ext: {caught.value}"
    assert all(torch.equal(trainer.network.state_dict()[k], v) for k, v in before.items())
    assert epoch_in(path) == 1


def test_output_that_is_not_finite_is_a_failed_case_by_name(make_trainer):
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    with torch.no_grad():
        trainer.network.out.conv.conv.bias[0] = float("nan")
    (case,) = trainer.do_split()[1]
    with pytest.raises(TrainingError, match=rf"could not write {case} \(the network's output is not finite; look at"):
        trainer.perform_actual_validation()
    assert not list(Path(trainer.output_folder, "validation").iterdir())


def test_validation_has_the_precision_of_the_training(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_PRECISION", "bf16")
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    seen = set()
    trainer.network.out.conv.conv.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    trainer.perform_actual_validation()
    assert seen == {torch.bfloat16}


def test_validation_writes_what_nnunet_would(make_trainer):
    torch.manual_seed(0)
    trainer = make_trainer(SignalledTrainer)
    trainer.initialize()
    folder = Path(trainer.output_folder, "validation")

    def written() -> tuple[dict, float, set[str]]:
        maps = {p.name: sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in folder.glob("*.nii.gz")}
        summary = json.loads((folder / "summary.json").read_text())
        names = {p.name for p in folder.iterdir()}
        shutil.rmtree(folder)
        return maps, summary["foreground_mean"]["Dice"], names

    nnUNetTrainer.perform_actual_validation(trainer, save_probabilities=True)
    theirs, dice, names = written()
    trainer.perform_actual_validation(save_probabilities=True)
    ours, _, same_names = written()
    assert same_names == names and len(theirs) == 1
    assert all((ours[name] == label_map).all() for name, label_map in theirs.items())
    trainer.perform_actual_validation()
    fast, fast_dice, _ = written()
    assert all((fast[name] != label_map).mean() < 1e-3 for name, label_map in theirs.items()), "more than ties"
    assert fast_dice == pytest.approx(dice, abs=1e-3)


@pytest.mark.parametrize("trainer_class", [nnUNetTrainer, nnUNetTrainerSegMamba])
def test_what_was_trained_opens_without_trust(make_trainer, trainer_class):
    trainer = make_trainer(trainer_class, plans="nnUNetPlans" if trainer_class is nnUNetTrainer else PLANS)
    trainer.num_epochs = trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    folder = Path(trainer.output_folder).parent
    for name in ("plans", "dataset"):  # copied by nnU-Net's command, not by its trainer
        content = trainer.plans_manager.plans if name == "plans" else trainer.dataset_json
        write_json(folder / f"{name}.json", content)
    open_model_folder(predictor, folder, ["0"])
    assert predictor.trainer_name == trainer_class.__name__
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(predictor.network.state_dict()[key], value), key
