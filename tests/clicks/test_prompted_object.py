"""One object by clicks, with a network whose answers are known: windows, extension, undo, embeddings kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.promptable_stubs import Bright

from nnunet_ext.clicks.prompted_object import OUTSIDE, PreparedVolume, PromptedObject
from nnunet_ext.clicks.scores import PromptedScore, click_through, make_user, summarise
from nnunet_ext.prompts.types import Clicks


def volume(shape=(16, 16, 80), bright=(slice(6, 10), slice(6, 10), slice(4, 70))) -> PreparedVolume:
    data = torch.zeros(1, *shape)
    data[(0, *bright)] = 1.0
    return PreparedVolume(data, (16, 16, 16), (1.0, 1.0, 1.0))


def test_an_object_longer_than_the_window_is_followed_to_both_ends():
    scan, network = volume(), Bright().eval()
    found = PromptedObject(network, scan)
    found.click((8, 8, 40), positive=True)
    logits = found.logits()
    assert torch.equal(logits > 0, scan.data[0] > 0.5)
    assert logits.min() >= OUTSIDE
    # The first window is centred on the click, and what follows carries a positive point and a mask of its own.
    assert (0, 0, 32) in scan.embeddings
    labels, low_res = network.seen[1]
    assert labels == [1] and low_res.abs().max() > 0


def test_no_window_far_from_the_clicks():
    scan, network = volume(bright=(slice(6, 10), slice(6, 10), slice(36, 44))), Bright().eval()
    found = PromptedObject(network, scan)
    found.click((8, 8, 40), positive=True)
    assert list(scan.embeddings) == [(0, 0, 32)]
    assert (found.logits()[..., :32] == OUTSIDE).all()


def test_a_click_outside_all_windows_opens_one():
    scan, network = volume(bright=(slice(6, 10), slice(6, 10), slice(36, 44))), Bright().eval()
    scan.data[0, 6:10, 6:10, 4:8] = 1.0
    found = PromptedObject(network, scan)
    found.click((8, 8, 40), positive=True)
    found.click((8, 8, 6), positive=True)
    assert torch.equal(found.logits() > 0, scan.data[0] > 0.5)


def test_further_clicks_take_the_embedding_there_is_and_all_clicks_before():
    scan, network = volume(bright=(slice(6, 10), slice(6, 10), slice(36, 44))), Bright().eval()
    found = PromptedObject(network, scan)
    for n, positive in enumerate((True, False, True), start=1):
        found.click((8, 8, 40), positive)
        assert network.encoded == 1
        labels, low_res = network.seen[-1]
        assert len(labels) == n
        assert bool(low_res.any()) == (n > 1)  # the logits before
    assert labels == [1, 0, 1]
    # Another object on the same volume needs no encoding either.
    PromptedObject(network, scan).click((8, 8, 40), True)
    assert network.encoded == 1


def test_undo_brings_back_what_was():
    scan, network = volume(bright=(slice(6, 10), slice(6, 10), slice(36, 44))), Bright().eval()
    scan.data[0, 6:10, 6:10, 4:8] = 1.0
    found = PromptedObject(network, scan)
    assert not found.undo() and (found.logits() == OUTSIDE).all()
    found.click((8, 8, 40), positive=True)
    before = found.logits()
    found.click((8, 8, 6), positive=True)
    assert found.undo() and torch.equal(found.logits(), before) and len(found.clicks) == 1


def test_continuing_from_a_mask_segments_all_of_it():
    scan, network = volume(), Bright().eval()
    start = np.zeros(scan.grid, dtype=bool)
    start[7:9, 7:9, 10:60] = True
    found = PromptedObject(network, scan, start)
    assert network.seen[0][0] is None and network.seen[0][1].max() > 0  # no click, a mask
    marked = found.logits() > 0
    assert marked[8, 8, 10:60].all() and not marked[0].any()


def test_volumes_smaller_than_the_window_and_clicks_outside():
    scan = PreparedVolume(torch.ones(1, 5, 16, 9), (16, 16, 16), (1.0, 1.0, 1.0))
    found = PromptedObject(Bright().eval(), scan)
    found.click((2, 8, 4), positive=True)
    assert found.logits().shape == (5, 16, 9) and (found.logits() > 0).all()
    with pytest.raises(ValueError, match="outside the grid"):
        found.click((7, 8, 4), positive=True)


def test_scores_after_each_number_of_clicks():
    scan = volume(bright=(slice(6, 10), slice(6, 10), slice(36, 44)))
    reference = (scan.data[0] > 0.5).numpy()
    reference[6:10, 6:10, 4:8] = True  # half as many voxels more, which the network cannot find before a click there
    scan.data[0, 6:10, 6:10, 4:8] = 1.0
    dice, nsd = click_through(Bright().eval(), scan, reference, make_user("centre", scan.spacing_mm, 0), (1, 2, 4))
    assert dice == (pytest.approx(2 * 128 / (128 + 192)), 1.0, 1.0)
    assert nsd[0] < 1.0 and nsd[1:] == (1.0, 1.0)


def test_summary_means_over_cases_then_classes_and_area_under_the_curve():
    scores = [
        PromptedScore("a", "liver", user, (0.2, 0.4, 0.4), (0.0, 0.0, 0.0)) for user in ("uniform", "centre")
    ] + [
        PromptedScore("b", "liver", "uniform", (0.4, 0.6, 0.6), (0.0, 0.0, 0.0)),
        PromptedScore("a", "spleen", "uniform", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ]  # fmt: skip
    uniform = summarise(scores, clicks=(1, 2, 5))["users"]["uniform"]
    assert uniform["classes"]["liver"]["Dice"] == pytest.approx({"1": 0.3, "2": 0.5, "5": 0.5})
    assert uniform["classes"]["liver"]["n"] == 2
    assert uniform["mean"]["Dice"] == pytest.approx({"1": 0.65, "2": 0.75, "5": 0.75})
    # (1 * (0.3 + 0.5) / 2 + 3 * 0.5) / 4
    assert uniform["classes"]["liver"]["Dice AUC"] == pytest.approx(0.475)


def test_random_user_repeats_itself():
    truth = torch.zeros(1, 9, 9, 9, dtype=torch.bool)
    truth[0, 2:7, 2:7, 2:7] = True
    clicks: list[Clicks] = [make_user("uniform", (1.0,) * 3, seed=3)(truth, ~truth) for _ in range(2)]
    assert torch.equal(clicks[0].index, clicks[1].index)
