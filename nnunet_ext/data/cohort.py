"""What only shows when cases are compared: copies, outliers, odd orientations, labels that do not fit their image."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from nnunet_ext.data.findings import Finding
from nnunet_ext.data.inspect_case import CaseFacts
from nnunet_ext.data.label_cohort import implausible_labels
from nnunet_ext.data.layout import Layout

NEAR_DUPLICATE_CORRELATION = 0.999
# Fewer cases than this say nothing about what is usual.
_FEWEST = 5
_INTENSITY_RATIO = 20.0
_SPACING_RATIO = 5.0


def compare_cases(layout: Layout, cases: Sequence[CaseFacts]) -> list[Finding]:
    """Findings about the data set as a whole, and about cases that differ from the others."""
    return [
        *_duplicates(cases),
        *_near_duplicates(cases),
        *_orientations(cases),
        *_spacings(cases),
        *_intensities(layout, cases),
        *_never_present(layout, cases),
        *implausible_labels(layout, cases),
        *_left_right(layout, cases),
    ]


def patient_groups(names: Sequence[str], pattern: str) -> dict[str, list[str]]:
    """Case names by patient.

    Args:
        names: case names.
        pattern: regular expression searched in each name; its first group, or else the whole match, is the patient.

    Raises:
        ValueError: the pattern is none, or a name does not contain it.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    groups = defaultdict(list)
    for name in names:
        match = compiled.search(name)
        if match is None:
            raise ValueError(f"case {name} does not contain the pattern {pattern!r}; every case needs a patient")
        groups[match[1] if compiled.groups else match[0]].append(name)
    return dict(groups)


def grouped_folds(groups: dict[str, list[str]], folds: int = 5, seed: int = 12345) -> list[dict[str, list[str]]]:
    """nnU-Net's splits_final.json with every patient in one fold.

    Patients are shuffled, then taken from the one with most cases down, each into the fold with fewest cases so far.

    Raises:
        ValueError: fewer patients than folds.
    """
    if len(groups) < folds:
        raise ValueError(
            f"{len(groups)} patients cannot fill {folds} folds; correct the pattern or ask for fewer folds"
        )
    order = np.random.default_rng(seed).permutation(sorted(groups)).tolist()
    validation: list[list[str]] = [[] for _ in range(folds)]
    for patient in sorted(order, key=lambda name: -len(groups[name])):
        min(validation, key=len).extend(groups[patient])
    everyone = sorted(name for cases in groups.values() for name in cases)
    return [{"train": [n for n in everyone if n not in set(held)], "val": sorted(held)} for held in validation]


def _duplicates(cases: Sequence[CaseFacts]) -> list[Finding]:
    findings = []
    images: dict[str, tuple[str, str]] = {}
    labels: dict[str, str] = {}
    for case in cases:
        for image in case.images:
            before = images.setdefault(image.blake2b, (case.name, image.file))
            if before[0] != case.name and image.minimum != image.maximum:
                findings.append(Finding("duplicate-image", image.file, f"same voxels as {before[1]}"))
        if case.label is not None and any(value for value in case.label.voxels):
            other = labels.setdefault(case.label.blake2b, case.label.file)
            if other != case.label.file:
                findings.append(Finding("duplicate-label", case.label.file, f"same voxels as {other}"))
    return findings


def _near_duplicates(cases: Sequence[CaseFacts]) -> list[Finding]:
    findings = []
    by_shape = defaultdict(list)
    for case in cases:
        if case.images and case.images[0].minimum != case.images[0].maximum:
            by_shape[case.images[0].coarse.shape].append(case.images[0])
    for images in by_shape.values():
        table = np.stack([image.coarse.reshape(-1) for image in images])
        for row, image in enumerate(images):  # one row at a time: n x n would not fit for large data sets
            alike = table[:row] @ table[row]
            for other in np.flatnonzero(alike > NEAR_DUPLICATE_CORRELATION).tolist():
                if images[other].blake2b != image.blake2b:
                    text = f"correlates to {alike[other]:.5f} with {images[other].file}"
                    findings.append(Finding("near-duplicate-image", image.file, text))
    return findings


def _orientations(cases: Sequence[CaseFacts]) -> list[Finding]:
    first = [case.images[0] for case in cases if case.images and case.images[0].orientation]
    counts = Counter(image.orientation for image in first)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        Finding("orientation-differs", i.file, f"{i.orientation}; {counts[usual]} of {len(first)} are {usual}")
        for i in first
        if i.orientation != usual
    ]


def _spacings(cases: Sequence[CaseFacts]) -> list[Finding]:
    first = [case.images[0] for case in cases if case.images and min(case.images[0].spacing_mm) > 0]
    if len(first) < 3:
        return []
    # Sorted, so that another orientation is not another spacing.
    table = np.array([sorted([*image.spacing_mm, 1.0][:3]) for image in first])
    median = np.median(table, axis=0)
    return [
        Finding("voxel-size-outlier", image.file, f"{np.array(image.spacing_mm)} mm; the median is {median} (sorted)")
        for image, row in zip(first, table, strict=True)
        if max((row / median).max(), (median / row).max()) > _SPACING_RATIO
    ]


def _intensities(layout: Layout, cases: Sequence[CaseFacts]) -> list[Finding]:
    findings = []
    for channel in range(len(layout.channels)):
        images = [c.images[channel] for c in cases if len(c.images) > channel]
        images = [image for image in images if image.std > 0]
        if len(images) < 3:
            continue
        ranges = np.array([image.percentiles[2] - image.percentiles[0] for image in images])
        usual = float(np.median(ranges))
        for image, value in zip(images, ranges.tolist(), strict=True):
            if usual > 0 and not usual / _INTENSITY_RATIO <= value <= usual * _INTENSITY_RATIO:
                text = f"values spread over {value:.4g} (1st to 99th percentile); the median image over {usual:.4g}"
                findings.append(Finding("intensity-outlier", image.file, text))
        if layout.is_ct[channel]:
            lowest = np.array([image.percentiles[0] for image in images])
            if np.median(lowest) < -500:
                findings += [
                    Finding("hu-offset", image.file, f"darkest percentile at {low:.0f}; the others' near -1000")
                    for image, low in zip(images, lowest.tolist(), strict=True)
                    if -100 < low < 100 and image.maximum > 500
                ]
            elif np.median(lowest) > -100 and max(image.maximum for image in images) > 2000:
                text = f"all {len(images)} images begin near {np.median(lowest):.0f}"
                findings.append(Finding("hu-offset", str(layout.folder), text))
    return findings


def _never_present(layout: Layout, cases: Sequence[CaseFacts]) -> list[Finding]:
    labels = [case.label for case in cases if case.label is not None and case.split == "Tr"]
    if not labels:
        return []
    found = {value for label in labels for value in label.voxels}
    absent = [value for value in layout.values if value and value not in found]
    path = str(layout.folder / "dataset.json")
    # A data set for prediction with an ignore label need not contain it.
    absent = [value for value in absent if layout.name_of(value) != "ignore"]
    return [Finding("label-never-present", path, f"{layout.name_of(v)} = {v} in none of {len(labels)}") for v in absent]


def _left_right(layout: Layout, cases: Sequence[CaseFacts]) -> list[Finding]:
    """Structures on the side where the same structure is in no other case, and left right of right."""
    findings: dict[str, str] = {}
    by_value: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for case in cases:
        # Patient coordinates mean something only where the header has them.
        if case.label is None or not case.images or not case.images[0].orientation:
            continue
        width = case.label.extent_mm[0]
        if not width > 0:  # a voxel size of 0, reported elsewhere
            continue
        for value, centre in case.label.centroid_mm.items():
            by_value[value].append((case.label.file, centre[0] / width))
        for left, right in _pairs(layout):
            x = {side: case.label.centroid_mm.get(side) for side in (left, right)}
            a, b = x[left], x[right]
            if a is not None and b is not None and a[0] > b[0]:
                names = layout.name_of(left), layout.name_of(right)
                findings[case.label.file] = f"{names[0]} lies {a[0] - b[0]:.0f} mm to the right of {names[1]}"
    for label, places in by_value.items():
        sides = np.array([at for _, at in places])
        # Clearly to one side in nearly all cases; a tumour that may be anywhere is not judged.
        if len(sides) < _FEWEST or np.median(np.abs(sides)) < 0.1:
            continue
        usual = float(np.sign(np.median(sides)))
        odd = [(file, at) for file, at in places if at * usual < -0.05]
        if len(odd) <= 0.2 * len(sides):
            for file, at in odd:
                where = "right" if at > 0 else "left"
                text = f"{layout.name_of(label)} lies on the {where} side, in {len(sides) - len(odd)} others opposite"
                findings.setdefault(file, text)
    return [Finding("left-right", file, text) for file, text in findings.items()]


def _pairs(layout: Layout) -> list[tuple[int, int]]:
    """Values of labels whose names differ only in left and right."""
    values = {name.lower(): value for name, value in layout.labels.items() if isinstance(value, int)}
    found = []
    for name, value in values.items():
        mirrored = re.sub(r"left|\bl\b", "right", name)
        if mirrored != name and mirrored in values:
            found.append((value, values[mirrored]))
    return found
