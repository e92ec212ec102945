"""From runs to the statistics of a report: per method and label, pair by pair, and by rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from nnunet_ext.data.cohort import patient_groups
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.compare import (
    Description,
    Paired,
    Ranks,
    bootstrap_ranks,
    by_patient,
    describe,
    holm,
    paired,
)
from nnunet_ext.reports.checks import refuse_incomparable, warnings_about
from nnunet_ext.reports.evaluation_file import ScoredCase
from nnunet_ext.reports.runs import Method

MEAN = "mean"
# A difference is called real below this corrected p-value.
ALPHA = 0.05
# With fewer cases (or patients) neither tests nor orders nor case-by-case bars say anything.
FEWEST = 10


@dataclass(frozen=True)
class Metric:
    """A column: its name in summary.json, how it is shown, and which way is better."""

    key: str
    title: str
    digits: int
    higher_is_better: bool
    best: float
    """Value of a structure that is rightly absent."""

    @property
    def heading(self) -> str:
        """The title with an arrow towards the better values."""
        return f"{self.title} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True)
class Row:
    """One method, label and metric of the main table; counts are of cases, the rest of units."""

    method: str
    label: str
    metric: Metric
    description: Description
    missed: int
    false_alarms: int
    absent: int
    """Cases in which neither map has the structure."""
    best: bool
    """Misses no structure, is better than every other method in the mean, and every pairwise test says so, too."""


@dataclass(frozen=True)
class MethodPair:
    """One pairwise comparison; `p_holm` is corrected over all pairs and labels of the metric, NaN below `FEWEST`."""

    new: str
    old: str
    label: str
    metric: Metric
    result: Paired
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Everything the report says in numbers.

    Attributes:
        runs: methods in the given order; the first is the baseline of the plots.
        cases: names of the compared cases.
        units: cases, or patients.
        labels: shown names; `mean` over labels last when there are several.
        metrics: compared values.
        per_case: {(method, label, metric key): {case: value}}; NaN where undefined, distances charged.
        filled: the same with the best value where a method rightly predicts nothing and another raises a false alarm.
        rows, pairs, ranks: the tables; ranks per metric, by `mean` over the labels.
    """

    runs: tuple[Method, ...]
    cases: tuple[str, ...]
    patient_of: dict[str, str] | None
    units: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    per_case: dict[tuple[str, str, str], dict[str, float]]
    filled: dict[tuple[str, str, str], dict[str, float]]
    rows: tuple[Row, ...]
    pairs: tuple[MethodPair, ...]
    ranks: dict[str, Ranks]
    warnings: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the runs."""
        return tuple(run.name for run in self.runs)

    @property
    def unit(self) -> str:
        """What statistics run over, in the plural."""
        return "patients" if self.patient_of else "cases"

    @property
    def overall(self) -> str:
        """The label that stands for a case as a whole."""
        return self.labels[-1]

    def paired_units(self, new: str, old: str, label: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of two methods on the units where both are defined, same order."""
        a, b = (self.in_units(self.filled[m, label, metric]) for m in (new, old))
        shared = [unit for unit in self.units if unit in a and unit in b]
        return np.array([a[u] for u in shared]), np.array([b[u] for u in shared])

    def in_units(self, values: Mapping[str, float]) -> dict[str, float]:
        """Cases, or means over the cases of a patient, without undefined ones."""
        return by_patient(values, self.patient_of or {case: case for case in values})


def compare_runs(runs: Sequence[Method], *, patients: str | None = None, common_cases: bool = False) -> Comparison:
    """Pool the folds of each run by case, or by patient, and compare the methods.

    Args:
        runs: methods, the first is the baseline.
        patients: regular expression that finds the patient in a case's name; his cases are averaged first.
        common_cases: compare the cases that all runs have instead of refusing runs with different ones.

    Raises:
        UserError: the runs cannot be compared.
    """
    cases, warnings = refuse_incomparable(runs, common_cases)
    patient_of = None
    if patients is not None:
        try:
            groups = patient_groups(cases, patients)
        except ValueError as error:
            raise UserError(f"--patients: {error}") from None
        patient_of = {case: patient for patient, own in groups.items() for case in own}
    units = tuple(dict.fromkeys(patient_of[case] if patient_of else case for case in cases))
    metrics = _metrics(runs[0])
    labels = _unique(runs[0].labels)
    shown = (*labels.values(), MEAN) if len(labels) > 1 else tuple(labels.values())
    per_case = _values(runs, cases, labels, metrics, _charged)
    filled = _values(runs, cases, labels, metrics, _filler(runs))
    empty = Comparison(
        tuple(runs), tuple(cases), patient_of, units, shown, metrics, per_case, filled, (), (), {},
        (*warnings, *warnings_about(runs, cases, len(units), "patients" if patient_of else "cases")),
    )  # fmt: skip
    pairs = _pairs(empty)
    return Comparison(**{**vars(empty), "pairs": pairs, "rows": _rows(empty, labels, pairs), "ranks": _ranks(empty)})


def _metrics(run: Method) -> tuple[Metric, ...]:
    rules = run.settings.get("conventions", {})
    unit = "voxels" if ", voxels," in str(rules.get("HD95", "")) else "mm"
    offered = (
        Metric("Dice", "Dice", 3, True, 1.0),
        Metric("HD95", f"HD95 [{unit}]", 2, False, 0.0),
        Metric("NSD", f"NSD @ {run.settings['nsd_tolerance_mm']:g} mm", 3, True, 1.0),
    )
    defined = next(iter(next(iter(run.cases.values())).metrics.values()))
    return tuple(metric for metric in offered if metric.key in defined)


def _unique(labels: Mapping[str, str]) -> dict[str, str]:
    """Shown names; two labels of one name, or one called `mean`, get their value beside it."""
    names = Counter([*labels.values(), MEAN])
    return {key: name if names[name] == 1 else f"{name} {key}" for key, name in labels.items()}


def _charged(case: ScoredCase, key: str, metric: Metric) -> float:
    value = case.metrics[key][metric.key]
    return case.diagonal_mm if math.isinf(value) else value


def _filler(runs: Sequence[Method]) -> Callable[[ScoredCase, str, Metric], float]:
    """`_charged`, but the best value where only other methods are defined: they raised a false alarm."""

    def value(case: ScoredCase, key: str, metric: Metric) -> float:
        own = _charged(case, key, metric)
        if math.isnan(own) and any(not math.isnan(_charged(run.cases[case.name], key, metric)) for run in runs):
            return metric.best
        return own

    return value


def _values(
    runs: Sequence[Method],
    cases: Sequence[str],
    labels: Mapping[str, str],
    metrics: Sequence[Metric],
    value: Callable[[ScoredCase, str, Metric], float],
) -> dict[tuple[str, str, str], dict[str, float]]:
    table: dict[tuple[str, str, str], dict[str, float]] = {}
    for run in runs:
        for metric in metrics:
            columns = [{case: value(run.cases[case], key, metric) for case in cases} for key in labels]
            for name, column in zip(labels.values(), columns, strict=True):
                table[run.name, name, metric.key] = column
            if len(columns) > 1:
                table[run.name, MEAN, metric.key] = {case: _mean([c[case] for c in columns]) for case in cases}
    return table


def _rows(data: Comparison, labels: Mapping[str, str], pairs: Sequence[MethodPair]) -> tuple[Row, ...]:
    rows = []
    for metric in data.metrics:
        for label in data.labels:
            keys = [key for key, name in labels.items() if label in (name, MEAN)]
            for run in data.runs:
                states = Counter(run.cases[case].status[key] for case in data.cases for key in keys)
                units = data.in_units(data.per_case[run.name, label, metric.key])
                others = [p for p in pairs if (p.label, p.metric) == (label, metric) and run.name in (p.new, p.old)]
                rows.append(
                    Row(
                        run.name, label, metric, describe(list(units.values())),
                        states["missed"], states["false_alarm"], states["both_empty"],
                        not states["missed"] and bool(others) and all(_beats(run.name, pair) for pair in others),
                    )
                )  # fmt: skip
    return tuple(rows)


def _beats(method: str, pair: MethodPair) -> bool:
    """Better in the mean and by the test: a two-sided p does not say for whom, and the mean may point the other way."""
    gain = pair.result.difference if pair.metric.higher_is_better else -pair.result.difference
    side = 1 if method == pair.new else -1
    return pair.p_holm < ALPHA and side * gain > 0 and side * pair.result.rank_biserial > 0


def _pairs(data: Comparison) -> tuple[MethodPair, ...]:
    pairs: list[MethodPair] = []
    for metric in data.metrics:
        compared = []
        for label in data.labels:
            for old, new in combinations(data.methods, 2):
                values = data.paired_units(new, old, label, metric.key)
                result = paired(*values, higher_is_better=metric.higher_is_better)
                compared.append((new, old, label, result if result.n >= FEWEST else _untested(result)))
        corrected = holm([result.p_value for *_, result in compared])
        pairs += [
            MethodPair(new, old, label, metric, result, p)
            for (new, old, label, result), p in zip(compared, corrected, strict=True)
        ]
    return tuple(pairs)


def _untested(result: Paired) -> Paired:
    return replace(result, p_value=math.nan, p_not_better=math.nan, rank_biserial=math.nan)


def _ranks(data: Comparison) -> dict[str, Ranks]:
    """Over the units that every method has a value for; filled values are undefined for all methods or for none."""
    if len(data.runs) < 2:
        return {}
    found = {}
    for metric in data.metrics:
        columns = [data.in_units(data.filled[method, data.overall, metric.key]) for method in data.methods]
        shared = [unit for unit in data.units if all(unit in column for column in columns)]
        if len(shared) >= FEWEST:
            values = np.array([[column[unit] for unit in shared] for column in columns])
            found[metric.key] = bootstrap_ranks(values, higher_is_better=metric.higher_is_better)
    return found


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan
