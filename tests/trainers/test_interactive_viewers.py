"""What viewers do with a trained folder: AutoZoom, and the official server with the official client over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from helpers import interactive_scene, nnunet_dataset
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnInteractive.inference.remote.remote_session import nnInteractiveRemoteInferenceSession
from torch import nn

pytestmark = pytest.mark.slow
PATCH = [64, 64, 64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model folder with a patch as the planner makes them."""
    base = tmp_path_factory.mktemp("viewers")
    interactive_scene.make_raw(base)
    interactive_scene.shrink(interactive_scene.plan(base))
    trained = interactive_scene.train(base)
    return interactive_scene.with_patch(trained, base / "model", PATCH)


class Bright(nn.Module):
    """Whatever is brighter than the image's mean: a network whose answer is known."""

    def forward(self, x):
        return torch.stack((-x[:, 0], x[:, 0]), 1)


def test_autozoom_segments_what_is_larger_than_a_patch(folder):
    session = nnInteractiveInferenceSession(torch.device("cpu"), torch_n_threads=1)
    session.initialize_from_trained_model_folder(str(folder))
    session.network.backbone = Bright()
    image = np.full((1, 150, 70, 72), 10, dtype=np.float32)
    image[:, 8:140, 20:50, 22:52] = 100
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    session.set_image(image)
    buffer = np.zeros(image.shape[1:], np.uint8)
    session.set_target_buffer(buffer)
    session.add_point_interaction((70, 35, 36), True)
    thing = image[0] > 55
    # The refinement leaves out what its last patches' borders alone would show.
    assert 2 * (thing & (buffer > 0)).sum() / (thing.sum() + buffer.sum()) > 0.9
    assert buffer[12].any() and buffer[135].any()


@pytest.fixture(scope="module")
def server(folder):
    """The official server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(nnunet_dataset.COMMANDS / "nninteractive-server"), "--model-dir", str(folder), "--fold", "0"]
    command += ["--device", "cpu", "--port", str(port), "--no-torch-compile", "--torch-n-threads", "1"]
    log = folder / "server.log"
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                httpx.get(address, timeout=1)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_every_interaction_of_two_clients_over_http_is_that_of_the_session(folder, server):
    """Both take turns; what each finds is what a session of its own finds on the same image."""
    local = []
    for _ in range(2):
        session = nnInteractiveInferenceSession(torch.device("cpu"), torch_n_threads=1)
        session.initialize_from_trained_model_folder(str(folder))
        local.append(session)
    mask = np.zeros(interactive_scene.SHAPE, np.uint8)
    mask[8, 8:14, 9:12] = 1
    with nnInteractiveRemoteInferenceSession(server) as one, nnInteractiveRemoteInferenceSession(server) as two:
        assert one.license == "CC0 1.0" and one.supported_interactions == local[0].supported_interactions
        buffers = []
        for number, who in enumerate((one, two, *local)):
            image, labels = interactive_scene.ball(8 + number % 2)
            who.set_image(image[None])
            buffers.append(np.zeros(interactive_scene.SHAPE, np.uint8))
            who.set_target_buffer(buffers[-1])

        def everywhere(do):
            done = [do(who) for who in (one, two, *local)]
            assert np.array_equal(buffers[0], buffers[2]) and np.array_equal(buffers[1], buffers[3])
            return done

        everywhere(lambda who: who.add_point_interaction((9, 10, 13), True))
        assert buffers[0].any() or buffers[1].any()
        everywhere(lambda who: who.add_bbox_interaction([[9, 10], [5, 15], [8, 18]], True))
        everywhere(lambda who: who.add_scribble_interaction(mask, True))
        everywhere(lambda who: who.add_lasso_interaction(mask, False))
        before = [buffer.copy() for buffer in buffers]
        everywhere(lambda who: who.add_point_interaction((9, 20, 13), False))
        assert everywhere(lambda who: who.undo()) == [True] * 4
        assert all(np.array_equal(*pair) for pair in zip(before, buffers, strict=True))
        everywhere(lambda who: who.add_initial_seg_interaction((labels == 1).astype(np.uint8)))
        assert np.array_equal(buffers[0] > 0, labels == 1)
        everywhere(lambda who: who.reset_interactions())
        assert not any(buffer.any() for buffer in buffers)
