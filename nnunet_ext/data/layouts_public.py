"""Where public data sets keep their images and labels, and what their labels mean. Nothing is read here but names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.data.cohort import grouped_folds, patient_groups
from nnunet_ext.errors import UserError

ENDING = ".nii.gz"


@dataclass(frozen=True)
class SourceCase:
    """One case: its name in the new data set, one file per channel, and the label file if there is one."""

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Source:
    """What a conversion needs to know.

    Attributes:
        channels: names in order.
        labels: for dataset.json, after `new_values`.
        training, test: cases.
        new_values: label value in the files to value in the new data set; None copies the files as they are.
        regions_order: nnU-Net's regions_class_order where labels are regions.
        folds: splits_final.json, or None where nnU-Net's own random split is right.
    """

    channels: tuple[str, ...]
    labels: dict[str, Any]
    training: tuple[SourceCase, ...]
    test: tuple[SourceCase, ...] = ()
    new_values: dict[int, int] | None = None
    regions_order: tuple[int, ...] | None = None
    folds: list[dict[str, list[str]]] | None = field(default=None)


# File name parts of T1, contrast-enhanced T1, T2 and FLAIR, what precedes them, and the value of the enhancing tumour.
_BRATS = {
    "2021": (("t1", "t1ce", "t2", "flair"), "_", 4),
    "2023": (("t1n", "t1c", "t2w", "t2f"), "-", 3),
}
BTCV = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
# The eight organs and the split of 18 and 12 cases that TransUNet introduced and UNETR++ and others report on.
SYNAPSE = ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas")
SYNAPSE_VALIDATION = ("0001", "0002", "0003", "0004", "0008", "0022", "0025", "0029", "0032", "0035", "0036", "0038")
ACDC = ("RV", "MYO", "LV")
AMOS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate/uterus",
)
# Case numbers up to this are CT, above MR.
AMOS_LAST_CT = 500


def brats(folder: Path, year: str) -> Source:
    """BraTS adult glioma: one folder per case, CASE/CASE_t1ce.nii.gz (2021) or CASE/CASE-t1c.nii.gz (2023).

    Values become oedema 1, necrotic core 2, enhancing 3, so that each of WT, TC and ET is drawn over the one before.
    Folders without a segmentation become test cases. Scans of one patient stay in one fold (2023 numbers them).
    """
    channels, separator, enhancing = _BRATS[year]
    training: list[SourceCase] = []
    test: list[SourceCase] = []
    for case in _folders(folder):
        files = [case / f"{case.name}{separator}{part}{ENDING}" for part in (*channels, "seg")]
        if not any(path.is_file() for path in files):
            continue
        _need(files[:-1])
        (training if files[-1].is_file() else test).append(
            SourceCase(case.name, tuple(files[:-1]), files[-1] if files[-1].is_file() else None)
        )
    _need_cases(folder, training, f"CASE/CASE{separator}seg{ENDING}")
    folds = None
    if year == "2023":
        groups = patient_groups([case.name for case in training], r"^(.*?)(?:-\d{3})?$")
        folds = _folds(groups)
    return Source(
        ("T1", "T1ce", "T2", "FLAIR"),
        {"background": 0, "WT": [1, 2, 3], "TC": [2, 3], "ET": [3]},
        tuple(training),
        tuple(test),
        {0: 0, 2: 1, 1: 2, enhancing: 3},
        (1, 2, 3),
        folds,
    )


def btcv(folder: Path, organs: tuple[str, ...] = BTCV) -> Source:
    """BTCV abdomen as Synapse distributes it: [RawData/]Training/img/img0001.nii.gz, label/label0001.nii.gz.

    `organs` keeps only some and numbers them anew; all 13 keep their values. Training/img may also be given directly.
    """
    base = next((b for b in (folder / "RawData", folder) if (b / "Training" / "img").is_dir()), folder)
    train = base / "Training" if (base / "Training").is_dir() else base
    training = []
    for image in sorted((train / "img").glob(f"img[0-9]*{ENDING}")):
        label = train / "label" / image.name.replace("img", "label")
        _need([label])
        training.append(SourceCase(image.name.removesuffix(ENDING), (image,), label))
    _need_cases(folder, training, f"Training/img/img0001{ENDING}")
    tests = [
        SourceCase(image.name.removesuffix(ENDING), (image,), None)
        for image in sorted((base / "Testing" / "img").glob(f"img[0-9]*{ENDING}"))
    ]
    new = {0: 0, **{value: organs.index(name) + 1 if name in organs else 0 for value, name in enumerate(BTCV, 1)}}
    labels = {"background": 0, **{name: value for value, name in enumerate(organs, 1)}}
    return Source(("CT",), labels, tuple(training), tuple(tests), None if organs == BTCV else new)


def synapse(folder: Path) -> Source:
    """BTCV with the eight organs and the fixed split of 18 and 12 cases of the published tables, as fold 0."""
    source = btcv(folder, SYNAPSE)
    names = [case.name for case in source.training]
    held = [name for name in names if name.removeprefix("img") in SYNAPSE_VALIDATION]
    if len(held) != len(SYNAPSE_VALIDATION):
        raise UserError(f"{folder} has {len(held)} of the 12 validation cases img0001, img0002 ...; expected all")
    folds = [{"train": [name for name in names if name not in held], "val": held}]
    return Source(source.channels, source.labels, source.training, source.test, source.new_values, None, folds)


def acdc(folder: Path) -> Source:
    """ACDC: training/patient001/patient001_frame01.nii.gz and _gt.nii.gz, two frames per patient; testing/ alike."""

    def cases(part: str) -> list[SourceCase]:
        found = []
        for patient in _folders(folder / part):
            for image in sorted(patient.glob(f"{patient.name}_frame[0-9][0-9]{ENDING}")):
                name = image.name.removesuffix(ENDING)
                label = image.with_name(f"{name}_gt{ENDING}")
                found.append(SourceCase(name, (image,), label if label.is_file() else None))
        return found

    training = cases("training")
    _need([case.images[0].with_name(f"{case.name}_gt{ENDING}") for case in training if case.label is None])
    _need_cases(folder, training, f"training/patient001/patient001_frame01{ENDING}")
    groups = patient_groups([case.name for case in training], r"^(patient\d+)_")
    labels = {"background": 0, **{name: value for value, name in enumerate(ACDC, 1)}}
    return Source(("cineMRI",), labels, tuple(training), tuple(cases("testing")), folds=_folds(groups))


def amos(folder: Path, modality: str = "ct") -> Source:
    """AMOS 2022: imagesTr, labelsTr, imagesVa, labelsVa, imagesTs with amos_0001.nii.gz; CT up to number 500.

    The validation cases, whose labels were published later, are training cases here, as in nnU-Net's own conversion.
    `modality` is ct, mr or all.
    """

    def cases(part: str, labelled: bool) -> list[SourceCase]:
        found = []
        for image in sorted((folder / f"images{part}").glob(f"*{ENDING}")):
            match = re.fullmatch(r"amos_(\d+)\.nii\.gz", image.name)
            if match is None or (modality != "all" and (int(match[1]) <= AMOS_LAST_CT) != (modality == "ct")):
                continue
            label = folder / f"labels{part}" / image.name
            if labelled:
                _need([label])
            found.append(SourceCase(image.name.removesuffix(ENDING), (image,), label if label.is_file() else None))
        return found

    training = [*cases("Tr", True), *cases("Va", True)]
    _need_cases(folder, training, f"imagesTr/amos_0001{ENDING}")
    labels = {"background": 0, **{name: value for value, name in enumerate(AMOS, 1)}}
    # Values of CT and MR do not compare; any name but CT makes nnU-Net normalise each image by itself.
    channel = "CT" if modality == "ct" else "MR" if modality == "mr" else "CT or MR"
    return Source((channel,), labels, tuple(training), tuple(cases("Ts", False)))


SOURCES: dict[str, Callable[[Path], Source]] = {
    "brats2021": lambda folder: brats(folder, "2021"),
    "brats2023": lambda folder: brats(folder, "2023"),
    "synapse": synapse,
    "btcv": btcv,
    "acdc": acdc,
    "amos-ct": lambda folder: amos(folder, "ct"),
    "amos-mr": lambda folder: amos(folder, "mr"),
    "amos": lambda folder: amos(folder, "all"),
}


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _need(paths: list[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing; unpack the archive again")


def _need_cases(folder: Path, cases: list[SourceCase], example: str) -> None:
    if not cases:
        raise UserError(f"{folder} has no labelled case; expected files such as {folder / example}")


def _folds(groups: dict[str, list[str]]) -> list[dict[str, list[str]]] | None:
    """Five folds by patient; None for a handful of patients, of which no five folds can be made."""
    return grouped_folds(groups) if len(groups) >= 5 else None
