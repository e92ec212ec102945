"""One method of a report: its evaluation, and what its folds recorded about their training."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import models
from nnunet_ext.discovery.table import trainers
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation import Convention, evaluate_folder, evaluate_folds, write_results
from nnunet_ext.evaluation.cases import few, split_name
from nnunet_ext.evaluation.splits import find_splits, fold_folders, notes_about_folds, read_splits
from nnunet_ext.files import resolved
from nnunet_ext.reports.evaluation_file import ScoredCase, StoredEvaluation, read_evaluation
from nnunet_ext.reports.training_records import read_plans, read_run_record
from nnunet_ext.training_log import TrainingLog, read_training_log


@dataclass(frozen=True)
class Fold:
    """Training of one fold; None where its run left no record."""

    number: int
    record: dict[str, Any] | None
    log: TrainingLog | None


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: as shown in the report.
        folder: nnU-Net result folder or folder of predictions.
        labels: {key in summary.json: name}.
        settings: the evaluation's, with the convention in words.
        plans: content of plans.json beside the folds, {} when there is none.
        notes: what the evaluation says about itself.
        failed: cases that could not be evaluated.
        missing: cases without a prediction, counted as empty.
        outdated: a prediction is newer than the evaluation.
        planned_folds: as many as splits_final.json has; None where there is none.
        size: of the network, where it is not the published one.
    """

    name: str
    folder: Path
    labels: dict[str, str]
    cases: dict[str, ScoredCase]
    settings: dict[str, Any]
    folds: tuple[Fold, ...]
    plans: dict[str, Any]
    notes: tuple[str, ...]
    failed: tuple[str, ...]
    missing: tuple[str, ...]
    outdated: bool
    planned_folds: int | None = None
    size: str = ""

    @property
    def identity(self) -> tuple[str, str, str] | None:
        """Trainer, plans and configuration; None for a folder of predictions."""
        parts = self.folder.name.split("__")
        return (parts[0], parts[1], parts[2]) if len(parts) == 3 else None

    @property
    def dataset(self) -> str:
        """Name of the data set, as nnU-Net's folders have it."""
        return str(self.plans.get("dataset_name") or (self.folder.parent.name if self.identity else self.folder.name))

    @property
    def records(self) -> list[dict[str, Any]]:
        """What the folds' run.json say."""
        return [fold.record for fold in self.folds if fold.record]


def find_runs(patterns: Sequence[str]) -> list[tuple[str | None, Path]]:
    """(name or None, folder) of each argument: FOLDER, NAME=FOLDER or a quoted glob, in this order.

    Raises:
        UserError: a pattern matches no folder, or a folder is named twice.
    """
    found: list[tuple[str | None, Path]] = []
    for pattern in patterns:
        name: str | None = None
        if "=" in pattern and not Path(pattern).exists():
            name, pattern = pattern.split("=", 1)
        folders = [Path(pattern)] if Path(pattern).is_dir() else sorted(map(Path, glob.glob(pattern)))
        folders = [folder for folder in folders if folder.is_dir()]
        if not folders:
            raise UserError(f"{pattern} is no folder and matches none; give result folders such as Trainer__Plans__3d")
        if name is not None and len(folders) > 1:
            raise UserError(f"{name}={pattern} matches {len(folders)} folders; a name is for one")
        found += [(name, resolved(folder)) for folder in folders]
    for i, (_, folder) in enumerate(found):
        if folder in [other for _, other in found[:i]]:
            raise UserError(f"{folder} is named twice; name each run once")
    return found


def load_runs(
    patterns: Sequence[str],
    convention: Convention,
    *,
    references: Path | None = None,
    processes: int = 1,
    progress: bool = False,
) -> list[Method]:
    """Read the runs; one without an evaluation by this convention is evaluated first, and its results are kept.

    Raises:
        UserError: a folder is no run, or its evaluation is damaged or cannot be made.
    """
    found = find_runs(patterns)
    runs = []
    for (_, folder), name in zip(found, _names(found), strict=True):
        file = folder / _evaluation_folder(convention) / "summary.json"
        if not file.is_file():
            _evaluate(folder, file.parent, convention, references, processes, progress)
        runs.append(_load(name, folder, file))
    return runs


def load_test_set(folders: Sequence[Path], names: Sequence[str], convention: Convention) -> list[Method]:
    """The methods' predictions of one test set, each evaluated already.

    Args:
        folders: of predictions, one per method.
        names: of the methods, in the same order.
        convention: of the evaluations.

    Raises:
        UserError: there is not one folder per method, or one has no evaluation or a damaged one.
    """
    if len(folders) != len(names):
        raise UserError(f"--test-set names {len(folders)} folders for {len(names)} runs; give one for each run")
    runs = []
    for folder, name in zip(folders, names, strict=True):
        file = folder / _evaluation_folder(convention) / "summary.json"
        if not file.is_file():
            raise UserError(f"{file} does not exist; run nnunet_ext evaluate -r LABELS -p {folder} first")
        runs.append(_load(name, folder.resolve(), file))
    return runs


def _evaluation_folder(convention: Convention) -> str:
    return "evaluation" if convention.name == "default" else f"evaluation_{convention.name}"


def _evaluate(
    folder: Path, output: Path, convention: Convention, references: Path | None, processes: int, progress: bool
) -> None:
    options: dict[str, Any] = {"convention": convention, "processes": processes, "progress": progress}
    try:
        if any(folder.glob("fold_*")):
            evaluation = evaluate_folds(folder, references, **options)
        elif references is not None:
            evaluation = evaluate_folder(references, folder, **options)
        else:
            raise UserError(
                f"{folder} has neither folds nor {output.name}; evaluate it first, or name the references (-r)"
            )
    except UserError as error:
        # Whether a missing prediction counts as empty is decided there, not here.
        hint = "run nnunet_ext evaluate --allow-missing on it"
        raise UserError(str(error).replace("pass --allow-missing", hint)) from None
    write_results(evaluation, output)


def _load(name: str, folder: Path, file: Path) -> Method:
    stored = read_evaluation(file, folder)
    cases = stored.cases
    splits = _splits(folder, cases)
    plans = read_plans(folder / "plans.json")
    return Method(
        name=name,
        folder=folder,
        labels=stored.labels,
        cases=cases,
        settings=stored.settings,
        folds=tuple(_folds(folder)),
        plans=plans,
        # The folds may be others than when they were evaluated, or were evaluated before such notes were made.
        notes=tuple(
            dict.fromkeys([*stored.notes, *_notes_about_folds(folder, cases, splits), *_unevaluated(folder, stored)])
        ),
        failed=stored.failed,
        missing=stored.missing,
        outdated=any(_modified(case.prediction) > file.stat().st_mtime + 1 for case in cases.values()),
        planned_folds=None if splits is None else len(splits),
        size=_size(folder, plans),
    )


def _modified(prediction: Path | None) -> float:
    """Time of its last change; 0 when it is not there."""
    return os.path.getmtime(prediction) if prediction is not None and os.path.isfile(prediction) else 0.0


def _splits(folder: Path, cases: Mapping[str, ScoredCase]) -> Sequence[object] | None:
    """One entry per planned fold; None for a folder without folds, or when splits_final.json is not found."""
    if not fold_folders(folder):
        return None
    file = find_splits(folder, next(iter(cases.values())).reference.parent)
    return None if file is None else read_splits(file)


def _notes_about_folds(folder: Path, cases: Mapping[str, ScoredCase], splits: Sequence[object] | None) -> list[str]:
    folds = fold_folders(folder)
    if not folds:
        return []
    evaluated = {case.fold for case in cases.values() if case.fold is not None}
    finished = {fold for fold, path in folds.items() if (path / "validation").is_dir()}
    return notes_about_folds(evaluated | finished, evaluated | set(folds), splits)


def _unevaluated(folder: Path, stored: StoredEvaluation) -> list[str]:
    """A note about predictions that came after the evaluation, such as those of a fold that finished later."""
    known = {*stored.cases, *stored.failed}
    endings = {split_name(case.prediction)[1] for case in stored.cases.values() if case.prediction is not None}
    places = {f" of fold {k}": path / "validation" for k, path in fold_folders(folder).items()} or {"": folder}
    found: dict[str, list[str]] = {}
    for where, place in places.items():
        files = place.iterdir() if place.is_dir() else ()
        names = [split_name(file) for file in files if not file.name.startswith(".")]
        found[where] = sorted(case for case, ending in names if ending and ending in endings and case not in known)
    return [
        f"{len(cases)} prediction(s){where} are not in the evaluation ({few(cases)}); run nnunet_ext evaluate again"
        for where, cases in found.items()
        if cases
    ]


def _folds(folder: Path) -> Iterator[Fold]:
    for number, path in fold_folders(folder).items():
        yield Fold(number, read_run_record(path / "run.json"), read_training_log(path))


def _names(found: list[tuple[str | None, Path]]) -> list[str]:
    """The given names, or the shortest parts of the folder names that tell the runs apart."""
    own = [_parts(folder) for _, folder in found]
    names = []
    for i, (given, folder) in enumerate(found):
        candidates = [" ".join(own[i][:k]) for k in range(1, len(own[i]) + 1)] + [str(folder)]
        others = [parts for j, parts in enumerate(own) if j != i]
        shortest = next(
            (c for k, c in enumerate(candidates, 1) if all(" ".join(o[:k]) != c for o in others)), candidates[-1]
        )
        names.append(given or shortest)
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two runs are called {name!r}; give each a name of its own as NAME=FOLDER")
    return names


def _parts(folder: Path) -> list[str]:
    """`nnUNetTrainerUNETRPP__nnUNetPlansUNETRPPTiny__3d_fullres` as [`UNETR++ tiny`, `3d_fullres`, the plans' name]."""
    parts = folder.name.split("__")
    if len(parts) != 3:
        return [folder.name]
    # A trainer of many networks: the class is what tells its runs apart.
    paths = (record.get("network", {}).get("path") for record in _records(folder))
    named = next(filter(None, paths), "").rpartition(".")[2]
    size = _size(folder, read_plans(folder / "plans.json"))
    return [named or f"{network_name(parts[0])} {size}".rstrip(), parts[2], parts[1]]


def _size(folder: Path, plans: Mapping[str, Any]) -> str:
    """`tiny`, `small` or `own size` where the plans name a network of a row in another size than the published."""
    configurations = plans.get("configurations", {})
    name = folder.name.split("__")[-1]
    seen: set[str] = set()
    # A cascade's second stage inherits its network.
    while name not in seen and "network" not in configurations.get(name, {}):
        seen.add(name)
        name = configurations.get(name, {}).get("inherits_from", name)
    about = configurations.get(name, {})
    model = next((model for model in models.rows() if model.network and model.network == about.get("network")), None)
    if model is None or (size := model.size_of(about.get("arguments", {}))) == "base":
        return ""
    return size or "own size"


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("fold_*/run.json")):
        yield read_run_record(path) or {}


def network_name(trainer: str) -> str:
    """The network of one of this package's trainers, else what the trainer's name says."""
    if trainer in ("nnUNetTrainer", "nnUNetTrainerExt"):
        return "nnU-Net"
    models = {entry.name: entry.trainer.network for entry in trainers() if entry.trainer}
    return models.get(trainer, trainer.removeprefix("nnUNetTrainer"))
