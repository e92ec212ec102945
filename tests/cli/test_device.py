"""The device of a prediction, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.cli.device import chosen_device
from nnunet_ext.errors import UserError
from nnunet_ext.inference.predictor import FolderPredictor


@pytest.mark.parametrize(
    ("gpu", "asked", "chosen", "said"),
    [
        (True, None, "cuda", ""),
        (True, "cpu", "cpu", ""),
        (False, None, "cpu", "nnunet_ext predict: no usable GPU here, so on the CPU\n"),
        (False, "cpu", "cpu", ""),
    ],
)
def test_a_gpu_is_taken_where_there_is_one(monkeypatch, capsys, gpu, asked, chosen, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert chosen_device(asked, "predict") == chosen
    assert capsys.readouterr() == ("", said)


def test_a_gpu_that_was_asked_for_and_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="-device cuda: no usable GPU here; leave it out"):
        chosen_device("cuda", "predict")


def test_nnunets_warning_about_the_device_is_not_heard(capsys):
    predictor = FolderPredictor(device=torch.device("cpu"), perform_everything_on_device=True)
    assert not predictor.perform_everything_on_device and capsys.readouterr().out == ""
