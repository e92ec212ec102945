"""Early prompting as nnU-Net and the viewers' session see it: two commands, then clicks; refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import interactive_scene, nnunet_dataset
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession

from nnunet_ext.architectures.interactive import InteractiveNetwork
from nnunet_ext.clicks.viewed_object import ViewedObject
from nnunet_ext.errors import TrainingError
from nnunet_ext.plans.viewer_preprocessor import normalised
from nnunet_ext.prompts import channels
from nnunet_ext.trainers.interactive import nnUNetTrainerInteractive


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model folder, three levels below the folder of nnU-Net's folders."""
    base = tmp_path_factory.mktemp("interactive")
    interactive_scene.make_raw(base)
    interactive_scene.shrink(interactive_scene.plan(base))
    return interactive_scene.train(base)


@pytest.fixture
def here(trained, monkeypatch):
    """This process with nnU-Net's folders of the scene; a function that makes trainers."""
    base = trained.parents[2]
    for name, value in nnunet_dataset.environment(base).items():
        if name.startswith("nnUNet"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folder = base / "nnUNet_preprocessed" / interactive_scene.NAME

    def make(plans=interactive_scene.TINY, configuration="3d_fullres", dataset=None, change=lambda plans: None):
        content = json.loads((folder / f"{plans}.json").read_text()) | {"continue_training": False}
        change(content)
        description = json.loads((folder / "dataset.json").read_text()) | (dataset or {})
        return nnUNetTrainerInteractive(content, configuration, 0, description, torch.device("cpu"))

    return make


@pytest.fixture(scope="module")
def session(trained):
    """The official one, unmodified."""
    session = nnInteractiveInferenceSession(torch.device("cpu"), torch_n_threads=1, do_autozoom=False)
    session.initialize_from_trained_model_folder(str(trained))
    return session


def test_plans_have_the_voxels_of_the_files_and_patches_that_autozoom_can_refine_in(trained):
    folder = trained.parents[2] / "nnUNet_preprocessed" / interactive_scene.NAME
    plans = json.loads((folder / f"{interactive_scene.PLANS}.json").read_text())
    assert plans["transpose_forward"] == [0, 1, 2] and list(plans["configurations"]) == ["3d_fullres"]
    planned = plans["configurations"]["3d_fullres"]
    assert planned["normalization_schemes"] == ["ZScoreNormalization"] and planned["use_mask_for_norm"] == [False]
    assert planned["resampling_fn_data"] == planned["resampling_fn_seg"] == "no_resampling_hack"
    assert min(planned["patch_size"]) >= 64 and planned["batch_size"] >= 2
    # As the session normalises, of the whole image, though a third of it is zero.
    session = nnInteractiveInferenceSession(torch.device("cpu"), torch_n_threads=1)
    session.configuration_manager, session.num_interaction_channels = None, channels.CHANNELS
    image, _ = interactive_scene.ball(2)
    session.set_image(image[None])
    session._finish_preprocessing_and_initialize_interactions()
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data, labels, _, _ = nnUNetDatasetBlosc2(str(folder / planned["data_identifier"])).load_case("b2")
    assert data.shape == (1, *interactive_scene.SHAPE) and (labels[:] >= 0).all()
    np.testing.assert_allclose(data[:], session.preprocessed_image.numpy(), atol=1e-5)


def test_the_folder_says_what_viewers_ask(trained, session):
    assert (trained / "LICENSE").read_text() == "CC0 1.0\n" and session.license == "CC0 1.0"
    assert session.supported_interactions == {
        "points": True, "bbox2d": True, "bbox3d": False, "scribble": True, "lasso": True,
    }  # fmt: skip
    assert isinstance(session.network, InteractiveNetwork) and session.num_interaction_channels == 7
    summary = json.loads((trained / "fold_0" / "validation" / "prompted_summary.json").read_text())
    assert summary["users"]["centre"]["mean"]["n"] == 2 and "see" in summary["note"]
    assert not (trained / "fold_0" / "validation" / "summary.json").exists()


def test_the_session_finds_what_our_own_prediction_finds_on_the_same_channels(session):
    image, labels = interactive_scene.ball(7)
    session.set_image(image[None])
    buffer = np.zeros(interactive_scene.SHAPE, np.uint8)
    session.set_target_buffer(buffer)
    start = (labels == 1).astype(np.uint8)
    start[9] = 0
    mask = np.zeros(interactive_scene.SHAPE, np.uint8)
    mask[8, 8:14, 9:12] = 1

    def ours(previous=None):
        patch = session.configuration_manager.patch_size
        return ViewedObject(session.network, torch.from_numpy(normalised(image[None])), patch, previous)

    thing = ours()
    with torch.inference_mode():
        for index, positive in (((9, 10, 13), True), ((3, 25, 22), False), ((17, 2, 1), True)):
            session.add_point_interaction(index, positive)
            thing.click(index, positive)
            assert np.array_equal(buffer > 0, (thing.logits() > 0).numpy())
        session.add_bbox_interaction([[9, 10], [5, 15], [8, 18]], True)
        thing.add(channels.box(((9, 10), (5, 15), (8, 18))))
        session.add_lasso_interaction(mask, False)
        thing.add(channels.lasso(mask, positive=False))
        session.add_scribble_interaction(mask, True)
        thing.add(channels.scribble(mask))
        assert np.array_equal(buffer > 0, (thing.logits() > 0).numpy())
        session.add_initial_seg_interaction(start)
        assert np.array_equal(buffer, start)
        session.add_point_interaction((9, 10, 13), True)
        thing = ours(start > 0)
        thing.click((9, 10, 13))
        assert np.array_equal(buffer > 0, (thing.logits() > 0).numpy())
    kept = buffer.copy()
    session.add_point_interaction((9, 20, 13), False)
    assert session.undo() and np.array_equal(buffer, kept) and not session.undo()
    session.reset_interactions()
    assert not buffer.any() and not session.interactions.any()


def test_one_step_learns_from_the_last_round_or_all(here, monkeypatch):
    norms = {}
    for which in ("last", "all"):
        monkeypatch.setenv("NNUNET_EXT_INTERACTIVE_GRADIENTS", which)
        monkeypatch.setenv("NNUNET_EXT_SEED", "3")
        monkeypatch.setenv("NNUNET_EXT_PRECISION", "bf16")
        torch.manual_seed(0)
        trainer = here()
        trainer.initialize()
        trainer.network.train()
        training, _ = trainer.get_dataloaders()
        batch = next(training)
        while not (batch["target"] > 0).flatten(1).any(1).all():
            batch = next(training)
        from nnunet_ext.steps.interactive import step

        with trainer.autocast():
            loss = step(trainer.network, trainer._prepare(batch, 3, (1,)), trainer.loss)
        loss.backward()
        for name, parameter in trainer.network.named_parameters():
            assert parameter.grad is not None or "seg_layers" in name, name
        norms[which] = sum(float(p.grad.square().sum()) for p in trainer.network.parameters() if p.grad is not None)
    assert norms["last"] > 0 and norms["all"] > 0 and norms["last"] != norms["all"]


def test_regions_ignore_label_and_components(here, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_INTERACTIVE_OBJECTS", "components")
    dataset = {
        "labels": {"background": 0, "both": [1, 2], "right": 2, "ignore": 3},
        "regions_class_order": [1, 2],
    }
    trainer = here(dataset=dataset)
    trainer.initialize()
    labels = torch.zeros(2, 1, 16, 24, 24, dtype=torch.int16)
    labels[:, 0, 2:6, 2:8, 2:8], labels[:, 0, 2:6, 8:14, 2:8], labels[:, 0, 12:] = 1, 2, 3
    labels[:, 0, :, :, 20:] = -1
    batch = {"data": torch.randn(2, 1, 16, 24, 24), "target": labels, "zoom": [1.0, 2.25]}
    sizes = set()
    for seed in range(12):
        prepared = trainer._prepare(batch, 1, (seed,))
        # What lies outside is known to be background unless the reference may say nothing there.
        assert (prepared.target[:, 0, 12:] == 2).all() and not prepared.image[..., 20:].any()
        sizes |= set((prepared.target == 1).flatten(1).sum(1).tolist())
    assert sizes <= {0, 4 * 6 * 6, 2 * 4 * 6 * 6} and len(sizes) >= 2
    trainer.network.train()
    assert np.isfinite(trainer.train_step(batch | {"keys": ["a", "b"]})["loss"])


def test_refusals_are_one_line(here, trained, tmp_path, monkeypatch):
    def resampled(plans):
        plans["configurations"]["3d_fullres"]["preprocessor_name"] = "DefaultPreprocessor"

    with pytest.raises(
        TrainingError, match=r"-d 992 -pl nnUNetPlannerInteractive and choose -p nnUNetInteractivePlans$"
    ):
        here(change=resampled)

    def flat(plans):
        own = plans["configurations"]["3d_fullres"]
        plans["configurations"]["2d"] = {**own, "patch_size": [16, 16]}

    with pytest.raises(TrainingError, match="early prompting trains on volumes and configuration '2d'"):
        here(configuration="2d", change=flat)
    monkeypatch.setenv("NNUNET_EXT_INTERACTIVE_OBJECTS", "parts")
    with pytest.raises(TrainingError, match="'parts' must be one of labels, components"):
        here()
    with pytest.raises(
        TrainingError, match="given an image alone; open its folder in a viewer with nninteractive-server"
    ):
        InteractiveNetwork(1, strides=[[1, 1, 1], [2, 2, 2]], features=4, blocks=[1])(torch.zeros(1, 1, 8, 8, 8))


def test_nnunets_prediction_and_data_of_several_channels_end_in_one_line(trained, tmp_path):
    base = trained.parents[2]
    raw = base / "nnUNet_raw" / interactive_scene.NAME / "imagesTr"
    words = ("-d", interactive_scene.NUMBER, "-i", str(raw), "-o", str(tmp_path / "out"), "-f", "0", "-c", "3d_fullres")
    more = ("-tr", "nnUNetTrainerInteractive", "-p", interactive_scene.TINY, "-device", "cpu", "-npp", "0", "-nps", "0")
    done = nnunet_dataset.run(base, "nnUNetv2_predict", *words, *more, check=False)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("nnunet_ext: this model segments")
    assert "Traceback" not in done.stderr
    two = tmp_path / "two"
    interactive_scene.make_raw(two, channels=2)
    command = ("nnUNetv2_plan_and_preprocess", "-d", interactive_scene.NUMBER, "-pl", "nnUNetPlannerInteractive")
    done = nnunet_dataset.run(two, *command, "-np", "1", "-npfp", "1", "--no_pp", check=False)
    assert done.returncode == 1 and "has 2 channels and viewers show one" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
