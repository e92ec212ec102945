"""What only GPUs run in earnest, on the CPU: half precision with its loss scaler, and several ranks."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import torch
from helpers import two_ranks

from nnunet_ext.trainers.segmamba import nnUNetTrainerSegMamba


def batch() -> dict:
    return {
        "data": torch.randn(2, 1, 16, 32, 32),
        "target": torch.zeros(2, 1, 16, 32, 32, dtype=torch.int16),
        "keys": np.array(["case_03", "case_07"]),
    }


@pytest.mark.slow
def test_half_precision_skips_the_step_that_overflows(make_trainer):
    trainer = make_trainer(nnUNetTrainerSegMamba)
    trainer.initialize()
    trainer.precision, trainer.grad_scaler = "fp16", torch.amp.GradScaler("cpu", init_scale=2.0**8)
    trainer.lr_scheduler.step(0)
    seen = []
    handle = trainer.network.out.conv.conv.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    norms = []
    step = trainer.optimizer.step

    def watched(*args, **kwargs):
        gradients = [p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return step(*args, **kwargs)

    trainer.optimizer.step = watched
    assert np.isfinite(trainer.train_step(batch())["loss"])
    handle.remove()
    assert seen == [torch.float16]
    # Unscaled before they were clipped: else they were 256 times what the optimiser may see, or smaller than they are.
    assert 0 < norms[0] <= 12.01
    after = [p.detach().clone() for p in trainer.network.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    overflow = next(trainer.network.parameters()).register_hook(lambda grad: grad * float("inf"))
    trainer.train_step(batch())
    overflow.remove()
    assert len(norms) == 1, "the optimiser saw gradients that are not finite"
    assert all(torch.equal(a, b) for a, b in zip(after, trainer.network.parameters(), strict=True))
    assert trainer.grad_scaler.get_scale() == 2.0**7


def test_one_rank_that_fails_ends_all_with_its_message(preprocessed, make_trainer, tmp_path, monkeypatch):
    for name, value in {"EPOCHS": "1", "PRECISION": "fp32"}.items():
        monkeypatch.setenv(f"NNUNET_EXT_{name}", value)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context = torch.multiprocessing.spawn(
        two_ranks.train_and_validate, (port, str(preprocessed), str(tmp_path)), nprocs=2, join=False
    )
    try:
        for _ in range(30):  # five minutes on a busy machine; a rank that waits for the other waits for half an hour
            if context.join(timeout=10):
                break
    finally:
        for process in context.processes:
            process.kill()
    said = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0]["export"] == said[1]["export"] and "(no space left)" in said[0]["export"]
    assert (
        said[0]["loss"] == said[1]["loss"] and "loss is nan" in said[0]["loss"] and "case_of_rank_1" in said[0]["loss"]
    )
    assert "case_of_rank_0" not in said[0]["loss"]
    assert "ERROR: the loss is nan" in said[0]["log"] and "no space left" in said[0]["log"]
