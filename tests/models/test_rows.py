"""The rows: complete, resolvable, and no place of a model is forgotten."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import nnunet_ext
from nnunet_ext import models
from nnunet_ext.models import Model

ROOT = Path(nnunet_ext.__file__).parent
OWN = pytest.mark.parametrize("model", models.OWN, ids=lambda model: model.name)


def stems(folder: str) -> set[str]:
    names = {
        path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    return names - {"__init__"}


def test_no_place_of_a_model_is_forgotten():
    names = {model.name for model in models.OWN}
    assert stems("models") - {"model"} == names, "every file in models/ is a row in models/__init__.py"
    assert stems("architectures") - {"blocks", "precision"} == names - {"nnunet"}, "every network has a row"
    modules = {trainer.module.rpartition(".")[2] for model in models.OWN for trainer in model.trainers}
    shared = {
        "shared", "checkpoint_files", "checkpoints", "failures", "interrupts", "loaders", "recipe", "run_record",
        "settings", "signals", "tensorboard",
    }  # fmt: skip
    assert stems("trainers") - shared == modules, "every trainer is in a row"


@OWN
def test_whatever_a_row_names_is_there(model):
    named = [model.network, model.from_patch, model.step, model.loss, model.on_gpu]
    named += [f"{trainer.module}:{trainer.name}" for trainer in model.trainers]
    if model.weights is not None:
        named += [model.weights.build, model.weights.transfer]
    for path in filter(None, named):
        models.load(path)
    step = models.load(model.step)
    assert callable(step.step) and callable(step.example)
    assert model.trainers[0].name == f"nnUNetTrainer{model.suffix}"


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="no model 'segmanba'; known: nnunet, segmamba, "):
        models.find("segmanba")


def test_a_broken_module_is_not_taken_for_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "broken_row_module.py").write_text("import no_such_package_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        models.load("broken_row_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        models.load("broken_row_module.Network")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:MODEL", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("fractions:Fraction", "expected a nnunet_ext.models.Model"),
        ("nnunet_ext.models.segmamba:MODEL", "the name SegMamba is taken"),
    ],
)
def test_rows_that_cannot_be_used_cost_one_line(monkeypatch, capsys, value, message):
    points = [EntryPoint("theirs", value, models.ENTRY_POINTS)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)
    models.others.cache_clear()
    try:
        assert models.rows() == models.OWN
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error and f"theirs = {value}" in error
    finally:
        models.others.cache_clear()


def test_rows_are_frozen():
    with pytest.raises(AttributeError):
        models.OWN[0].title = "other"  # type: ignore[misc]
    assert all(isinstance(model, Model) for model in models.OWN)
