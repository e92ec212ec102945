"""One row per model: a file here holds every fact about a model that is neither a layer nor a training step.

Planners, `nnunet_ext models`, `plan`, `import-weights`, `demo`, `doctor` and the look-up of classes derive from the
rows. Other packages bring rows of their own through the entry point group `nnunet_ext.models`:

    [project.entry-points."nnunet_ext.models"]
    mynet = "my_package.row:MODEL"

Standard library only: nnU-Net's worker processes read the rows.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys

from nnunet_ext.models import adapted, interactive, medsegdiff, nnunet, sam_med3d, segmamba, unetrpp, universeg
from nnunet_ext.models.model import Model, Paper, Trainer, Weights, WeightsFile, load

ENTRY_POINTS = "nnunet_ext.models"

OWN = (
    nnunet.MODEL,
    segmamba.MODEL,
    unetrpp.MODEL,
    sam_med3d.MODEL,
    medsegdiff.MODEL,
    universeg.MODEL,
    interactive.MODEL,
    adapted.MODEL,
)

__all__ = ["OWN", "Model", "Paper", "Trainer", "Weights", "WeightsFile", "find", "load", "others", "planned", "rows"]


def rows() -> tuple[Model, ...]:
    """All rows: this package's, then those other packages bring."""
    return OWN + others()


def planned() -> dict[str, Model]:
    """Name -> row of the models that have sizes to plan; not nnU-Net's own networks nor those named by path."""
    return {model.name: model for model in rows() if model.network and model.sizes}


def find(name: str | Model) -> Model:
    """The row called `name`; a row is returned as it is, such as one made for a network named by its path.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if isinstance(name, Model):
        return name
    for model in rows():
        if model.name == name:
            return model
    raise ValueError(f"no model {name!r}; known: {', '.join(model.name for model in rows())}")


@functools.cache
def others() -> tuple[Model, ...]:
    """Rows of other packages; one that cannot be read, or takes a name that is taken, costs one line on stderr."""
    found: list[Model] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            model = entry.load()
            if not isinstance(model, Model):
                raise TypeError(f"expected a nnunet_ext.models.Model, not {type(model).__name__}")
            taken = _names(OWN + tuple(found)) & _names((model,))
            if taken:
                raise ValueError(f"the name {min(taken)} is taken")
        except Exception as error:  # somebody else's package must not end nnU-Net's processes
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"nnunet_ext: the model {entry.name} = {entry.value} is left out ({reason})", file=sys.stderr)
            continue
        found.append(model)
    return tuple(found)


def _names(models: tuple[Model, ...]) -> set[str]:
    """Whatever may stand for one model only: names in commands, classes, the network that plans name."""
    names = {name for m in models for name in (m.name, m.suffix, m.network, *(t.name for t in m.trainers))}
    return {name for name in names if name}
