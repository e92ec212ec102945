"""The Python session: geometry, undo, continuing, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.promptable_stubs import Bright, trained_folder

from nnunet_ext.clicks.model import PromptModel, load_trained
from nnunet_ext.clicks.session import PromptSession
from nnunet_ext.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def bright_session(folder, tmp_path):
    """A session whose network marks bright voxels, on a flipped image of two bright bars."""
    trained, network = load_trained(folder), Bright().eval()
    model = PromptModel(network, trained.prepare, {"bar": 1}, 1, ".nii.gz", folder)
    data = np.zeros((20, 24, 60), dtype=np.float32) + 0.01
    data[8:12, 10:14, 4:20] = 1
    data[8:12, 10:14, 40:56] = 1
    volume = sitk.GetImageFromArray(data)
    volume.SetSpacing((1.0, 1.0, 2.0))
    volume.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, -1))
    volume.SetOrigin((50.0, -3.0, 7.0))
    sitk.WriteImage(volume, str(tmp_path / "case.nii.gz"))
    session = PromptSession(model)
    session.set_image(tmp_path / "case.nii.gz")
    return session, network, data > 0.5, volume


def test_click_undo_and_next_object_in_the_images_own_geometry(bright_session, tmp_path):
    session, network, bright, volume = bright_session
    assert not session.predict().any()
    session.add_point(volume.TransformIndexToPhysicalPoint((12, 12, 10)), space="LPS")
    first = session.predict()
    assert first.shape == bright.shape
    overlap = 2 * (first & bright)[..., :30].sum() / (first.sum() + bright[..., :30].sum())
    assert overlap > 0.85 and not first[..., 34:].any()
    encoded = network.encoded
    session.add_point((14, 12, 10), positive=False)
    assert network.encoded == encoded
    session.save_prompts(tmp_path / "case.prompts.json", name="bar")
    points = json.loads((tmp_path / "case.prompts.json").read_text())["objects"][0]["points"]
    np.testing.assert_allclose(points[0]["xyz"], volume.TransformIndexToPhysicalPoint((12, 12, 10)), atol=1e-4)
    assert [point["positive"] for point in points] == [True, False]
    assert session.undo() and np.array_equal(session.predict(), first)
    assert session.undo() and not session.undo() and not session.predict().any()
    session.add_point((48, 12, 10))
    assert session.predict()[..., 40:56].any() and not session.predict()[..., :30].any()
    session.reset(mask=first)
    assert session.predict()[..., :20].any()


def test_refusals_are_clear(bright_session, folder, tmp_path):
    session, *_ = bright_session
    with pytest.raises(UserError, match="call set_image first"):
        PromptSession(session.model).predict()
    with pytest.raises(UserError, match=r"point 1 at \(70, 0, 0\) lies outside .*case.nii.gz"):
        session.add_point((70, 0, 0))
    with pytest.raises(UserError, match="space 'mm' must be one of LPS, RAS, voxel"):
        session.add_point((1, 1, 1), space="mm")
    with pytest.raises(UserError, match="comes with 2 channels; the model takes 1"):
        session.set_image([tmp_path / "case.nii.gz"] * 2)
    with pytest.raises(UserError, match=r"the mask has shape \(3, 3, 3\)"):
        session.reset(np.ones((3, 3, 3)))
    with pytest.raises(UserError, match=r"holds no fold_3/checkpoint_final.pth; folds with checkpoint_final.pth: 0"):
        load_trained(folder, "3")
    with pytest.raises(UserError, match=r"holds no plans\.json"):
        load_trained(tmp_path)
