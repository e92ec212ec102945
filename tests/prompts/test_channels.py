"""Interactions as channels, compared with those of the viewers' own session."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnInteractive.interaction.point import PointInteraction_stub

from nnunet_ext.checkpoints.viewer_folder import inference_info
from nnunet_ext.prompts import channels as ours

SHAPE, PATCH = (20, 24, 22), (16, 16, 16)
# Values are rounded to half precision before and after they are divided by the strength of the newest.
ROUNDED = {"rtol": 2**-9, "atol": 1e-6}


@pytest.fixture
def session():
    """The official session with what our folders tell it, and no network."""
    session = nnInteractiveInferenceSession(torch.device("cpu"), interactions_storage="tensor", torch_n_threads=1)
    info = inference_info()
    session._apply_capability(info)
    session.interaction_decay = info["interaction_decay"]
    session.point_interaction = PointInteraction_stub(info["point_radius"], True)
    session.configuration_manager = SimpleNamespace(patch_size=PATCH)
    session.set_image(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32))
    return session


def drawn(*where):
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[where] = 1
    return mask


def interact(session):
    """Some of each kind, overlapping and over the border, and the same as ours."""
    line, patch = drawn(8, slice(3, 15), 9), drawn(slice(2, 12), 11, slice(4, 14))
    before = drawn(slice(5, 9), slice(5, 9), slice(5, 9))
    session.add_initial_seg_interaction(before)
    options = {"run_prediction": False}
    session.add_point_interaction((8, 9, 10), True, **options)
    session.add_point_interaction((1, 23, 10), False, **options)
    session.add_bbox_interaction([[7, 8], [2, 18], [3, 12]], True, **options)
    session.add_lasso_interaction(patch, True, **options)
    session.add_scribble_interaction(line, False, **options)
    session.add_point_interaction((10, 10, 10), True, **options)
    return before, [
        ours.point((8, 9, 10)),
        ours.point((1, 23, 10), positive=False),
        ours.box(((7, 8), (2, 18), (3, 12))),
        ours.lasso(patch),
        ours.scribble(line[8:9], positive=False, corner=(8, 0, 0)),
        ours.point((10, 10, 10)),
    ]


def test_as_the_session_encodes_them(session):
    before, interactions = interact(session)
    shown, _, _, _ = session._build_network_input((10, 12, 11), 1)
    whole = ours.encode(interactions, SHAPE, before)
    crop = tuple(slice(c - 8, c + 8) for c in (10, 12, 11))
    assert whole.dtype == torch.float16
    assert whole.flatten(1).any(1).tolist() == [True, True, False, True, True, False, True]
    torch.testing.assert_close(whole[(slice(None), *crop)].float(), shown[1:].float(), **ROUNDED)
    one_by_one = ours.none(SHAPE)
    one_by_one[ours.PREVIOUS] = torch.from_numpy(before)
    for interaction in interactions:
        ours.add(one_by_one, interaction)
    torch.testing.assert_close(one_by_one, whole.float(), **ROUNDED)


@pytest.mark.parametrize("factor", (1.5, 2.25, 4))
def test_from_farther_away_as_autozoom_shows_them(session, factor):
    before, interactions = interact(session)
    center = (10, 12, 11)
    shown, size, box, _ = session._build_network_input(center, factor)
    pad = [(max(-low, 0), max(high - n, 0)) for (low, high), n in zip(box, SHAPE, strict=True)]
    inside = tuple(slice(max(low, 0), high) for low, high in box)
    padding = [n for pair in reversed(pad) for n in pair]
    image = torch.nn.functional.pad(session.preprocessed_image[(slice(None), *inside)], padding)
    channels = torch.nn.functional.pad(ours.encode(interactions, SHAPE, before)[(slice(None), *inside)], padding)
    assert image.shape[1:] == tuple(size)
    image, channels = ours.zoomed_out(image, channels, PATCH, factor)
    torch.testing.assert_close(image, shown[:1])
    torch.testing.assert_close(channels.float(), shown[1:].float(), rtol=2**-8, atol=2e-3)
