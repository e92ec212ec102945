"""`nnunet_ext models`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nnunet_ext import models as rows

TRAINERS = [(model, trainer) for model in rows.OWN for trainer in model.trainers]


def models(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nnunet_ext", "models", *options], capture_output=True, text=True
    )


def test_text_has_what_one_needs_to_train():
    done = models()
    assert done.returncode == 0
    for model, trainer in TRAINERS:
        configuration = "3d_fullres" if "3d_fullres" in trainer.inputs else "2d"
        assert f"nnUNetv2_train DATASET {configuration} 0 -tr {trainer.name}\n" in done.stdout
        assert model.paper.link in done.stdout
    assert "67.4 M" in done.stdout
    assert "| torch" not in done.stderr, "a list of facts must not import torch"


def test_json_has_every_trainer():
    found = json.loads(models("--json").stdout)
    assert [row["name"] for row in found] == [trainer.name for _, trainer in TRAINERS]
    assert all(row["command"].endswith("-tr " + row["name"]) for row in found)


@pytest.mark.parametrize(("model", "trainer"), TRAINERS, ids=[trainer.name for _, trainer in TRAINERS])
def test_facts_are_complete(model, trainer):
    assert model.paper.link.startswith(("arXiv:", "doi:")) and model.paper.citation
    assert set(trainer.inputs) <= {"2d", "3d_fullres", "3d_lowres", "cascade"} and trainer.inputs
    assert trainer.network and trainer.needs and trainer.parameters_of
