"""SAM-Med3D as nnU-Net sees it: what a step trains, objects of every kind of label, refusals, nnU-Net's commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import nnunet_dataset
from helpers.promptable_stubs import SIZES

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D, mask_only_rounds
from nnunet_ext.errors import TrainingError
from nnunet_ext.steps.sam_med3d import choose_objects
from nnunet_ext.trainers.sam_med3d import nnUNetTrainerSAMMed3D

PLANS = "nnUNetPlansSAMMed3DMini"


@pytest.fixture(scope="module")
def planned(preprocessed) -> Path:
    """The phantoms with plans for a network of a few thousand parameters."""
    plans = json.loads((preprocessed / "nnUNetPlansSegMambaTiny.json").read_text())
    plans["plans_name"] = PLANS
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "nnunet_ext.architectures.sam_med3d.PromptableSAMMed3D",
        "arch_kwargs": {"sizes": SIZES, "rounds": 5},
        "_kw_requires_import": [],
    }
    (preprocessed / f"{PLANS}.json").write_text(json.dumps(plans))
    return preprocessed


def mini(channels: int = 1, classes: int = 3, rounds: int = 5) -> PromptableSAMMed3D:
    torch.manual_seed(0)
    return PromptableSAMMed3D(channels, classes, sizes=SIZES, rounds=rounds)


def test_one_step_reaches_every_parameter_that_is_not_frozen():
    """Any patch, two channels; distributed training fails on a parameter without a gradient."""
    network = mini(2).train()
    objects = torch.zeros(2, 1, 12, 20, 9)
    objects[0, 0, 3:6, 4:9, 2:7] = 1  # the second sample has no object
    output = network(torch.randn(2, 2, 12, 20, 9), objects, torch.tensor([1, 0]))
    assert [tuple(r.shape) for r in output.rounds] == [(2, 1, 12, 20, 9)] * 5
    assert output.automatic.shape == (2, 3, 12, 20, 9)
    (sum(r.sum() for r in output.rounds) + output.automatic.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name.split(".")[2] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"no_mask_embed", "iou_prediction_head", "output_hypernetworks_mlps"}


def test_rounds_without_clicks_are_the_last_and_one_in_the_middle():
    drawn = {mask_only_rounds(11) for _ in range(200)}
    assert drawn == {frozenset({n, 10}) for n in range(2, 9)}
    assert mask_only_rounds(1) == frozenset() and mask_only_rounds(3) == {2}


def test_drawn_prompts_decide_their_class_only():
    network = mini().eval()
    x = torch.randn(1, 1, 16, 16, 16)
    prompts = torch.zeros(1, 2, 16, 16, 16)
    with torch.no_grad():
        plain = network(x)
        assert torch.equal(network(torch.cat([x, prompts], 1)), plain)
        prompts[0, 1, 3:5, 3:5, 3:5] = 1  # a click on class 2
        clicked = network(torch.cat([x, prompts], 1))
        assert torch.equal(clicked[:, :2], plain[:, :2]) and not torch.equal(clicked[:, 2], plain[:, 2])
        prompts[0, 1, 2:12, 2:12, 2:12] = 1  # now a mask
        assert not torch.equal(network(torch.cat([x, prompts], 1))[:, 2], clicked[:, 2])
        # A click of the other class tells this one where it is not.
        prompts[0, 0, 14, 14, 14] = 1
        both = network(torch.cat([x, prompts], 1))
        assert not torch.equal(both[:, 1], plain[:, 1])
    with pytest.raises(ValueError, match="built for 1 channels, or 2 more with prompts drawn for each label, not 2"):
        network(torch.zeros(1, 2, 16, 16, 16))


def test_objects_are_drawn_from_labels_regions_and_around_the_ignore_label():
    target = torch.zeros(40, 1, 4, 4, 4, dtype=torch.int16)
    target[:, 0, 0], target[:, 0, 1], target[:, 0, 2] = 1, 2, 3  # 3 is the ignore label
    target[0] = 0
    objects, counted, channel = choose_objects(target, False, 3)
    assert not counted[0].any() and counted[1].sum() == 48 and not counted[1, 0, 2].any()
    assert set(channel[1:].tolist()) == {1, 2}
    assert all(torch.equal(o[0] > 0, t[0] == c) for o, t, c in zip(objects[1:], target[1:], channel[1:], strict=True))
    regions = torch.zeros(40, 4, 4, 4, 4, dtype=torch.bool)  # three regions and the ignore label's voxels
    regions[:, 0, :2], regions[:, 2, :1], regions[:, 3, 3] = True, True, True
    objects, counted, channel = choose_objects(regions, True, 9)
    assert set(channel.tolist()) == {0, 2} and counted[0].sum() == 48
    assert all(torch.equal(o[0] > 0, t[c]) for o, t, c in zip(objects, regions, channel, strict=True))


def test_training_step_and_checkpoint(make_trainer, planned, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_LEARNING_RATE", "2e-3")
    trainer = make_trainer(nnUNetTrainerSAMMed3D, plans=PLANS)
    trainer.run_training()
    losses = trainer.logger.get_value("train_losses", step=None)
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert trainer.optimizer.param_groups[0]["lr"] < 2e-3 and trainer.initial_lr == 2e-3
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 5, False)
    weights = torch.load(Path(trainer.output_folder, "checkpoint_final.pth"), weights_only=False)["network_weights"]
    assert "automatic.seg_layers.weight" in weights  # nnU-Net's fine-tuning skips it for another class count
    network.load_state_dict(weights)
    session = pytest.importorskip("nnInteractive.inference.inference_session").nnInteractiveInferenceSession(
        device=torch.device("cpu"), torch_n_threads=1
    )
    session.initialize_from_trained_model_folder(trainer.output_folder_base)
    assert session.network.input_channels == 1 and session.license == "not stated"


def test_validation_by_clicks_with_an_ignore_label(make_trainer, planned, tmp_path):
    description = json.loads((planned / "dataset.json").read_text())
    last = max(description["labels"], key=description["labels"].get)
    description["labels"]["ignore"] = description["labels"].pop(last)
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    (tmp_path / f"{PLANS}.json").write_text((planned / f"{PLANS}.json").read_text())
    trainer = make_trainer(nnUNetTrainerSAMMed3D, plans=PLANS, folder=tmp_path)
    trainer.initialize()
    trainer.perform_actual_validation()
    summary = json.loads(Path(trainer.output_folder, "validation", "prompted_summary.json").read_text())
    assert set(summary["users"]["centre"]["classes"]) == set(description["labels"]) - {"background", "ignore"}


def test_slices_and_cascades_are_refused(make_trainer, planned):
    plans = json.loads((planned / f"{PLANS}.json").read_text())
    configurations = plans["configurations"]
    configurations["second"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    (planned / "cascaded.json").write_text(json.dumps({**plans, "plans_name": "cascaded"}))
    with pytest.raises(
        TrainingError, match=r"'second' of .* continues a previous stage; choose 3d_fullres \(a trained one refines"
    ):
        make_trainer(nnUNetTrainerSAMMed3D, plans="cascaded", configuration="second")


@pytest.mark.slow
def test_every_way_of_prediction_by_commands(planned, tmp_path):
    """Train; predict without prompts, with drawn ones, and from prompt files; the geometry stays."""
    base = planned.parent.parent
    short = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}
    trainer = ("-tr", "nnUNetTrainerSAMMed3D", "-p", PLANS)
    nnunet_dataset.run(base, "nnUNetv2_train", "990", "3d_fullres", "0", "-device", "cpu", *trainer, **short)
    folder = base / "nnUNet_results" / planned.name / f"nnUNetTrainerSAMMed3D__{PLANS}__3d_fullres"
    validation = folder / "fold_0" / "validation"
    summary = json.loads((validation / "prompted_summary.json").read_text())
    labels = {k for k in json.loads((planned / "dataset.json").read_text())["labels"] if k != "background"}
    for user in ("uniform", "centre"):
        assert set(summary["users"][user]["classes"]) == labels
        assert set(summary["users"][user]["mean"]["Dice"]) == {"1", "3", "5", "10"}
    assert "sees the reference" in summary["note"] and (validation / "prompted_summary.png").stat().st_size > 10_000
    assert "Dice AUC" not in (validation / "summary.json").read_text()

    images = base / "nnUNet_raw" / planned.name / "imagesTs"
    image_file = next(images.iterdir())
    case, image = image_file.name[: -len("_0000.nii.gz")], sitk.ReadImage(str(image_file))
    points = [{"xyz": [n // 2 for n in image.GetSize()], "positive": True}]
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    content = {"version": 1, "space": "voxel", "objects": [{"label": 1, "points": points}]}
    (prompts / f"{case}.prompts.json").write_text(json.dumps(content))
    ours = ("nnunet_ext", "predict-prompts", "-i", str(images), "-p", str(prompts), "-m", str(folder), "-device", "cpu")
    nnunet_dataset.run(base, *ours, "-o", str(tmp_path / "drawn"), "--draw")
    nnunet_dataset.run(base, *ours, "-o", str(tmp_path / "clicked"))
    flags = ("-d", "990", "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta")
    stock = ("nnUNetv2_predict", "-i", str(images), *flags, *trainer)
    nnunet_dataset.run(base, *stock, "-o", str(tmp_path / "automatic"))
    drawn = ("-prev_stage_predictions", str(tmp_path / "drawn"))
    nnunet_dataset.run(base, *stock, "-o", str(tmp_path / "refined"), *drawn)
    found = {}
    for way in ("drawn", "clicked", "automatic", "refined"):
        volume = sitk.ReadImage(str(tmp_path / way / f"{case}.nii.gz"))
        assert volume.GetSize() == image.GetSize()
        np.testing.assert_allclose(volume.GetDirection(), image.GetDirection(), atol=1e-6)
        found[way] = sitk.GetArrayFromImage(volume)
    assert set(np.unique(found["drawn"])) == {0, 1} and set(np.unique(found["clicked"])) <= {0, 1}
    assert not np.array_equal(found["refined"], found["automatic"])


def test_planner_for_the_published_weights(make_trainer, preprocessed, monkeypatch):
    """`-pl nnUNetPlannerSAMMed3D`, in the folders `make_trainer` sets."""
    from nnunet_ext.discovery.lookup import load
    from nnunet_ext.discovery.table import find

    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planning refuses 0
    planner = load(find("nnUNetPlannerSAMMed3D", "planner"))("Dataset990_Phantoms")
    for _ in range(2):  # again over its own file
        planner.plan_experiment()
        plans = json.loads((preprocessed / "nnUNetSAMMed3DPlans.json").read_text())
        assert list(plans["configurations"]) == ["3d_fullres"]
        configuration = plans["configurations"]["3d_fullres"]
        assert configuration["spacing"] == [1.5] * 3 and configuration["patch_size"] == [128] * 3
    trainer = make_trainer(nnUNetTrainerSAMMed3D, plans="nnUNetSAMMed3DPlans")
    with torch.device("meta"):
        network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 2)
    assert sum(p.numel() for p in network.sam.parameters()) == 100_509_232
