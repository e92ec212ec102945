"""UNETR++ as nnU-Net sees it: its recipe, and its outputs against nnU-Net's targets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_ext.errors import TrainingError
from nnunet_ext.plans.write import write_plans
from nnunet_ext.trainers.unetrpp import nnUNetTrainerUNETRPP

PLANS = "nnUNetPlansUNETRPPTiny"


@pytest.fixture
def plans(preprocessed, monkeypatch) -> str:
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))
    write_plans("990", "unetrpp", "tiny", configurations=["3d_fullres"], patch_size=[16, 32, 32], batch_size=2)
    return PLANS


def test_stock_plans_give_the_published_widths(make_trainer):
    trainer = make_trainer(nnUNetTrainerUNETRPP, plans="nnUNetPlans")
    with torch.device("meta"):
        network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 4, 3, False)
    assert network.out3["conv"].conv.weight.shape == (3, 64, 1, 1, 1)
    assert len(network.unetr_pp_encoder.stages[3]) == 3
    assert network.geometry.patch == tuple(trainer.configuration_manager.patch_size)


def test_recipe_outputs_and_strict_loading_for_prediction(make_trainer, plans):
    trainer = make_trainer(nnUNetTrainerUNETRPP, plans=plans)
    trainer.run_training()
    optimiser = trainer.optimizer.param_groups[0]
    assert (optimiser["momentum"], optimiser["nesterov"], optimiser["weight_decay"]) == (0.99, True, 3e-5)
    assert trainer.initial_lr == 1e-2
    assert trainer.loss.weight_factors == (4 / 7, 2 / 7, 1 / 7)

    batch = next(trainer.dataloader_train)
    trainer.set_deep_supervision_enabled(True)
    outputs = trainer.network.eval()(batch["data"])
    assert [output.shape[2:] for output in outputs] == [target.shape[2:] for target in batch["target"]]
    trainer.set_deep_supervision_enabled(False)
    assert isinstance(trainer.network(batch["data"]), torch.Tensor)

    inference = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, outputs[0].shape[1], enable_deep_supervision=False
    )
    checkpoint = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)
    inference.load_state_dict(checkpoint["network_weights"])
    with torch.no_grad():
        torch.testing.assert_close(inference.eval()(batch["data"]), trainer.network(batch["data"]))


def test_2d_is_refused_with_the_configurations_to_choose(make_trainer, preprocessed):
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"]["2d"] = {**full, "patch_size": [32, 32]}
    (preprocessed / "flat.json").write_text(json.dumps({**plans, "plans_name": "flat"}))
    with pytest.raises(TrainingError, match=r"'2d' of Dataset990_Phantoms has patches of two axes; choose 3d_fullres"):
        make_trainer(nnUNetTrainerUNETRPP, plans="flat", configuration="2d")
