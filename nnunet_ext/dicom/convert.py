"""Folders of DICOM as a data set in nnU-Net's raw format: per case a folder with a series and what was drawn on it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_ext.dicom.drawn import read_drawn
from nnunet_ext.dicom.headers import Header, read_contents
from nnunet_ext.dicom.series import Series, grid_of, read_series, with_grid
from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_folder, write_json
from nnunet_ext.image_files import write_image

ENDING = ".nii.gz"


@dataclass(frozen=True)
class DicomCase:
    """A case: its series, and the SEG or RTSTRUCT that was drawn on it, if any."""

    name: str
    series: Series
    drawn: Header | None


def convert_dicom(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    labels: Sequence[str] | None = None,
    progress: bool = False,
) -> Path:
    """Convert; returns the new data set, which appears only when complete.

    Cases with a SEG or RTSTRUCT go into imagesTr and labelsTr, those without into imagesTs.

    Args:
        source: holds a folder per case, or is one.
        target: such as nnUNet_raw/Dataset027_Heart.
        labels: names of the structures to take, 1 and up in this order; where they overlap a later one counts. None
            takes all, by name, which must not overlap.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: naming the file or folder, and what is wrong with it; or `target` exists.
    """
    source, target = Path(source), Path(target)
    if not re.fullmatch(r"Dataset\d{3}_.+", target.name):
        raise UserError(f"{target} is not named as nnU-Net wants it; expected a folder such as Dataset027_Heart")
    cases = find_dicom_cases(source)
    kinds = {case.series.headers[0].text("Modality") or "image": case for case in cases}
    if len(kinds) > 1:
        places = ", ".join(f"{kind} in {case.name}" for kind, case in sorted(kinds.items()))
        raise UserError(f"{source} holds series of several modalities ({places}); convert them one at a time")
    with atomic_folder(target) as folder:
        drawn: dict[str, dict[str, np.ndarray]] = {}
        bar = tqdm(cases, desc="convert", unit="case", delay=2, disable=not progress)
        for case in bar:
            split = "Ts" if case.drawn is None else "Tr"
            path = folder / f"images{split}" / f"{case.name}_0000{ENDING}"
            path.parent.mkdir(exist_ok=True)
            write_image(read_series(case.series), path)
            if case.drawn is not None:
                found = read_drawn(case.drawn, case.series)
                _check_names(case, found, labels)
                drawn[case.name] = {name: np.flatnonzero(mask) for name, mask in found.items()}
        names = list(labels or sorted({name for found in drawn.values() for name in found}))
        if len(names) > 255 or "background" in names:
            raise UserError(f"{source} has {len(names)} structures; expected at most 255, none called background")
        for case in cases:
            if case.drawn is None:
                continue
            path = folder / "labelsTr" / f"{case.name}{ENDING}"
            path.parent.mkdir(exist_ok=True)
            volume = _painted(case, drawn[case.name], names, overlap=labels is not None)
            write_image(with_grid(volume, case.series), path)
        write_json(
            folder / "dataset.json",
            {
                "channel_names": {"0": next(iter(kinds))},
                "labels": {"background": 0, **{name: number for number, name in enumerate(names, start=1)}},
                "numTraining": len(drawn),
                "file_ending": ENDING,
            },
        )
    return target


def find_dicom_cases(source: Path) -> list[DicomCase]:
    """The cases of a folder, by name.

    Raises:
        UserError: there is none; a folder holds no series, several, or several SEG or RTSTRUCT; or a series is damaged.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder; give one that holds a folder of DICOM files per case")
    folders = sorted(path for path in source.iterdir() if path.is_dir())
    folders = folders if folders and not any(path.is_file() for path in source.iterdir()) else [source.absolute()]
    return [_case(folder) for folder in folders]


def _case(folder: Path) -> DicomCase:
    if not re.fullmatch(r"[\w.-]+", folder.name):
        raise UserError(f"{folder}: the folder names the case; expected letters, digits, dots, dashes and underscores")
    found = read_contents(folder)
    if len(found.series) != 1:
        described = [
            f"{headers[0].text('SeriesDescription') or uid} ({len(headers)} images)"
            for uid, headers in sorted(found.series.items())
        ]
        held = f"{len(found.series)} series: {', '.join(described[:5])}" if described else "no DICOM images"
        raise UserError(f"{folder} holds {held}; expected one series per folder of a case")
    if len(found.drawn) > 1:
        names = ", ".join(header.path.name for header in found.drawn[:5])
        raise UserError(f"{folder} holds {len(found.drawn)} SEG or RTSTRUCT files ({names}); keep one")
    (headers,) = found.series.values()
    return DicomCase(folder.name, grid_of(headers), found.drawn[0] if found.drawn else None)


def _check_names(case: DicomCase, found: dict[str, np.ndarray], labels: Sequence[str] | None) -> None:
    if labels is None:
        return
    assert case.drawn is not None
    lacking = [name for name in labels if name not in found]
    if lacking:
        there = ", ".join(found) or "none"
        raise UserError(f"{case.drawn.path} has no structure {lacking[0]!r} of --labels; it has {there}")


def _painted(case: DicomCase, found: dict[str, np.ndarray], names: Sequence[str], overlap: bool) -> np.ndarray:
    volume: np.ndarray = np.zeros(case.series.shape, np.uint8)
    owner = volume.reshape(-1)
    for number, name in enumerate(names, start=1):
        places = found.get(name)
        if places is None:
            continue
        if not overlap and (taken := owner[places]).any():
            assert case.drawn is not None
            other = names[int(taken.max()) - 1]
            raise UserError(
                f"{case.drawn.path}: {other!r} and {name!r} overlap, and a voxel has one label; name those to take "
                "with --labels, the one that counts last"
            )
        owner[places] = number
    return volume
