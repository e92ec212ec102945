"""What the folds of one method were trained with, whether they agree, and which of the planned folds they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from nnunet_ext.reports.runs import Fold, Method

# Settings of a schedule that readers expect to be equal.
SCHEDULE = ("epochs", "iterations", "batch_size", "patch_size", "precision", "learning_rate")
_VERSIONS = ("nnunet_ext", "nnunetv2", "torch")


def trained_folds(run: Method) -> list[Fold]:
    """The folds whose cases were evaluated; those still in training are not among them."""
    evaluated = {case.fold for case in run.cases.values()}
    return [fold for fold in run.folds if fold.number in evaluated]


def values_of(run: Method, name: str) -> tuple[Any, ...]:
    """The distinct values of a setting of the schedule over the evaluated folds, ascending; () where none is known."""
    known = [facts[name] for fold in trained_folds(run) if (facts := _facts(run, fold)).get(name) is not None]
    return tuple(sorted({tuple(value) if isinstance(value, list) else value for value in known}))


def span(values: Sequence[Any]) -> str:
    """What `values_of` gives in words: the value, `2 to 8` of numbers, else all of them."""
    if len(values) > 1 and all(isinstance(value, (int, float)) for value in values):
        return f"{values[0]} to {values[-1]}"
    return join([in_words(value) for value in values])


def disagreements(run: Method) -> list[str]:
    """Sentences about what is not the same in all evaluated folds of a method: schedule, precision, plans, versions.

    Folds of which something is not known count as different where others say it.
    """
    folds = {fold.number: _facts(run, fold) for fold in trained_folds(run)}
    found = []
    for name in dict.fromkeys(name for facts in folds.values() for name in facts):
        values = {number: facts.get(name) for number, facts in folds.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            listed = ", ".join(f"fold {number}: {in_words(value)}" for number, value in values.items())
            found.append(f"{run.name}: its folds were trained with different {name.replace('_', ' ')} ({listed})")
    for fold in trained_folds(run):
        found += _changed(run, fold)
        if unfinished := _unfinished(run, fold):
            found.append(unfinished)
    return found


def resumes(run: Method) -> list[tuple[int, str, int, str]]:
    """(fold, date or `not recorded`, first epoch, what changed or `nothing`) of every time a training was resumed."""
    rows = []
    for fold in run.folds:
        for before, entry in itertools.pairwise((fold.record or {}).get("history", [])):
            changes = _changes(before["settings"], entry["settings"])
            rows.append((fold.number, in_words(entry.get("date")), entry["epoch"], "; ".join(changes) or "nothing"))
    return rows


def folds_in_words(numbers: Iterable[int], planned: int | None) -> str:
    """`all 5 folds`, `folds 0 and 1 of 5`, `fold 0 of 5`, or `folds 0 and 1` where the number of folds is unknown."""
    numbers = sorted(numbers)
    if planned is not None and numbers == list(range(planned)):
        return f"all {planned} folds"
    listed = join([str(number) for number in numbers])
    beyond = planned is None or any(number >= planned for number in numbers)
    return f"fold{'s' if len(numbers) > 1 else ''} {listed}" + ("" if beyond else f" of {planned}")


def in_words(value: Any) -> str:
    """A value of a setting; a patch as 8×16×16."""
    if value is None:
        return "not recorded"
    return "×".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def join(texts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def _facts(run: Method, fold: Fold) -> dict[str, Any]:
    """What a fold recorded, or what its log and the plans beside it tell."""
    record = fold.record or {}
    settings, software = record.get("settings", {}), record.get("software", {})
    facts = {name: settings.get(name) for name in SCHEDULE}
    if facts["epochs"] is None and fold.log:
        facts["epochs"] = fold.log.next_epoch
    if run.identity:
        planned = run.plans.get("configurations", {}).get(run.identity[2], {})
        facts.update({name: planned.get(name) for name in ("batch_size", "patch_size") if facts[name] is None})
    facts.update({name: record.get(name) for name in ("plans", "parameters")})
    facts.update({name: software.get(name) for name in _VERSIONS})
    return {name: value for name, value in facts.items() if value is not None}


def _changed(run: Method, fold: Fold) -> list[str]:
    """Settings that changed while the fold was trained, in one sentence per resume."""
    return [
        f"{run.name}: fold {fold.number} was resumed at epoch {entry['epoch']} with other settings "
        f"({'; '.join(changes)})"
        for before, entry in itertools.pairwise((fold.record or {}).get("history", []))
        if (changes := _changes(before["settings"], entry["settings"]))
    ]


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    pairs = [(name, before.get(name), after.get(name)) for name in SCHEDULE]
    return [
        f"{name.replace('_', ' ')} {in_words(old)}, then {in_words(new)}"
        for name, old, new in pairs
        if None not in (old, new) and old != new
    ]


def _unfinished(run: Method, fold: Fold) -> str | None:
    """A fold that was validated before its training was over."""
    epochs = (fold.record or {}).get("settings", {}).get("epochs")
    trained = fold.log.next_epoch if fold.log else len((fold.record or {}).get("epoch_seconds", [])) or None
    if epochs is None or trained is None or trained >= epochs:
        return None
    return f"{run.name}: fold {fold.number} has trained {trained} of its {epochs} epochs"
