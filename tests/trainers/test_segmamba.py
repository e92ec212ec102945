"""SegMamba as nnU-Net sees it: from any plans, and through nnU-Net's own commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import nnunet_dataset

from nnunet_ext.errors import TrainingError
from nnunet_ext.trainers.plain import nnUNetTrainerExt
from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba
from nnunet_ext.trainers.unetrpp import nnUNetTrainerUNETRPP

TRAIN = ("nnUNetv2_train", "990", "3d_fullres", "0", "-device", "cpu", "-tr", "nnUNetTrainerSegMamba")
PLANS = ("-p", "nnUNetPlansSegMambaTiny")
SHORT = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}


def test_stock_plans_give_the_published_network(make_trainer):
    trainer = make_trainer(nnUNetTrainerSegMamba, plans="nnUNetPlans")
    with torch.device("meta"):
        network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 4, 4, enable_deep_supervision=True
        )
    assert network.vit.stages[0][1].mamba.in_proj.weight.shape == (192, 48)
    pooled = [s for s in trainer.configuration_manager.pool_op_kernel_sizes if max(s) > 1]
    reached = np.prod(pooled[:4], axis=0)
    assert network.reductions[-1] == tuple(reached)
    assert not trainer.enable_deep_supervision


def test_deep_supervision_heads_in_the_plans_are_trained(make_trainer, preprocessed):
    plans = json.loads((preprocessed / "nnUNetPlansSegMambaTiny.json").read_text())
    plans["plans_name"] = "supervised"
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["supervised_stages"] = 2
    # A patch that the strides do not divide, in which half a voxel of a head is rounded to even.
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 34, 33]
    (preprocessed / "supervised.json").write_text(json.dumps(plans))
    trainer = make_trainer(nnUNetTrainerSegMamba, plans="supervised")
    trainer.run_training()
    batch = next(trainer.dataloader_train)
    trainer.set_deep_supervision_enabled(True)
    outputs = trainer.network.train()(batch["data"])
    assert [o.shape[2:] for o in outputs] == [t.shape[2:] for t in batch["target"]]
    assert len(outputs) == 3
    inference = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, outputs[0].shape[1], enable_deep_supervision=False
    )
    inference.load_state_dict(trainer.network.state_dict())
    assert isinstance(inference.eval()(batch["data"]), torch.Tensor)


def test_plans_of_another_network_are_refused(make_trainer):
    trainer = make_trainer(nnUNetTrainerUNETRPP)
    with pytest.raises(TrainingError, match=r"these plans are for .*SegMamba, not for .*UNETRPP; choose other plans"):
        trainer.initialize()


def test_baseline_is_nnunet_itself(make_trainer):
    trainer = make_trainer(nnUNetTrainerExt, plans="nnUNetPlans")
    trainer.initialize()
    assert type(trainer.network).__name__ == "PlainConvUNet"
    assert trainer.enable_deep_supervision and trainer.network.decoder.deep_supervision
    assert len(trainer._get_deep_supervision_scales()) == len(trainer.configuration_manager.pool_op_kernel_sizes) - 1


@pytest.mark.slow
def test_train_and_predict_by_nnunets_commands(preprocessed, tmp_path):
    base = preprocessed.parent.parent
    nnunet_dataset.run(base, *TRAIN, *PLANS, **SHORT)
    images = base / "nnUNet_raw" / preprocessed.name / "imagesTs"
    flags = ("-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta", *PLANS)
    nnunet_dataset.run(
        base, "nnUNetv2_predict", "-d", "990", "-i", str(images), "-o", str(tmp_path / "out"), "-tr",
        "nnUNetTrainerSegMamba", *flags,
    )  # fmt: skip
    predictions = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(predictions) == len(list(images.iterdir())) == 1
    image, prediction = sitk.ReadImage(str(next(images.iterdir()))), sitk.ReadImage(str(predictions[0]))
    assert image.GetSize() == prediction.GetSize()
    np.testing.assert_allclose(image.GetDirection(), prediction.GetDirection(), atol=1e-6)
    # The finished training starts another.
    final, start = next(base.glob("nnUNet_results/*/*SegMamba__*/fold_0/checkpoint_final.pth")), tmp_path / "start.pth"
    words = ("-i", str(final), "-d", "990", "-o", str(start), *PLANS)
    said = nnunet_dataset.run(base, "nnunet_ext", "import-weights", *words).stderr
    assert "0 adapted, 0 left as initialised" in said
    elsewhere = {**SHORT, "nnUNet_results": str(tmp_path / "results")}
    done = nnunet_dataset.run(base, *TRAIN, *PLANS, "-pretrained_weights", str(start), **elsewhere)
    assert "Loading pretrained weights" in done.stdout
