"""How a segmentation betters with every interaction: simulated users on held-out cases, through the viewers' session.

The users see the reference. What follows from them says how well a model understands, and is no score of automatic use.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np

from nnunet_ext.clicks.users import USERS, make_drawing_user
from nnunet_ext.clicks.viewer_session import SessionModel
from nnunet_ext.evaluation.labels import Labels
from nnunet_ext.evaluation.metrics import surface_metrics
from nnunet_ext.evaluation.surface import surface_distances
from nnunet_ext.images import Image, read_image, read_mask

COUNTS = (1, 2, 3, 5, 10)
THRESHOLDS = (0.80, 0.85, 0.90)
NSD_TOLERANCE_MM = 1.0
# Objects in a case, when every connected part is one.
MOST_COMPONENTS = 5
NOTE = (
    "Simulated users: every one sees the reference and corrects what is wrong. Not comparable with automatic "
    "segmentation."
)


@dataclass(frozen=True)
class InteractionCurve:
    """One object of one case under one user.

    Attributes:
        case, target, user: which; a connected part is named `label #number`, the largest first.
        Dice: after each interaction from the first.
        NSD: after each number of `COUNTS`.
        seconds: of each interaction, from drawing to mask, by the clock.
        cpu_seconds: of this process.
    """

    case: str
    target: str
    user: str
    Dice: tuple[float, ...]
    NSD: tuple[float, ...]
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]


def curves_of_case(
    model: SessionModel,
    case: str,
    images: Sequence[Path],
    reference: Path,
    labels: Labels,
    users: Sequence[str],
    components: bool = False,
) -> Iterator[InteractionCurve]:
    """Every object of a case under every user that draws what the model understands.

    Args:
        model: opened in a session.
        case: its name; users draw alike for the same name.
        images: a file per channel.
        reference: label map.
        labels: of the data set.
        users: names of `USERS`.
        components: each connected part of a label is an object, up to the `MOST_COMPONENTS` largest.

    Raises:
        UserError: a file is not as it should be, or the session failed.
    """
    image = read_image(images)
    truth = read_mask(reference, image)
    ignored = None if labels.ignore is None else truth == labels.ignore
    prepared = model.prepare(image)
    for target, mask in _objects(truth, labels, components):
        for user in users:
            if USERS[user][0] in model.kinds:
                yield _curve(model, prepared, image, mask, ignored, case, target, user)


def _curve(
    model: SessionModel,
    prepared: Any,
    image: Image,
    truth: np.ndarray,
    ignored: np.ndarray | None,
    case: str,
    target: str,
    user: str,
) -> InteractionCurve:
    draw = make_drawing_user(user, image.spacing_mm, f"{case}/{target}")
    thing = model.begin(prepared)
    dice, nsd, seconds, cpu = [], [], [], []
    found: np.ndarray = np.zeros_like(truth)
    for number in range(1, COUNTS[-1] + 1):
        drawn = draw(truth, found)
        if drawn is not None:
            begun, cpu_begun = time.perf_counter(), time.process_time()
            thing.add(drawn)
            seconds.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - cpu_begun)
            found = thing.mask if ignored is None else thing.mask & ~ignored
        # Where nothing is wrong nobody goes on, and the score stays.
        dice.append(2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth)))
        if number in COUNTS:
            nsd.append(_nsd(truth, found, image.spacing_mm))
    return InteractionCurve(case, target, user, tuple(dice), tuple(nsd), tuple(seconds), tuple(cpu))


def _nsd(truth: np.ndarray, found: np.ndarray, spacing_mm: Sequence[float]) -> float:
    distances = surface_distances(truth.astype(np.uint8), found.astype(np.uint8), spacing_mm, [1])
    return float(surface_metrics(distances[1], NSD_TOLERANCE_MM)["NSD"])


def _objects(truth: np.ndarray, labels: Labels, components: bool) -> Iterator[tuple[str, np.ndarray]]:
    for target, name in zip(labels.targets, labels.names, strict=True):
        mask = np.isin(truth, target if isinstance(target, tuple) else (target,))
        if not mask.any():
            continue
        if not components:
            yield name, mask
            continue
        parts = cc3d.connected_components(mask, connectivity=26)
        order = np.argsort(-np.bincount(parts.ravel())[1:], kind="stable") + 1
        for place, number in enumerate(order[:MOST_COMPONENTS], start=1):
            yield f"{name} #{place}", parts == number


def summarise(curves: Iterable[InteractionCurve]) -> dict[str, Any]:
    """Per user and label: means over objects, then over labels.

    The area under a curve is taken from the first to the last number of `COUNTS` and divided by their distance. Where
    a threshold is not reached, the number to it counts as the last of `COUNTS`; `reached` is the share that did.
    """
    curves = list(curves)
    users: dict[str, Any] = {}
    for user in USERS:
        own = [curve for curve in curves if curve.user == user]
        if not own:
            continue
        by_label: dict[str, list[InteractionCurve]] = {}
        for curve in own:
            by_label.setdefault(curve.target.rpartition(" #")[0] or curve.target, []).append(curve)
        each = {label: _means(found) for label, found in by_label.items()}
        users[user] = {"mean": _over_labels(list(each.values())), "labels": each}
    return users


def _means(curves: Sequence[InteractionCurve]) -> dict[str, Any]:
    dice = np.array([curve.Dice for curve in curves])
    nsd = np.mean([curve.NSD for curve in curves], axis=0)
    mean = dice.mean(0)
    steps = np.diff(np.array(COUNTS))
    result: dict[str, Any] = {
        "objects": len(curves),
        "Dice": {str(n): float(mean[n - 1]) for n in COUNTS},
        "NSD": {str(n): float(value) for n, value in zip(COUNTS, nsd, strict=True)},
        "Dice AUC": float((mean[1:] + mean[:-1]).sum() / 2 / (len(mean) - 1)),
        "NSD AUC": float((steps * (nsd[1:] + nsd[:-1]) / 2).sum() / steps.sum()),
        "interactions to": {},
        "reached": {},
    }
    for threshold in THRESHOLDS:
        good = dice >= threshold
        needed = np.where(good.any(1), good.argmax(1) + 1, dice.shape[1])
        result["interactions to"][f"{threshold:.2f}"] = float(needed.mean())
        result["reached"][f"{threshold:.2f}"] = float(good.any(1).mean())
    for name in ("seconds", "cpu_seconds"):
        every = [value for curve in curves for value in getattr(curve, name)]
        result[f"{name} each"] = float(np.mean(every)) if every else 0.0
    return result


def _over_labels(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number; objects are added up."""
    result: dict[str, Any] = {}
    for key, first in each[0].items():
        if key == "objects":
            result[key] = sum(one[key] for one in each)
        elif isinstance(first, dict):
            result[key] = {inner: float(np.mean([one[key][inner] for one in each])) for inner in first}
        else:
            result[key] = float(np.mean([one[key] for one in each]))
    return result


def as_plain(curve: InteractionCurve) -> dict[str, Any]:
    """For JSON."""
    return asdict(curve)
