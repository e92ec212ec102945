"""Label maps that do not fit their image: shifted, exchanged, mirrored, or another case's.

Each label of each case is measured: where it lies in the image, where it lies among the case's other labels, its
volume, and mean and spread of the image inside it. A measure far from the cohort's median, in robust standard
deviations (1.4826 times the median absolute deviation), is a finding. What it finds, and what it misses, is measured
on planted faults by `benchmarks/planted_faults.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from nnunet_ext.data.findings import Finding
from nnunet_ext.data.inspect_case import CaseFacts, LabelFacts
from nnunet_ext.data.layout import Layout

# Fewer cases with a label than this say nothing about what is usual.
_FEWEST = 5
# Of a large cohort. The median and the deviation of a few cases are themselves uncertain: see `bound`.
_BOUND = 5.5
# Differences that are not remarkable however alike the others are: millimetres, logarithms, image standard deviations.
_LEAST = {"lies": 1.0, "lies among the labels": 1.0, "volume": 0.1, "brightness": 0.15, "spread": 0.1}


def bound(cases: int) -> float:
    """Robust standard deviations from the median beyond which a label of so many cases is a finding."""
    return _BOUND * (1 + 5 / cases)


def implausible_labels(layout: Layout, cases: Sequence[CaseFacts]) -> list[Finding]:
    """At most one finding per label map: its least plausible measure, and how many there are."""
    measured: dict[tuple[int, str, int], list[tuple[str, np.ndarray]]] = defaultdict(list)
    for case in cases:
        if case.label is not None:
            for key, values in _measures(case.label):
                measured[key].append((case.label.file, values))
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (value, measure, channel), rows in measured.items():
        if len(rows) < _FEWEST or layout.name_of(value) == "ignore":
            continue
        table = np.stack([values for _, values in rows])
        usual = np.median(table, axis=0)
        deviation = np.maximum(1.4826 * np.median(np.abs(table - usual), axis=0), _LEAST[measure])
        away = (np.abs(table - usual) / deviation).max(axis=1)
        for row in np.flatnonzero(away > bound(len(rows))).tolist():
            text = _in_words(measure, table[row], usual)
            where = f" in {layout.channels[channel]}" if measure in ("brightness", "spread") else ""
            said = f"{layout.name_of(value)} {text}{where}: {away[row]:.1f} robust deviations from the median"
            found[rows[row][0]].append((float(away[row]), said))
    findings = []
    for file, several in found.items():
        more = f"; {len(several) - 1} further measures are unusual" if len(several) > 1 else ""
        findings.append(Finding("label-implausible", file, max(several)[1] + more))
    return findings


def _measures(label: LabelFacts) -> Iterator[tuple[tuple[int, str, int], np.ndarray]]:
    """(label value, measure, channel) and numbers."""
    volumes = {
        value: label.volume_mm3[value]
        for value, place in label.centroid_mm.items()
        if label.volume_mm3.get(value, 0) > 0 and np.isfinite(place).all()  # else the header is damaged, and reported
    }
    total = sum(volumes.values())
    places = {value: np.array(label.centroid_mm[value]) for value in volumes}
    middle = sum((volumes[value] / total * places[value] for value in volumes), np.zeros(1)) if total else np.zeros(1)
    for value in volumes:
        yield (value, "lies", 0), places[value]
        yield (value, "volume", 0), np.array([np.log(volumes[value])])
        if len(volumes) > 1:
            yield (value, "lies among the labels", 0), places[value] - middle
    for value, by_channel in label.brightness.items():
        for channel, mean in enumerate(by_channel):
            yield (value, "brightness", channel), np.array([mean])
            yield (value, "spread", channel), np.array([label.evenness[value][channel]])


def _in_words(measure: str, values: np.ndarray, usual: np.ndarray) -> str:
    if measure in ("lies", "lies among the labels"):
        among = " among the labels" if measure != "lies" else " in the image"
        return f"lies {np.linalg.norm(values - usual):.0f} mm from its usual place{among}"
    if measure == "volume":
        return f"has {np.exp(values[0] - usual[0]):.2g} times its usual volume"
    if measure == "brightness":
        return f"is {values[0]:+.2f} standard deviations of the image from its mean, usually {usual[0]:+.2f},"
    return f"has {np.exp(values[0] - usual[0]):.2g} times its usual spread of values"
