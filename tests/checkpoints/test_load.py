"""Checkpoint files of strangers: weights come in, code and damaged files do not."""

from __future__ import annotations

import pickle

import pytest
import torch

from nnunet_ext.checkpoints import build_from_official, read_checkpoint
from nnunet_ext.errors import UserError

WEIGHTS = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model_state_dict": {"module." + k: v for k, v in WEIGHTS.items()}},
    ],
    ids=["plain", "wrapped", "wrapped and data-parallel"],
)
def test_reads_every_common_wrapping(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    read = read_checkpoint(tmp_path / "weights.pth")
    assert list(read) == list(WEIGHTS)
    assert all(torch.equal(read[key], WEIGHTS[key]) for key in WEIGHTS)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_never_run(tmp_path, zipped):
    marker = tmp_path / "executed"
    torch.save(
        {"state_dict": WEIGHTS, "x": Payload(marker)},
        tmp_path / "weights.pth",
        pickle_module=pickle,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"weights\.pth holds more than tensors and plain values .*and was not loaded"):
        read_checkpoint(tmp_path / "weights.pth")
    assert not marker.exists()


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(path)
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"weights\.pth cannot be read"):
        read_checkpoint(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no state_dict"):
        read_checkpoint(path)
    for text in ("not a checkpoint", "hello world", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"weights\.pth") as caught:
            read_checkpoint(path)
        assert "weights_only" not in str(caught.value)  # torch's advice to read it unsafely


def test_unknown_network_lists_the_known():
    with pytest.raises(ValueError, match=r"no official network 'segmamba3'; known: .*segmamba"):
        build_from_official("segmamba3", {})
