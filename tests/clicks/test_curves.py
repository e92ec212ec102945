"""Curves under simulated interactions: their numbers, by hand."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.clicks.curves import InteractionCurve, curves_of_case, summarise
from nnunet_ext.clicks.users import USERS, make_drawing_user
from nnunet_ext.clicks.viewer_session import SessionModel
from nnunet_ext.evaluation.labels import labels_from_values


class Painter:
    """A session that marks what its user points at: of every positive interaction its voxel's whole slice."""

    def __init__(self, truth):
        self.truth, self.target_buffer, self.seen = truth, None, []

    def set_image(self, data):
        assert data.shape == (1, *self.truth.shape)
        self.preprocess_future = Future()
        self.preprocess_future.set_result(None)

    def set_target_buffer(self, buffer):
        self.target_buffer = buffer

    def reset_interactions(self):
        self.target_buffer[...] = 0

    def add_point_interaction(self, index, include_interaction):
        assert self.truth[tuple(index)] == include_interaction and not self.target_buffer[tuple(index)]
        self.target_buffer[index[0]] = self.truth[index[0]]

    def add_bbox_interaction(self, bounds, include_interaction):
        self.seen.append(("box", [high - low for low, high in bounds]))

    def add_lasso_interaction(self, mask, include_interaction, interaction_bbox):
        self.seen.append(("lasso", [high - low for low, high in interaction_bbox]))
        assert mask.shape == tuple(self.seen[-1][1]) and mask.dtype == np.uint8

    def add_scribble_interaction(self, mask, include_interaction, interaction_bbox):
        self.seen.append(("scribble", [high - low for low, high in interaction_bbox]))
        (z, _), (y, _), (x, _) = interaction_bbox
        there = tuple(np.argwhere(mask).T + np.array([[z], [y], [x]]))
        assert self.truth[there].all()


@pytest.fixture
def case(tmp_path):
    """A label of four slices, a voxel to be ignored, and a model of it."""
    truth = np.zeros((12, 10, 10), dtype=np.uint8)
    truth[3:7, 2:8, 2:8] = 1
    truth[5, 5, 5] = 2
    for name, array in (("image.nii.gz", np.ones(truth.shape, np.float32)), ("truth.nii.gz", truth)):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name))
    session = Painter(truth == 1)
    model = SessionModel(session, frozenset({"point"}), {"a": 1}, 1, ".nii.gz", tmp_path, "0")
    return model, (tmp_path / "image.nii.gz",), tmp_path / "truth.nii.gz", labels_from_values([1], ignore=2)


def test_a_slice_a_click(case):
    model, images, truth, labels = case
    curves = list(curves_of_case(model, "c", images, truth, labels, list(USERS)))
    assert [curve.user for curve in curves] == ["centre", "uniform"]
    for curve in curves:
        assert len(curve.Dice) == 10 and len(curve.NSD) == 5 and len(curve.seconds) == len(curve.cpu_seconds) == 4
        assert curve.Dice[3:] == (1.0,) * 7 and curve.NSD[-2:] == (1.0, 1.0)
        assert curve.Dice[:3] == tuple(sorted(curve.Dice[:3]))
    again = list(curves_of_case(model, "c", images, truth, labels, ["uniform"]))
    assert again[0].Dice == curves[1].Dice


def test_whoever_draws_does_so_in_a_slice_of_the_largest_error(case):
    model, images, truth, labels = case
    model.kinds = frozenset({"box", "lasso", "scribble"})
    model.session.reset_interactions = lambda: None
    list(curves_of_case(model, "c", images, truth, labels, ["box", "scribble", "lasso"]))
    assert [kind for kind, _ in model.session.seen] == ["box"] * 10 + ["scribble"] * 10 + ["lasso"] * 10
    assert all(1 in size for _, size in model.session.seen)
    reference, found = np.zeros((2, 12, 10, 10), dtype=bool)
    reference[2:4, 2:4, 2:4], found[6:11, 3:9, 3:9] = True, True
    drawn = make_drawing_user("box", (1, 1, 1), "x")(reference, found)
    assert not drawn.positive and all(a >= 2 for a in drawn.corner)
    assert make_drawing_user("box", (1, 1, 1), "x")(found, found) is None


def test_components_are_objects_the_largest_first(case):
    model, images, truth, labels = case
    two = sitk.GetArrayFromImage(sitk.ReadImage(str(truth)))
    two[10:, 8:, 8:] = 1
    model.session.truth = two == 1
    sitk.WriteImage(sitk.GetImageFromArray(two), str(truth))
    curves = list(curves_of_case(model, "c", images, truth, labels, ["centre"], components=True))
    assert [curve.target for curve in curves] == ["1 #1", "1 #2"]
    assert summarise(curves)["centre"]["labels"].keys() == {"1"}


def test_means_areas_and_interactions_to_a_dice():
    def curve(target, dice, nsd=0.5):
        return InteractionCurve("c", target, "centre", tuple(dice), (nsd,) * 5, (1.0, 3.0), (0.5,))

    up = [n / 10 for n in range(1, 11)]
    found = summarise([curve("a", up), curve("a", [0.5] * 10), curve("b", [0.9] * 10, 1.0)])["centre"]
    a, mean = found["labels"]["a"], found["mean"]
    assert a["objects"] == 2 and mean["objects"] == 3
    assert a["Dice"] == {"1": 0.3, "2": 0.35, "3": 0.4, "5": 0.5, "10": 0.75}
    assert a["Dice AUC"] == pytest.approx(((0.1 + 1.0) / 2 + 0.5) / 2)
    assert mean["NSD AUC"] == pytest.approx(0.75) and mean["Dice"]["1"] == pytest.approx(0.6)
    # One needs eight, one never gets there, which counts as ten.
    assert a["interactions to"] == {"0.80": 9.0, "0.85": 9.5, "0.90": 9.5} and a["reached"]["0.80"] == 0.5
    assert found["labels"]["b"]["interactions to"]["0.90"] == 1.0
    assert a["seconds each"] == 2.0 and a["cpu_seconds each"] == 0.5
