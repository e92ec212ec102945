"""UniverSeg as nnU-Net sees it: patch, folds, supports in the checkpoint, no leak, and nnU-Net's own commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import nnunet_dataset

from nnunet_ext.architectures.universeg.few_shot import case_number
from nnunet_ext.errors import TrainingError
from nnunet_ext.losses import episode_loss
from nnunet_ext.plans.write import write_plans
from nnunet_ext.trainers.universeg import nnUNetTrainerUniverSeg

TOY = {"encoder_blocks": [4, 4, 4], "image_size": 32}
SHORT = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1"}


def toy_plans(folder: Path) -> None:
    """Plans `toy` for a network of a few hundred parameters."""
    path, _ = write_plans(folder.name, "universeg", "tiny", configurations=["2d"], plans_name="toy")
    plans = json.loads(path.read_text())
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = TOY
    plans["configurations"]["2d"]["batch_size"] = 2
    path.write_text(json.dumps(plans))


@pytest.fixture(scope="session")
def slices(preprocessed) -> Path:
    """The preprocessed phantoms, also for 2d; stock plans keep the name nnUNetPlans."""
    nnunet_dataset.run(preprocessed.parent.parent, "nnUNetv2_preprocess", "-d", "990", "-c", "2d", "-np", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
        toy_plans(preprocessed)
    return preprocessed


@pytest.fixture
def few(slices, tmp_path):
    """A function that copies the data set with its first cases only, and no folds."""

    def make(count: int) -> Path:
        folder = tmp_path / "nnUNet_preprocessed" / slices.name
        cases = sorted(path.name.split(".")[0] for path in (slices / "gt_segmentations").iterdir())[:count]
        for source in [*slices.glob("*.json"), *(slices / "nnUNetPlans_2d").iterdir()]:
            wanted = source.suffix == ".json" or source.name.split(".")[0].removesuffix("_seg") in cases
            if wanted and source.name != "splits_final.json":
                target = folder / source.relative_to(slices)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        return folder

    return make


@pytest.fixture
def make(make_trainer, slices):
    def make(plans="toy", folder=slices, **more):
        return make_trainer(nnUNetTrainerUniverSeg, plans=plans, folder=folder, configuration="2d", **more)

    return make


def test_stock_plans_give_the_published_network_and_whole_slices(make, slices):
    trainer = make(plans="nnUNetPlans")
    sides = [blosc2.open(str(path)).shape[-2:] for path in (slices / "nnUNetPlans_2d").glob("*_seg.b2nd")]
    side = max(max(shape) for shape in sides)
    assert min(min(shape) for shape in sides) < side
    assert trainer.configuration_manager.patch_size == [side, side]
    assert trainer.configuration_manager.batch_size <= 8
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 5, True)
    assert sum(p.numel() for p in network.parameters()) == 1_182_785 and network.image_size == 128
    assert trainer.plans_manager.plans["configurations"]["2d"]["patch_size"] == [side, side]


def test_training_stores_supports_of_the_training_cases_only(make, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "1")
    trainer = make()
    trainer.run_training()
    train, validation = trainer.do_split()
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    weights = checkpoint["network_weights"]
    assert set(weights["support_cases"].tolist()) == {case_number(case) for case in train}
    assert not set(weights["support_cases"].tolist()) & {case_number(case) for case in validation}
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    assert len(trainer.logger.get_value("train_losses", None)) == 1
    assert len(trainer.logger.get_value("dice_per_class_or_region", -1)) == len(trainer.tasks) == 4

    labels = len(trainer.tasks) + 1
    fresh = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, labels, False)
    fresh.load_state_dict(weights)
    x = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    with torch.inference_mode():
        torch.testing.assert_close(fresh.eval()(x), trainer.network.eval()(x))
    frozen = {name for name, p in trainer.network.named_parameters() if p.grad is None}
    assert frozen == {"core.dec_blocks.1.support.vmapped.conv.weight", "core.dec_blocks.1.support.vmapped.conv.bias"}
    assert all(not p.requires_grad for name, p in trainer.network.named_parameters() if name in frozen)


def test_two_cases_get_their_own_folds(make, few, monkeypatch):
    folder = few(2)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    trainer = make(folder=folder)
    trainer.initialize()
    first, second = sorted(path.name.split(".")[0] for path in (folder / "nnUNetPlans_2d").glob("*.pkl"))
    assert trainer.do_split() == ([second], [first])
    assert json.loads((folder / "splits_final.json").read_text()) == [
        {"train": [second], "val": [first]},
        {"train": [first], "val": [second]},
    ]
    assert "wrote 2 folds, each leaving one case out" in Path(trainer.log_file).read_text()


def test_one_case_trains_and_validates_on_nothing(make, few, monkeypatch):
    folder = few(1)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    shutil.copyfile(folder / "dataset.json", folder / "dataset_fingerprint.json")
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "1")
    trainer = make(folder=folder)
    trainer.run_training()
    trainer.perform_actual_validation()
    assert "nothing is validated" in Path(trainer.log_file).read_text()
    assert not Path(trainer.output_folder, "validation").exists()
    assert len(trainer.network.support_images) > 10


def test_further_data_sets_are_drawn_from(make, slices, few, monkeypatch):
    few(2)
    other = slices.parent / "Dataset991_More"
    shutil.copytree(few(2), other)
    monkeypatch.setenv("NNUNET_EXT_EPISODE_DATASETS", "991")
    try:
        trainer = make()
        trainer.initialize()
        training, checking = trainer.get_dataloaders()
        assert [len(pool.case_names) for pool in training.pools] == [4, 2]
        assert trainer.other_datasets == ["Dataset991_More"]
        assert len(checking.pools) == 1 and checking.supports[0] is training.pools[0]
        assert set(checking.pools[0].case_names).isdisjoint(checking.supports[0].case_names)
        for name, message in (("990", "Dataset990_Phantoms is trained on already"), ("77", "found none")):
            monkeypatch.setenv("NNUNET_EXT_EPISODE_DATASETS", name)
            with pytest.raises(TrainingError, match=f"NNUNET_EXT_EPISODE_DATASETS, data set {name}: .*{message}"):
                trainer.get_dataloaders()
    finally:
        shutil.rmtree(other)


def test_what_it_cannot_do_is_refused(make, make_trainer, slices, monkeypatch):
    with pytest.raises(TrainingError, match="'3d_fullres' of Dataset990_Phantoms has patches of three axes; choose 2d"):
        make_trainer(nnUNetTrainerUniverSeg, plans="nnUNetPlans")
    monkeypatch.setenv("NNUNET_EXT_SUPPORT", "mine.pt")
    with pytest.raises(TrainingError, match="NNUNET_EXT_SUPPORT is for prediction"):
        make()


def test_loss_is_least_where_the_label_is_met():
    label = torch.zeros(2, 1, 8, 8)
    label[0, 0, 2:5, 2:5] = 1
    right = episode_loss((label - 0.5) * 40, label)
    assert float(right) == pytest.approx(0, abs=1e-4)
    shifted = label.roll(3, dims=2)
    # The second episode is empty and met; the first is missed: 1 - 1/19 soft Dice, halved by the mean.
    expected = 20 * 18 / 128 + (1 - 1 / 19) / 2
    assert float(episode_loss((shifted - 0.5) * 40, label)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_train_validate_predict_and_replace_the_support(slices, tmp_path):
    base = slices.parent.parent
    raw = base / "nnUNet_raw" / slices.name
    common = ("-tr", "nnUNetTrainerUniverSeg", "-p", "toy", "-device", "cpu")
    nnunet_dataset.run(base, "nnUNetv2_train", "990", "2d", "all", *common, **SHORT)
    model = base / "nnUNet_results" / slices.name / "nnUNetTrainerUniverSeg__toy__2d"
    fold = model / "fold_all"
    assert len(json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]) == 5
    rows = list(csv.DictReader((fold / "support_curve.csv").open()))
    assert {row["support_size"] for row in rows} >= {"1", "2", "4", "8", "16"}
    assert {row["label"] for row in rows} == {"liver", "vessel", "kidneys", "lesion", "mean"}
    assert (fold / "support_curve.png").read_bytes().startswith(b"\x89PNG")

    flags = ("-c", "2d", "-f", "all", "-npp", "1", "-nps", "1", *common)
    out = [tmp_path / "stored", tmp_path / "replaced"]
    predict = ("nnUNetv2_predict", "-d", "990", "-i", str(raw / "imagesTs"))
    nnunet_dataset.run(base, *predict, "-o", str(out[0]), *flags)
    sets = ("--support-images", str(raw / "imagesTr"), "--support-labels", str(raw / "labelsTr"))
    mine = tmp_path / "mine.pt"
    done = nnunet_dataset.run(base, "nnunet_ext", "support", "--model", str(model), *sets, "-o", str(mine))
    assert "slices of 5 cases" in done.stderr
    nnunet_dataset.run(base, *predict, "-o", str(out[1]), *flags, NNUNET_EXT_SUPPORT=str(mine))
    image = sitk.ReadImage(str(next((raw / "imagesTs").iterdir())))
    for folder in out:
        prediction = sitk.ReadImage(str(next(folder.glob("*.nii.gz"))))
        assert prediction.GetSize() == image.GetSize()
        np.testing.assert_allclose(prediction.GetDirection(), image.GetDirection(), atol=1e-6)
    failed = nnunet_dataset.run(base, *predict, "-o", str(out[1]), *flags, check=False, NNUNET_EXT_SUPPORT="no.pt")
    assert failed.returncode == 1 and "NNUNET_EXT_SUPPORT=no.pt does not exist" in failed.stderr
