"""`nnunet_ext models`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nnunet_ext.discovery.table import ENTRIES

TRAINERS = [entry for entry in ENTRIES if entry.kind == "trainer"]


def models(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nnunet_ext", "models", *options], capture_output=True, text=True
    )


def test_text_has_what_one_needs_to_train():
    done = models()
    assert done.returncode == 0
    for entry in TRAINERS:
        configuration = "3d_fullres" if "3d_fullres" in entry.model.inputs else "2d"
        assert f"nnUNetv2_train DATASET {configuration} 0 -tr {entry.name}\n" in done.stdout
        assert entry.model.link in done.stdout
    assert "67.4 M" in done.stdout
    assert "| torch" not in done.stderr, "a list of facts must not import torch"


def test_json_has_every_trainer():
    rows = json.loads(models("--json").stdout)
    assert [row["name"] for row in rows] == [entry.name for entry in TRAINERS]
    assert all(row["command"].endswith("-tr " + row["name"]) for row in rows)


@pytest.mark.parametrize("entry", TRAINERS, ids=lambda entry: entry.name)
def test_facts_are_complete(entry):
    model = entry.model
    assert model.link.startswith(("arXiv:", "doi:"))
    assert set(model.inputs) <= {"2d", "3d_fullres", "3d_lowres", "cascade"} and model.inputs
    assert model.paper and model.network and model.needs and model.parameters_of
