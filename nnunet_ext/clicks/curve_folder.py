"""Curves of several models on the same cases: which cases, what is finished already, and the files of results."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.cases import find_cases
from nnunet_ext.clicks.curves import (
    COUNTS,
    NOTE,
    NSD_TOLERANCE_MM,
    THRESHOLDS,
    InteractionCurve,
    as_plain,
    curves_of_case,
    summarise,
)
from nnunet_ext.clicks.users import USERS
from nnunet_ext.clicks.viewer_session import SessionModel
from nnunet_ext.datasets import find_dataset
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.labels import Labels, labels_from_dataset_json
from nnunet_ext.evaluation.splits import read_splits
from nnunet_ext.files import read_json, write_json, write_text
from nnunet_ext.reports.interaction_curves import write_interaction_curves

COLUMNS = (
    "model", "user", "label", "objects", *(f"Dice {n}" for n in COUNTS), "Dice AUC", *(f"NSD {n}" for n in COUNTS),
    "NSD AUC", *(f"interactions to {t:.2f}" for t in THRESHOLDS), *(f"reached {t:.2f}" for t in THRESHOLDS),
    "seconds each", "cpu_seconds each",
)  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Cases to click through.

    Attributes:
        title: what they are, for people.
        cases: name -> (image files, label map).
        labels: of their data set.
    """

    title: str
    cases: Mapping[str, tuple[tuple[Path, ...], Path]]
    labels: Labels


def validation_cases(dataset: str, fold: str, channels: int, most: int | None = None) -> HeldOut:
    """The cases of a fold that its training has not seen.

    Args:
        dataset: number or name.
        fold: number.
        channels: files per case that the models take.
        most: take so many, spread evenly.

    Raises:
        UserError: no such data set, no splits, no such fold, or a file is missing.
    """
    raw = find_dataset(dataset, "nnUNet_raw")
    splits = find_dataset(raw.name, "nnUNet_preprocessed") / "splits_final.json"
    if not splits.is_file():
        raise UserError(f"{splits} does not exist, so nothing says which cases are held out; give -i and -l")
    folds = read_splits(splits)
    if not fold.isdecimal() or int(fold) >= len(folds):
        raise UserError(f"fold {fold} is not among the {len(folds)} of {splits}; give -i and -l for other cases")
    title = f"{raw.name}, validation cases of fold {fold}"
    held = _cases(raw / "imagesTr", raw / "labelsTr", raw / "dataset.json", channels, folds[int(fold)])
    return HeldOut(title, _spread(held[0], most), held[1])


def cases_of_folders(
    images: Path, references: Path, dataset_json: Path, channels: int, most: int | None = None
) -> HeldOut:
    """All cases of a folder of images that have a reference in another.

    Raises:
        UserError: a folder is none, or a file is missing.
    """
    cases, labels = _cases(images, references, dataset_json, channels, None)
    return HeldOut(f"{images}", _spread(cases, most), labels)


def _cases(
    images: Path, references: Path, dataset_json: Path, channels: int, wanted: Sequence[str] | None
) -> tuple[dict[str, tuple[tuple[Path, ...], Path]], Labels]:
    labels = labels_from_dataset_json(dataset_json)
    ending = labels.file_ending or ".nii.gz"
    there = find_cases(images, (ending,), channels)
    found = {}
    for case in wanted if wanted is not None else there:
        reference = references / f"{case}{ending}"
        if case not in there:
            raise UserError(f"{images} has no image {case}_0000{ending}, which the fold validates on")
        if not reference.is_file():
            raise UserError(f"{reference} does not exist; every case needs a reference to be clicked on")
        found[case] = (there[case], reference)
    if not found:
        raise UserError(f"{images} has no case to click on")
    return found, labels


def _spread(cases: dict[str, Any], most: int | None) -> dict[str, Any]:
    names = sorted(cases)
    if most is None or most >= len(names):
        return cases
    chosen = [names[i * len(names) // most] for i in range(most)]
    return {name: cases[name] for name in chosen}


def click_through_cases(
    name: str,
    model: SessionModel,
    held_out: HeldOut,
    users: Sequence[str],
    folder: Path,
    settings: Mapping[str, Any],
    components: bool = False,
) -> Iterator[tuple[str, list[InteractionCurve] | UserError]]:
    """The curves of one case after the other; those that an interrupted run has left are read.

    Args:
        name: of the model in tables and pictures.
        model: opened in a session.
        held_out: the cases.
        users: names of `USERS`.
        folder: of results; parts/NAME/CASE.json is written for each case.
        settings: what the curves depend on; parts of other settings are made anew.
        components: see `curves_of_case`.

    Yields:
        Case, and its curves or why there are none.
    """
    known = {**settings, "users": list(users), "components": components, "nnunet_ext": __version__}
    for case, (images, reference) in held_out.cases.items():
        part = folder / "parts" / name / f"{case}.json"
        kept = _kept(part, known)
        if kept is None:
            try:
                kept = list(curves_of_case(model, case, images, reference, held_out.labels, users, components))
            except UserError as error:
                yield case, error
                continue
            write_json(part, {"settings": known, "curves": [as_plain(curve) for curve in kept]})
        yield case, kept


def _kept(part: Path, settings: Mapping[str, Any]) -> list[InteractionCurve] | None:
    """What an earlier run with the same settings left; None where there is none, or it is damaged."""
    if not part.is_file():
        return None
    try:
        content = read_json(part)
        if content["settings"] != settings:
            return None
        return [_curve(one) for one in content["curves"]]
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _curve(entry: dict[str, Any]) -> InteractionCurve:
    def numbers(key: str) -> tuple[float, ...]:
        return tuple(map(float, entry[key]))

    case, target, user = (str(entry[key]) for key in ("case", "target", "user"))
    return InteractionCurve(
        case, target, user, numbers("Dice"), numbers("NSD"), numbers("seconds"), numbers("cpu_seconds")
    )


def write_results(
    curves: Mapping[str, Sequence[InteractionCurve]], title: str, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Write clicks.json, clicks.csv, clicks_objects.csv and clicks.png.

    Args:
        curves: model -> its curves, of the same cases for all.
        title: what was clicked on.
        folder: of results.
        settings: model -> what its curves depend on.

    Returns:
        The content of clicks.json.
    """
    summary = {
        "note": NOTE,
        "title": title,
        "interactions": list(COUNTS),
        "nsd_tolerance_mm": NSD_TOLERANCE_MM,
        "users": {name: words for name, (_, words) in USERS.items()},
        "cases": sorted({curve.case for own in curves.values() for curve in own}),
        "models": {name: summarise(own) for name, own in curves.items()},
        "settings": dict(settings),
    }
    write_text(folder / "clicks_objects.csv", _objects_csv(curves))
    write_text(folder / "clicks.csv", _means_csv(summary))
    write_interaction_curves(summary, folder / "clicks.png")
    write_json(folder / "clicks.json", summary)
    return summary


def _means_csv(summary: Mapping[str, Any]) -> str:
    rows: list[dict[str, Any]] = []
    for name, users in summary["models"].items():
        for user, found in users.items():
            for label, means in (*found["labels"].items(), ("mean", found["mean"])):
                row = {"model": name, "user": user, "label": label}
                for key, value in means.items():
                    if isinstance(value, dict):
                        row.update({f"{key} {inner}": round(number, 4) for inner, number in value.items()})
                    else:
                        row[key] = value if key == "objects" else round(value, 4)
                rows.append(row)
    return _table(COLUMNS, rows)


def _objects_csv(curves: Mapping[str, Sequence[InteractionCurve]]) -> str:
    rows = []
    for name, own in curves.items():
        for curve in own:
            nsd = dict(zip(COUNTS, curve.NSD, strict=True))
            for n, dice in enumerate(curve.Dice, start=1):
                made = n <= len(curve.seconds)
                rows.append(
                    {
                        "model": name, "case": curve.case, "object": curve.target, "user": curve.user,
                        "interactions": n, "Dice": round(dice, 4), "NSD": round(nsd[n], 4) if n in nsd else "",
                        "seconds": round(curve.seconds[n - 1], 4) if made else "",
                        "cpu_seconds": round(curve.cpu_seconds[n - 1], 4) if made else "",
                    }
                )  # fmt: skip
    return _table(("model", "case", "object", "user", "interactions", "Dice", "NSD", "seconds", "cpu_seconds"), rows)


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Each row says what it is."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*columns, "note"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "note": "the simulated user sees the reference"} for row in rows)
    return buffer.getvalue()
