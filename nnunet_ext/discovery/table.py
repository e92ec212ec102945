"""The classes nnU-Net can ask for by name: those of all models, and this project's preprocessors.

Standard library only: the table is read in every nnU-Net process, workers included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nnunet_ext import models

# Where nnU-Net looks for each kind of class: the start of the module name it hands to its search.
KINDS = {
    "trainer": "nnunetv2.training",
    "planner": "nnunetv2.experiment_planning",
    "preprocessor": "nnunetv2.preprocessing",
}


@dataclass(frozen=True)
class Entry:
    """A class nnU-Net may ask for: exact name, module that defines it, kind (a key of `KINDS`).

    `trainer` and `model` are its rows, where it has any.
    """

    name: str
    module: str
    kind: str = "trainer"
    trainer: models.Trainer | None = None
    model: models.Model | None = None


PREPROCESSOR = Entry("ExactFastPreprocessor", "nnunet_ext.plans.preprocessor", "preprocessor")
VIEWERS_PREPROCESSOR = Entry("ViewerPreprocessor", "nnunet_ext.plans.viewer_preprocessor", "preprocessor")


def entries_of(model: models.Model) -> Iterator[Entry]:
    """The trainers and the planner of a model."""
    for trainer in model.trainers:
        yield Entry(trainer.name, trainer.module, "trainer", trainer, model)
    if model.planner is not None:
        yield Entry(model.planner, "nnunet_ext.plans.planner", "planner", model=model)


# Of this package alone: in most processes nobody asks for more, and other packages' rows take time to find.
OWN = (PREPROCESSOR, VIEWERS_PREPROCESSOR, *(entry for model in models.OWN for entry in entries_of(model)))


def entries() -> tuple[Entry, ...]:
    """All classes, those that other packages bring included."""
    return OWN + tuple(entry for model in models.others() for entry in entries_of(model))


def find(name: str, kind: str | None = None) -> Entry | None:
    """Return the entry called exactly `name`, of that kind when one is given, or None."""
    for part in (lambda: OWN, entries):
        for entry in part():
            if entry.name == name and kind in (None, entry.kind):
                return entry
    return None


def trainers() -> tuple[Entry, ...]:
    """All trainers, in the order of the rows."""
    return tuple(entry for entry in entries() if entry.kind == "trainer")
