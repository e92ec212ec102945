"""MedSegDiff-V2 as nnU-Net sees it: trained by its trainers, predicted by its commands, in 2d and 3d."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import nnunet_dataset

from nnunet_ext.architectures.medsegdiff.sampled import TrainingOutput
from nnunet_ext.steps.medsegdiff import ALPHA, Batch, diffused_mask, published_step
from nnunet_ext.trainers.medsegdiff import (
    nnUNetTrainerMedSegDiffV2,
    nnUNetTrainerMedSegDiffV2Direct,
    nnUNetTrainerMedSegDiffV2Paper,
)

PLANS = "nnUNetPlansMedSegDiffV2Tiny"


@pytest.fixture(scope="module")
def planned(preprocessed) -> Path:
    options = ("--size", "tiny", "--patch-size", "16", "32", "32", "--batch-size", "2", "-c", "3d_fullres")
    nnunet_dataset.run(preprocessed.parent.parent, "nnunet_ext", "plan", "-d", "990", "--model", "medsegdiff", *options)
    return preprocessed


def test_the_mask_that_is_noised():
    labels = torch.tensor([[[[0, 1, 2, 3]]]])
    x0, counted = diffused_mask(labels, 3, False, ignore_label=3)
    assert x0[0, :, 0].T.tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]]
    assert counted.flatten().tolist() == [1, 1, 1, 0]
    regions = torch.tensor([[[[1, 0, 1]], [[0, 1, 1]], [[0, 0, 1]]]])
    x0, counted = diffused_mask(regions, 2, True, ignore_label=3)
    assert x0[0, :, 0].T.tolist() == [[1, -1], [-1, 1], [0, 0]] and counted.flatten().tolist() == [1, 1, 0]
    assert diffused_mask(regions[:, :2], 2, True, None)[0][0, :, 0].T.tolist() == [[1, -1], [-1, 1], [1, 1]]


@pytest.mark.parametrize(
    "trainer_class", [nnUNetTrainerMedSegDiffV2, nnUNetTrainerMedSegDiffV2Paper, nnUNetTrainerMedSegDiffV2Direct]
)
def test_training_moves_both_copies_and_continues(make_trainer, planned, tmp_path, trainer_class):
    trainer = make_trainer(trainer_class, plans=PLANS)
    trainer.run_training()
    network = trainer.network
    assert int(network.updates) == 4
    trained, average = network.trained.state_dict(), network.average.state_dict()
    assert any(not trained[name].equal(average[name]) for name in trained)
    again = make_trainer(trainer_class, plans=PLANS)
    again.initialize()
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    assert all(value.equal(again.network.state_dict()[name]) for name, value in network.state_dict().items())
    record = json.loads(Path(trainer.output_folder, "run.json").read_text())
    assert record["parameters"] == sum(p.numel() for p in network.trained.parameters())
    # The condition model's own convolutions alone take more than 0.05; a thousand evaluations many times that.
    assert 0.05 < record["gmacs_per_patch"] and (record["gmacs_per_patch"] > 10) == ("Paper" in trainer_class.__name__)


def test_what_is_saved_within_an_epoch_has_the_last_update_in_its_mean(make_trainer, planned):
    trainer = make_trainer(nnUNetTrainerMedSegDiffV2Direct, plans=PLANS)
    trainer.initialize()
    trainer.lr_scheduler.step(0)
    trainer._stop = "batch"  # as SIGTERM sets it
    target = torch.zeros(2, 1, 16, 32, 32, dtype=torch.int16)
    with pytest.raises(SystemExit):
        trainer.train_step({"data": torch.randn(2, 1, 16, 32, 32), "target": target, "keys": ["a", "b"]})
    saved = torch.load(Path(trainer.output_folder, "checkpoint_latest.pth"), weights_only=False)["network_weights"]
    assert int(saved["updates"]) == 1


def test_the_papers_loss_counts_the_anchor_at_every_fifth_step(make_trainer, planned):
    trainer = make_trainer(nnUNetTrainerMedSegDiffV2Paper, plans=PLANS)
    trainer.initialize()
    network = trainer.bare_network()
    assert network.prediction == "noise" and network.average.denoiser.stem_image is None
    assert (network.sampling.steps, network.sampling.samples, network.sampling.fusion) == (100, 10, "staple")
    target = torch.randint(0, trainer.label_manager.num_segmentation_heads, (4, 1, 16, 32, 32))
    anchor = torch.randn(4, trainer.label_manager.num_segmentation_heads, 16, 32, 32)
    noise = torch.zeros_like(anchor)

    def loss(*t: int) -> float:
        output = TrainingOutput(noise, noise, torch.tensor(t), anchor, "noise")
        batch = Batch(noise, target, noise, torch.ones_like(noise[:, :1]))
        return published_step(lambda *_: output, batch, trainer.loss, trainer.weighted_loss).item()

    assert loss(1, 2, 3, 4) == 0
    dice, both = trainer.loss(anchor, target).item(), trainer.weighted_loss(anchor, target).item()
    cross_entropy = torch.nn.functional.cross_entropy(anchor, target[:, 0]).item()
    assert both == pytest.approx(dice + 9 * cross_entropy, rel=1e-4)
    assert loss(0, ALPHA, 2 * ALPHA, 100) == pytest.approx(both, rel=1e-5)
    assert 0 < loss(0, 1, 2, 3) < both
    first = trainer.optimizer.param_groups[0]["lr"]
    trainer.lr_scheduler.step(1)
    assert first == trainer.optimizer.param_groups[0]["lr"] == 1e-4


def test_regions_reach_the_network(make_trainer, planned):
    trainer = make_trainer(nnUNetTrainerMedSegDiffV2, plans=PLANS)
    trainer.initialize()
    batch = {"data": torch.randn(2, 1, 16, 32, 32), "keys": ["a", "b"]}
    trainer.dataset_json = {
        **trainer.dataset_json,
        "labels": {"background": 0, "all": [1, 2, 3], "core": [2], "ignore": 4},
    }
    trainer.dataset_json["regions_class_order"] = [1, 2]
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 2)
    trainer.network, trainer.loss = network, trainer._build_loss()
    network.has_regions.fill_(True)
    trainer.optimizer = trainer.configure_optimizers()[0]
    target = torch.randint(0, 2, (2, 3, 16, 32, 32)).float()
    result = trainer.train_step({**batch, "target": target})
    assert np.isfinite(result["loss"])
    assert trainer.network.eval()(batch["data"]).shape == (2, 2, 16, 32, 32)


@pytest.mark.slow
def test_every_way_of_prediction_by_commands(planned, tmp_path):
    base, quick = planned.parent.parent, {f"NNUNET_EXT_{n}": "1" for n in ("EPOCHS", "ITERATIONS", "VAL_ITERATIONS")}
    trainer = ("-tr", "nnUNetTrainerMedSegDiffV2", "-p", PLANS)
    nnunet_dataset.run(base, "nnUNetv2_train", "990", "3d_fullres", "0", "-device", "cpu", *trainer, **quick)
    images = base / "nnUNet_raw" / planned.name / "imagesTs"
    model = ("-d", "990", "-c", "3d_fullres", *trainer, "-f", "0", "-device", "cpu", "--disable_tta")
    sampling = {"NNUNET_EXT_SAMPLING_STEPS": "3", "NNUNET_EXT_SAMPLES": "2", "NNUNET_EXT_SAMPLING_SEED": "5"}
    for output in ("first", "second"):
        arguments = ("-i", str(images), "-o", str(tmp_path / output), *model)
        nnunet_dataset.run(base, "nnUNetv2_predict", *arguments, "-npp", "1", "-nps", "1", **sampling)
    first, second = (sitk.ReadImage(str(next((tmp_path / o).glob("*.nii.gz")))) for o in ("first", "second"))
    assert (sitk.GetArrayFromImage(first) == sitk.GetArrayFromImage(second)).all()
    said = json.loads((tmp_path / "first" / "plans.json").read_text())["nnunet_ext_sampling"]
    assert said == {"sampler": "ddim", "steps": 3, "samples": 2, "fusion": "mean", "seed": 5}

    ours = ("nnunet_ext", "predict", "-i", str(images), "-o", str(tmp_path / "ours"), *model)
    nnunet_dataset.run(base, *ours, "--save_samples", str(tmp_path / "samples"), **sampling)
    case = next((tmp_path / "ours").glob("*.nii.gz")).name.removesuffix(".nii.gz")
    samples = sorted((tmp_path / "samples" / case).glob("sample_*.nii.gz"))
    assert len(samples) == 2 and sitk.ReadImage(str(samples[0])).GetDirection() == first.GetDirection()
    maps = str(tmp_path / "maps")
    nnunet_dataset.run(base, "nnunet_ext", "uncertainty", "-i", str(tmp_path / "samples"), "-o", maps)
    wrong = nnunet_dataset.run(base, *ours, check=False, NNUNET_EXT_SAMPLING_STEPS="many")
    assert wrong.returncode == 1 and "NNUNET_EXT_SAMPLING_STEPS='many' must be" in wrong.stderr
    assert "Traceback" not in wrong.stderr
