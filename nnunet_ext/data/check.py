"""A whole data set checked: files, headers, voxels, labels, and the cases against each other.

report = check_dataset("nnUNet_raw/Dataset004_Hippocampus")
report.errors, report.findings[0].check, report.cases[0].images[0].blake2b
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_ext.data.cohort import compare_cases, grouped_folds, patient_groups
from nnunet_ext.data.findings import SEVERITIES, Finding
from nnunet_ext.data.forecast import forecast
from nnunet_ext.data.inspect_case import CaseFacts, checking, inspect_case
from nnunet_ext.data.layout import CaseFiles, Layout, raw_dataset, read_layout
from nnunet_ext.errors import UserError
from nnunet_ext.workers import in_workers


@dataclass(frozen=True)
class Report:
    """What was found, errors first."""

    layout: Layout
    cases: tuple[CaseFacts, ...]
    findings: tuple[Finding, ...]
    forecast: dict[str, Any]
    folds: list[dict[str, list[str]]] | None
    """Grouped splits_final.json, when a pattern for patients was given."""

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        cases = []
        for case in self.cases:
            images = [{k: v for k, v in asdict(image).items() if k != "coarse"} for image in case.images]
            label = None if case.label is None else asdict(case.label)
            cases.append({"name": case.name, "split": case.split, "images": images, "label": label})
        return {
            "dataset": str(self.layout.folder),
            "counts": {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES},
            "findings": [finding.as_dict() for finding in self.findings],
            "forecast": self.forecast,
            "cases": cases,
        }


def check_dataset(
    dataset: str | os.PathLike[str],
    patients: str | None = None,
    folds: int = 5,
    processes: int = 1,
    progress: bool = False,
) -> Report:
    """Check an nnU-Net raw data set; nothing is written.

    Args:
        dataset: folder, name or number.
        patients: regular expression whose first group is the patient in a case's name.
        folds: number of grouped folds.
        processes: worker processes; 1 reads in this process, one case after another.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: there is no data set to check, or the pattern does not fit the names.
    """
    layout = read_layout(raw_dataset(dataset))
    cases, lost = _inspect(layout, processes, progress)
    findings = [*layout.findings, *lost, *(f for case in cases for f in case.findings)]
    with checking(layout.folder, findings):
        findings += compare_cases(layout, cases)
    splits = None
    if patients is not None:
        try:
            groups = patient_groups([case.name for case in layout.cases if case.split == "Tr"], patients)
            splits = grouped_folds(groups, folds)
        except ValueError as error:
            raise UserError(str(error)) from None
        several = Counter({patient: len(names) for patient, names in groups.items() if len(names) > 1})
        if several:
            most = ", ".join(f"{patient} ({count} cases)" for patient, count in several.most_common(3))
            text = f"{len(several)} of {len(groups)} patients have several cases, such as {most}"
            findings.append(Finding("patients-share-folds", str(layout.folder), text))
    first = [case.images[0] for case in cases if case.split == "Tr" and case.images]
    # Paths relative to the data set are shorter and do not tell where it lay.
    shown = [Finding(f.check, _relative(f.file, layout), f.value.replace(f"{layout.folder}/", "")) for f in findings]
    shown.sort(key=lambda f: (SEVERITIES.index(f.severity), f.check, f.file))
    return Report(layout, tuple(cases), tuple(shown), forecast(first, len(layout.channels)), splits)


def _relative(file: str, layout: Layout) -> str:
    path = Path(file)
    if path == layout.folder:
        return path.name
    return str(path.relative_to(layout.folder)) if path.is_relative_to(layout.folder) else file


def _inspect(layout: Layout, processes: int, progress: bool) -> tuple[list[CaseFacts], list[Finding]]:
    work = partial(inspect_case, values=layout.values, channels=len(layout.channels))
    cases: Sequence[CaseFiles] = layout.cases
    results: dict[tuple[str, str], CaseFacts] = {}
    lost = []
    with tqdm(total=len(cases), desc="check", unit="case", delay=2, disable=not progress) as bar:
        pairs = in_workers(work, cases, processes) if processes > 1 else ((case, work(case)) for case in cases)
        for case, facts in pairs:
            bar.update()
            if facts is None:
                text = "the process that read it was killed; is there enough memory?"
                lost.append(Finding("unreadable", str(case.images[0]), text))
            else:
                results[case.split, case.name] = facts
    return [results[c.split, c.name] for c in cases if (c.split, c.name) in results], lost
