"""Many cases: whole folders, nnU-Net's cross-validation, in parallel, and one bad file does not cost the others."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nnunet_ext.errors import UserError, one_line, reason_of
from nnunet_ext.evaluation.cases import CaseResult, Pair, evaluate_case, label_maps, pair_folders
from nnunet_ext.evaluation.conventions import DEFAULT, Convention
from nnunet_ext.evaluation.labels import (
    Labels,
    Target,
    find_dataset_json,
    labels_from_dataset_json,
    labels_from_values,
)
from nnunet_ext.evaluation.splits import find_splits, fold_folders, notes_about_folds, read_splits
from nnunet_ext.files import resolved
from nnunet_ext.json_object import LARGEST
from nnunet_ext.workers import in_workers

# Workers need about a second to import what they need; what is done by then was not worth starting them.
_ALONE_SECONDS = 3.0


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why."""

    pair: Pair
    message: str


@dataclass(frozen=True)
class Evaluation:
    """Results of many cases.

    Attributes:
        labels: what was evaluated.
        cases: results, ordered by fold and name.
        failures: cases left out because a file is unusable.
        notes: what the reader must know, e.g. folds that are not finished.
        nsd_tolerance_mm: tolerance of NSD.
        convention: rules of the metrics.
    """

    labels: Labels
    cases: tuple[CaseResult, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    nsd_tolerance_mm: float
    convention: Convention = DEFAULT

    @property
    def missing(self) -> tuple[str, ...]:
        """Cases without a prediction, counted as empty predictions."""
        return tuple(result.pair.case for result in self.cases if result.pair.prediction is None)


def evaluate_folder(
    reference_folder: str | os.PathLike[str],
    prediction_folder: str | os.PathLike[str],
    labels: Labels | Sequence[Target] | None = None,
    *,
    allow_missing: bool = False,
    nsd_tolerance_mm: float = 1.0,
    convention: Convention = DEFAULT,
    processes: int = 1,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a folder of predictions against a folder of references.

    Args:
        reference_folder: label maps, e.g. nnU-Net's labelsTr.
        prediction_folder: label maps with the same names.
        labels: what to evaluate: label values or tuples of values (regions), or `Labels`; by default those of the
            dataset.json that belongs to the folders (`find_dataset_json`).
        allow_missing: count references without prediction as empty predictions instead of refusing.
        nsd_tolerance_mm: tolerance of NSD.
        convention: rules of the metrics, e.g. `CONVENTIONS["segmamba"]`.
        processes: at most so many worker processes; small jobs stay in this process. With more than one, a script
            needs `if __name__ == "__main__":`, as workers are spawned.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: nothing can be evaluated: no labels known, no files, other case sets, or every case failed.

    Example:
        >>> result = evaluate_folder("labelsTs", "predictions", [1, 2])      # doctest: +SKIP
        >>> worst = min(result.cases, key=lambda case: case.foreground_dice)  # doctest: +SKIP
    """
    labels = _resolve_labels(labels, Path(reference_folder), Path(prediction_folder))
    pairs = pair_folders(
        reference_folder, prediction_folder, file_ending=labels.file_ending, allow_missing=allow_missing
    )
    return _evaluate(pairs, labels, (), nsd_tolerance_mm, convention, processes, progress)


def evaluate_folds(
    result_folder: str | os.PathLike[str],
    reference_folder: str | os.PathLike[str] | None = None,
    labels: Labels | Sequence[Target] | None = None,
    *,
    allow_missing: bool = False,
    nsd_tolerance_mm: float = 1.0,
    convention: Convention = DEFAULT,
    processes: int = 1,
    progress: bool = False,
) -> Evaluation:
    """Pool `fold_k/validation` of an nnU-Net result folder: every case once, by the model that never saw it.

    The folds, and the cases each must hold, are those of nnU-Net's splits_final.json (`find_splits`). A planned fold
    that is not there is left out with a note. Without that file the predictions that are there are taken, and a note
    says so.

    Args:
        result_folder: e.g. nnUNet_results/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres.
        reference_folder: by default nnUNet_preprocessed/DATASET/gt_segmentations.
        labels: this, and all that follow, as for `evaluate_folder`.

    Raises:
        UserError: as for `evaluate_folder`; no finished fold; a case in two folds.
    """
    folder = resolved(result_folder)
    references = Path(reference_folder) if reference_folder is not None else _gt_segmentations(folder)
    folds = fold_folders(folder)
    finished = {fold: path / "validation" for fold, path in folds.items() if (path / "validation").is_dir()}
    if not finished:
        raise UserError(f"{folder} has no fold_*/validation folder; give the folder above fold_0, after its training")
    splits_file = find_splits(folder, references)
    splits = None if splits_file is None else read_splits(splits_file)
    notes = notes_about_folds(finished, folds, splits)
    if splits is None:
        missing = resolved(references).parent / "splits_final.json"
        notes.append(f"no {missing}: folds and cases without a prediction cannot be noticed")
    labels = _resolve_labels(labels, references, folder)
    pairs: list[Pair] = []
    for fold, validation in finished.items():
        expected: Iterable[str] = label_maps(validation, labels.file_ending)
        if splits is not None and fold < len(splits):
            expected = splits[fold]
        pairs += pair_folders(
            references,
            validation,
            file_ending=labels.file_ending,
            expected_cases=expected,
            allow_missing=allow_missing,
            fold=fold,
        )
    owner: dict[str, int | None] = {}
    for pair in pairs:
        if pair.case in owner:
            raise UserError(f"case {pair.case} is in folds {owner[pair.case]} and {pair.fold} of {folder}; keep one")
        owner[pair.case] = pair.fold
    return _evaluate(pairs, labels, tuple(notes), nsd_tolerance_mm, convention, processes, progress)


def _gt_segmentations(result_folder: Path) -> Path:
    root = os.environ.get("nnUNet_preprocessed")
    dataset = result_folder.parent.name
    if not root:
        raise UserError(
            f"where the references of {dataset} are is unknown; set nnUNet_preprocessed or name the folder with -r"
        )
    return Path(root) / dataset / "gt_segmentations"


def _resolve_labels(labels: Labels | Sequence[Target] | None, reference: Path, prediction: Path) -> Labels:
    if isinstance(labels, Labels):
        return labels
    if labels is not None:
        return labels_from_values(labels)
    found = find_dataset_json(reference, prediction)
    if found is None:
        raise UserError(
            f"which labels to evaluate is unknown: no dataset.json in or above {prediction} or {reference}; "
            "name one with --dataset-json or give the labels with --labels 1 2 3"
        )
    return labels_from_dataset_json(found)


def _evaluate(
    pairs: list[Pair],
    labels: Labels,
    notes: tuple[str, ...],
    nsd_tolerance_mm: float,
    convention: Convention,
    processes: int,
    progress: bool,
) -> Evaluation:
    if processes < 1:
        raise UserError(f"{processes} processes cannot work; give 1 or more")
    if not 0 <= nsd_tolerance_mm <= LARGEST:  # NaN neither
        raise UserError(f"NSD tolerance {nsd_tolerance_mm} mm is no distance; give 0 or more")
    work = functools.partial(_outcome, labels=labels, nsd_tolerance_mm=nsd_tolerance_mm, convention=convention)
    outcomes = list(
        tqdm(
            _outcomes(pairs, work, processes),
            total=len(pairs),
            desc="evaluate",
            unit="case",
            delay=2,
            disable=not progress,
        )
    )
    order = {(pair.fold, pair.case): i for i, pair in enumerate(pairs)}
    outcomes.sort(key=lambda outcome: order[outcome.pair.fold, outcome.pair.case])
    failures = tuple(o for o in outcomes if isinstance(o, Failure))
    cases = tuple(o for o in outcomes if isinstance(o, CaseResult))
    if not cases:
        raise UserError(f"none of the {len(pairs)} case(s) could be evaluated; the first: {failures[0].message}")
    published_for = convention.note(labels.targets)
    notes += (published_for,) if published_for else ()
    return Evaluation(labels, cases, failures, notes, nsd_tolerance_mm, convention)


def _outcomes(
    pairs: list[Pair], work: Callable[[Pair], CaseResult | Failure], processes: int
) -> Iterator[CaseResult | Failure]:
    """Results as they come, largest files first so that no worker is left alone with the longest case."""
    queue = sorted(pairs, key=lambda pair: -pair.reference.stat().st_size)
    enough = time.monotonic() + _ALONE_SECONDS
    while queue and (processes == 1 or len(queue) == 1 or time.monotonic() < enough):
        yield work(queue.pop(0))
    for pair, outcome in in_workers(work, queue, processes):
        yield outcome or Failure(
            pair,
            f"{pair.reference} against {pair.prediction}: the worker process was killed, perhaps for lack of memory; "
            "use fewer processes (-n)",
        )


def _outcome(pair: Pair, labels: Labels, nsd_tolerance_mm: float, convention: Convention) -> CaseResult | Failure:
    try:
        return evaluate_case(
            pair.reference,
            pair.prediction,
            labels,
            case=pair.case,
            fold=pair.fold,
            nsd_tolerance_mm=nsd_tolerance_mm,
            convention=convention,
        )
    except UserError as error:
        return Failure(pair, str(error))
    except Exception as error:  # a strange file must not cost the other cases
        return Failure(pair, one_line(f"{pair.reference} against {pair.prediction}: {reason_of(error)}"))
