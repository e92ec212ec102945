"""What makes a comparison unfair or wrong: refused where the numbers would be wrong, else said on the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.cases import few
from nnunet_ext.evaluation.images import GEOMETRY_TOLERANCE_MM
from nnunet_ext.reports.evaluation_file import ScoredCase
from nnunet_ext.reports.folds import SCHEDULE, disagreements, in_words, trained_folds
from nnunet_ext.reports.runs import Method

# Variables whose effect is compared by itself, and those that change no result.
_SAID_ELSEWHERE = {
    *(
        f"NNUNET_EXT_{name}"
        for name in ("EPOCHS", "ITERATIONS", "PRECISION", "SCAN", "CONVOLUTION", "EPISODE_DATASETS")
    ),
    *(f"NNUNET_EXT_{name}" for name in ("CHECKPOINT_EVERY", "AUTOLOAD", "TEST_DATA")),
    *("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"),
    *("nnUNet_n_proc_DA", "nnUNet_def_n_proc"),
}
# Below this many units the percentile bootstrap is too narrow.
_FEW = 20


def refuse_incomparable(runs: Sequence[Method], common_cases: bool) -> tuple[list[str], list[str]]:
    """(cases that are compared, warnings about those left out).

    Args:
        runs: at least one.
        common_cases: compare the cases that all runs have, instead of refusing runs with different cases.

    Raises:
        UserError: other labels, other rules of evaluation, other references, or other cases.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, ours, theirs in (
            ("labels", first.labels, run.labels),
            ("convention", first.settings.get("convention", "default"), run.settings.get("convention", "default")),
            ("NSD tolerance", first.settings["nsd_tolerance_mm"], run.settings["nsd_tolerance_mm"]),
            ("metrics", _metrics(first), _metrics(run)),
            ("ignore label", first.settings["ignore_label"], run.settings["ignore_label"]),
        ):
            if ours != theirs:
                raise UserError(
                    f"{run.folder} was evaluated with {what} {theirs}, {first.folder} with {ours}; "
                    "evaluate both alike to compare them"
                )
    every = {case for run in runs for case in run.cases}
    common = [case for case in sorted(every) if all(case in run.cases for run in runs)]
    absent = {run.name: sorted(every - set(run.cases)) for run in runs if every - set(run.cases)}
    lists = "; ".join(f"{name} lacks {len(cases)} ({few(cases)})" for name, cases in absent.items())
    if absent and not common_cases:
        raise UserError(
            f"the runs have different cases: {lists}; finish or evaluate them, or pass --common-cases to compare the "
            f"{len(common)} that all have"
        )
    if not common:
        raise UserError(f"the runs have no case in common: {lists}; compare runs of one data set")
    for run in runs[1:]:
        for case in common:
            if difference := _reference_difference(first.cases[case], run.cases[case]):
                raise UserError(
                    f"{run.name} and {first.name} were evaluated against different references: case {case} has "
                    f"{difference}; evaluate both against the same folder"
                )
    warnings = [f"Only the {len(common)} cases that all runs have are compared: {lists}."] if absent else []
    return common, warnings


def warnings_about(runs: Sequence[Method], cases: Sequence[str], units: int, unit: str) -> list[str]:
    """Sentences about what a reader must know before believing the tables; statistics run over `units` cases, say."""
    found = []
    for run in runs:
        if run.missing:
            found.append(f"{run.name}: {len(run.missing)} case(s) without a prediction count as empty predictions "
                         f"({few(run.missing)}).")  # fmt: skip
        if run.failed:
            found.append(f"{run.name}: {len(run.failed)} case(s) could not be evaluated and are left out "
                         f"({few(run.failed)}).")  # fmt: skip
        if run.outdated:
            found.append(f"{run.name}: a prediction is newer than the evaluation; run nnunet_ext evaluate again.")
        found += [f"{run.name}: {note}." for note in run.notes]
        found += [f"{text}." for text in disagreements(run)]
        found += _failed_folds(run, cases)
    first = runs[0]
    for run in runs[1:]:
        moved = [case for case in cases if run.cases[case].fold != first.cases[case].fold]
        if moved:
            found.append(
                f"Folds differ: {len(moved)} of {len(cases)} cases are in another fold of {run.name} than of "
                f"{first.name} ({few(moved)}), so the two did not learn from the same cases."
            )
    found += _differences(runs, "Schedules differ", SCHEDULE, lambda record: record.get("settings", {}))
    found += _differences(runs, "Software differs", ("nnunetv2", "torch"), lambda record: record.get("software", {}))
    found += _differences(
        runs, "Hardware differs, times are not comparable", ("processor", "gpu"), lambda r: r.get("hardware", {})
    )
    undigested = [run.name for run in runs if any(run.cases[case].reference_digest is None for case in cases)]
    if undigested and len(runs) > 1:
        found.append(
            f"Whether {', '.join(undigested)} had the same references as the others is known by their voxels per label "
            "alone: evaluated before references were told apart by content; run nnunet_ext evaluate again to be sure."
        )
    found += _unlike_circumstances(runs)
    silent = [run.name for run in runs if run.folds and not run.records]
    if silent and len(runs) > 1:
        found.append(f"The schedule of {', '.join(silent)} is unknown: no run.json, which only this package's trainers "
                     "write.")  # fmt: skip
    if units < _FEW:
        found.append(f"With {units} {unit} the intervals are too narrow to be relied on.")
    return found


def _unlike_circumstances(runs: Sequence[Method]) -> list[str]:
    """Backends, further training data and environment variables, where methods differ in them."""

    def variables(record: dict[str, Any]) -> dict[str, str]:
        if "environment" not in record:
            return {}
        return {name: record["environment"].get(name, "unset") for name in names}

    def data(record: dict[str, Any]) -> dict[str, str]:
        return {"data sets": ", ".join(record["other_datasets"]) or "none"} if "other_datasets" in record else {}

    records = [record for run in runs for record in run.records]
    names = sorted({name for record in records for name in record.get("environment", {})} - _SAID_ELSEWHERE)
    return [
        *_differences(
            runs, "Backends differ, times are not comparable", ("scan", "convolution"), lambda r: r.get("backends", {})
        ),
        *_differences(runs, "Further training data differ", ("data sets",), data),
        *_differences(runs, "Environment variables differ", names, variables),
    ]


def _failed_folds(run: Method, cases: Sequence[str]) -> list[str]:
    """Folds in which a structure was never found: their training failed, and pooling hides it in the mean."""
    folds: dict[str, list[int]] = {name: [] for name in run.labels.values()}
    for fold in sorted({case.fold for case in map(run.cases.__getitem__, cases) if case.fold is not None}):
        own = [run.cases[case] for case in cases if run.cases[case].fold == fold]
        for key, name in run.labels.items():
            states = Counter(case.status[key] for case in own)
            if states["missed"] > 1 and not states["both"]:
                folds[name].append(fold)
    failed = {name: ", ".join(map(str, numbers)) for name, numbers in folds.items() if numbers}
    found = []
    for numbers in dict.fromkeys(failed.values()):
        names = " and ".join(name for name in failed if failed[name] == numbers)
        word = "folds" if "," in numbers else "fold"
        found.append(f"{run.name} never found {names} in {word} {numbers}; look at the training before the means.")
    return found


def _differences(
    runs: Sequence[Method], title: str, names: Iterable[str], of: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[str]:
    """One sentence with every value that is not the same in all runs that recorded it."""
    known = [(run.name, [of(fold.record) for fold in trained_folds(run) if fold.record]) for run in runs]
    parts = []
    for name in names:
        values = {
            method: " and ".join(dict.fromkeys(in_words(facts[name]) for facts in folds if facts.get(name) is not None))
            for method, folds in known
        }
        values = {method: value for method, value in values.items() if value}
        if any(value != next(iter(values.values())) for value in values.values()):
            listed = ", ".join(f"{method} {value}" for method, value in values.items())
            parts.append(f"{name.replace('_', ' ') if name.islower() else name} ({listed})")
    return [f"{title}: {'; '.join(parts)}."] if parts else []


def _reference_difference(ours: ScoredCase, theirs: ScoredCase) -> str | None:
    """How the references of one case differ; evaluations without a digest are compared by their voxels per label."""
    counts = [[int(values["n_ref"]) for values in case.metrics.values()] for case in (theirs, ours)]
    if counts[0] != counts[1]:
        return f"{counts[0]} and {counts[1]} reference voxels per label"
    spacings = theirs.spacing_mm, ours.spacing_mm
    if spacings[0] and spacings[1] and not _close(spacings[0], spacings[1]):
        return f"voxels of {in_words(spacings[0])} and {in_words(spacings[1])} mm"
    if theirs.reference_digest and ours.reference_digest and theirs.reference_digest != ours.reference_digest:
        return "as many reference voxels per label, but in other places"
    return None


def _metrics(run: Method) -> list[str]:
    return sorted(next(iter(next(iter(run.cases.values())).metrics.values())))


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= GEOMETRY_TOLERANCE_MM for x, y in zip(a, b, strict=True))
