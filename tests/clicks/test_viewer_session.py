"""The session of viewers from Python: the interface of our own, and what it refuses in one line."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers.promptable_stubs import interactive_folder, trained_folder

from nnunet_ext.checkpoints.sam_med3d import INTERACTIONS
from nnunet_ext.checkpoints.viewer_folder import INFO, write_viewer_folder
from nnunet_ext.clicks.model import load_trained
from nnunet_ext.clicks.session import PromptSession
from nnunet_ext.clicks.users import USERS, make_drawing_user
from nnunet_ext.clicks.viewed_object import ViewedObject
from nnunet_ext.clicks.viewer_session import open_in_session
from nnunet_ext.errors import UserError
from nnunet_ext.images import read_image
from nnunet_ext.plans.viewer_preprocessor import normalised


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = trained_folder(tmp_path_factory.mktemp("model"))
    write_viewer_folder(folder, {}, INTERACTIONS)
    return folder


@pytest.fixture
def image(tmp_path):
    data = np.random.default_rng(0).normal(50, 9, (20, 24, 18)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(data), str(tmp_path / "case.nii.gz"))
    return tmp_path / "case.nii.gz"


@pytest.fixture
def session(folder, image):
    pytest.importorskip("nnInteractive.inference.inference_session")
    session = PromptSession(open_in_session(folder, autozoom=False))
    session.set_image(image)
    return session


def test_click_undo_twice_mask_and_next_object(session, capsys):
    assert not session.predict().any()
    session.add_point((9, 12, 10))
    first = session.predict()
    assert first.shape == (20, 24, 18) and 0 < first.sum() < first.size
    assert np.array_equal(session.logits() > 0, first)
    session.add_point((6, 12, 10), positive=False)
    session.add_point((6, 14, 7))
    # The session's own undo goes back one; the rest is replayed.
    assert session.undo() and session.undo()
    assert np.array_equal(session.predict(), first)
    assert session.undo() and not session.predict().any() and not session.undo()
    session.reset(mask=first)
    assert np.array_equal(session.predict(), first)
    session.add_point((9, 12, 10))
    again = session.predict()
    session.add_point((4, 12, 10))
    session.undo()
    session.undo()
    assert np.array_equal(session.predict(), first) and not np.array_equal(again, first)
    assert capsys.readouterr().out == ""


def test_early_prompting_understands_what_every_user_draws(image, tmp_path):
    """A folder of nnUNetTrainerInteractive: the session answers as our own prediction, whatever is drawn."""
    pytest.importorskip("nnInteractive.inference.inference_session")
    model = open_in_session(interactive_folder(tmp_path), autozoom=False)
    assert model.kinds == {"point", "box", "scribble", "lasso"} and not model.session.network.training
    read = read_image(image)
    thing = model.begin(model.prepare(read))
    own = ViewedObject(model.session.network, torch.from_numpy(normalised(read.data)), (64, 64, 64))
    reference = np.zeros(read.shape, dtype=bool)
    reference[5:14, 6:17, 4:12] = True
    seen = []
    for user in USERS:
        drawn = make_drawing_user(user, (1, 1, 1), "x")(reference, thing.mask)
        thing.add(drawn)
        own.add(drawn)
        seen.append(thing.mask)
        assert np.array_equal(thing.mask, (own.logits() > 0).numpy()), user
    assert any(mask.any() and not mask.all() for mask in seen)
    # The same behind the interface that SAM-Med3D has.
    session = PromptSession(load_trained(model.source))
    session.set_image(image)
    session.add_point((8, 11, 9))
    assert session.predict().shape == read.shape and session.undo() and not session.predict().any()


def test_what_is_refused_is_said_in_one_line(session, folder, image, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"point 1 at \(40, 0, 0\) lies outside .*case.nii.gz"):
        session.add_point((40, 0, 0))
    flat = tmp_path / "flat.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((8, 8), dtype=np.uint8)), str(flat))
    with pytest.raises(UserError, match=r"flat.png is no 3D volume of one channel"):
        session.set_image(flat)
    with pytest.raises(UserError, match="comes with 2 channels; the model takes 1"):
        session.set_image([image, image])
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 8, 8), dtype=np.uint8)), str(tmp_path / "empty.nii.gz"))
    with pytest.raises(UserError, match=r"empty.nii.gz is zero everywhere"):
        session.set_image(tmp_path / "empty.nii.gz")
    other = shutil.copytree(folder, tmp_path / "other")
    info = json.loads((other / INFO).read_text())
    (other / INFO).write_text(json.dumps({**info, "interaction_channels": 8}))
    with pytest.raises(
        UserError, match=r"other does not open in nnInteractive's session .*size mismatch.*see inference"
    ):
        open_in_session(other)
    (other / INFO).write_text("[]")
    with pytest.raises(UserError, match=r"other does not open in nnInteractive's session \(RuntimeError: Invalid cap"):
        open_in_session(other)
    (other / INFO).unlink()
    with pytest.raises(UserError, match=r"has no inference_info.json, so viewers cannot click with it; trainers that"):
        open_in_session(other)
    monkeypatch.setitem(sys.modules, "nnInteractive.inference.inference_session", None)
    with pytest.raises(UserError, match=r"needs nninteractive .*; pip install 'nnunet-ext\[interactive\]'") as refused:
        open_in_session(folder)
    assert "\n" not in str(refused.value)
