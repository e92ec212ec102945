"""SAM-Med3D opened by the official interactive session: its clicks become ours, and the answers are ours."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.promptable_stubs import trained_folder

from nnunet_ext.architectures.sam_med3d.in_viewers import SAMMed3DInViewers
from nnunet_ext.checkpoints.sam_med3d import INTERACTIONS
from nnunet_ext.checkpoints.viewer_folder import write_viewer_folder
from nnunet_ext.clicks.model import load_trained
from nnunet_ext.prompts.channels import CHANNELS
from nnunet_ext.prompts.types import Points

session_module = pytest.importorskip("nnInteractive.inference.inference_session")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A patch of different sizes, axes turned by the plans, three classes: what sessions do not know of."""
    folder = trained_folder(tmp_path_factory.mktemp("model"))
    described = json.loads((folder / "plans.json").read_text())
    described["configurations"]["3d_fullres"]["patch_size"] = [16, 20, 24]
    (folder / "plans.json").write_text(json.dumps(described))
    write_viewer_folder(folder, {"licence": "CC0"}, INTERACTIONS)
    return folder


@pytest.fixture
def session(folder):
    opened = session_module.nnInteractiveInferenceSession(
        device=torch.device("cpu"), torch_n_threads=1, do_autozoom=False
    )
    opened.initialize_from_trained_model_folder(str(folder), use_fold=0)
    return opened


def start(session, shape=(30, 24, 28)) -> np.ndarray:
    image = np.random.default_rng(0).normal(100, 20, (1, *shape)).astype(np.float32)
    session.set_image(image)
    session.set_target_buffer(np.zeros(shape, dtype=np.uint8))
    return image[0]


def ours(folder, image, corner, clicks, previous):
    """Our own network on the window (16, 20, 24) from `corner`, its axes turned as the plans have them."""
    network = load_trained(folder).network
    turn = (2, 0, 1)
    normal = torch.from_numpy((image - image.mean()) / image.std(ddof=1))
    window = tuple(slice(c, c + n) for c, n in zip(corner, (16, 20, 24), strict=True))
    patch = normal[window].permute(turn)[None, None]
    index = torch.tensor([[[point[a] - corner[a] for a in turn] for point, _ in clicks]])
    points = Points(index, torch.tensor([[int(positive) for _, positive in clicks]]))
    mask = torch.from_numpy(previous[window]).permute(turn)[None, None].float()
    with torch.no_grad():
        low_res = network.mask_prompt(mask) if mask.any() else network.no_mask(1, mask.device)
        low_res = network.segment(network.embed(patch), points, low_res, patch.shape[2:])
        logits = network.upscale(low_res, patch.shape[2:])[0, 0].permute(1, 2, 0)
    result = previous.copy()
    result[window] = (logits > 0).numpy()
    return result


def test_the_session_answers_as_our_own_network_with_the_same_clicks(session, folder):
    image = start(session)
    assert isinstance(session.network, SAMMed3DInViewers) and not session.network.training
    clicks = [((14, 12, 13), True)]
    session.add_point_interaction(clicks[0][0], include_interaction=True)
    expected = ours(folder, image, (6, 2, 1), clicks, np.zeros(image.shape, dtype=np.uint8))
    assert 0 < expected.sum() < expected.size
    assert np.array_equal(session.target_buffer, expected)
    # The next window is elsewhere and starts from the mask so far. Balls overlap, and are two clicks all the same.
    clicks.append(((16, 12, 15), False))
    session.add_point_interaction(clicks[1][0], include_interaction=False)
    expected = ours(folder, image, (8, 2, 3), clicks, expected)
    assert np.array_equal(session.target_buffer, expected)
    assert session.undo()
    session.add_point_interaction(clicks[1][0], include_interaction=False)
    assert np.array_equal(session.target_buffer, expected)


def test_clicks_outside_the_window_are_not_shown_and_a_mask_is_a_start(session, folder):
    image = start(session)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[4:14, 6:18, 8:20] = 1
    session.add_initial_seg_interaction(mask)
    session.add_point_interaction((5, 12, 13), include_interaction=True, run_prediction=False)  # a voxel outside
    session.add_point_interaction((14, 12, 13), include_interaction=True)
    assert np.array_equal(session.target_buffer, ours(folder, image, (6, 2, 1), [((14, 12, 13), True)], mask))


@pytest.mark.parametrize("zoom", (1.2, 1.5, 2.25, 4))
def test_clicks_are_found_after_zooming_out(session, zoom):
    start(session, (60, 60, 60))
    places = [((30, 30, 30), True), ((30, 40, 30), True), ((24, 30, 25), False)]
    for place, positive in places:
        session.add_point_interaction(place, include_interaction=positive, run_prediction=False)
    shown, *_ = session._build_network_input((30, 30, 30), zoom)
    seen = []
    session.network.segment = lambda embedding, points, low_res, patch: seen.append(points) or low_res
    session.network(shown[None])
    del session.network.segment
    turn, patch = (2, 0, 1), (16, 20, 24)
    size = [round(n * zoom) for n in patch]
    wanted = [
        ([((p - (30 - s // 2)) + 0.5) / s * n - 0.5 for p, s, n in zip(place, size, patch, strict=True)], positive)
        for place, positive in places
    ]
    found = sorted(zip(seen[0].index[0].tolist(), seen[0].labels[0].tolist(), strict=True))
    assert len(found) == 3
    for (index, label), (place, positive) in zip(
        found, sorted(([w[a] for a in turn], p) for w, p in wanted), strict=True
    ):
        assert label == positive and np.abs(np.subtract(index, place)).max() <= 1


def test_what_sam_med3d_has_no_prompt_for_is_refused(session):
    start(session)
    assert session.license == "CC0" and session.supported_interactions == {
        "points": True, "bbox2d": False, "bbox3d": False, "scribble": False, "lasso": False
    }  # fmt: skip
    with pytest.raises(ValueError, match="not supported"):
        session.add_scribble_interaction(np.ones((30, 24, 28), dtype=np.uint8), include_interaction=True)
    x = torch.zeros(1, 1 + CHANNELS, 16, 20, 24)
    x[0, 2, 3:5] = 1
    with pytest.raises(ValueError, match="no prompt for boxes or lassos; give points"):
        session.network(x)
    with pytest.raises(ValueError, match=r"takes 8 channels \(image and prompts\), not 9"):
        session.network(torch.zeros(1, 9, 16, 20, 24))
