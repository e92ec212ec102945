"""The cases of a folder by nnU-Net's names: NAME_0000.ENDING is the first channel of NAME, and so on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import UserError

# These as a case's name would make results hidden files, or files of no name.
_NO_NAMES = ("", ".", "..")


@dataclass(frozen=True)
class ChannelFiles:
    """What a folder holds.

    Attributes:
        cases: name -> channel number -> file; names in natural order, numbers ascending.
        others: what is named otherwise, in natural order; hidden files are left out.
    """

    cases: dict[str, dict[int, Path]]
    others: tuple[Path, ...]


def channel_files(folder: Path, endings: Sequence[str], *, any_case: bool = False) -> ChannelFiles:
    """Sort the files of a folder into cases, whether these are complete or not.

    Args:
        folder: of images.
        endings: such as .nii.gz; the first that fits counts.
        any_case: .NII.GZ is .nii.gz, too.

    Raises:
        UserError: `folder` is none, or two of its files are the same channel of a case.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one of images such as NAME_0000{endings[0]}")
    pattern = re.compile(
        rf"(.*)_(\d{{4}})(?:{'|'.join(map(re.escape, endings))})",
        re.ASCII | re.DOTALL | (re.IGNORECASE if any_case else 0),
    )
    cases: dict[str, dict[int, Path]] = {}
    others = []
    for path in sorted(folder.iterdir(), key=lambda path: natural_order(path.name)):
        match = pattern.fullmatch(path.name)
        if match is not None and match[1] not in _NO_NAMES:
            if path.name.startswith("."):
                continue
            files, number = cases.setdefault(match[1], {}), int(match[2])
            if number in files:
                raise UserError(f"{folder} has {files[number].name} and {path.name}, which are one channel; keep one")
            files[number] = path
        elif match is not None or not path.name.startswith("."):
            others.append(path)
    ordered = {name: dict(sorted(cases[name].items())) for name in sorted(cases, key=natural_order)}
    return ChannelFiles(ordered, tuple(others))


def find_cases(
    folder: Path,
    endings: Sequence[str],
    channels: int | None = None,
    *,
    colours: bool = False,
    any_case: bool = False,
) -> dict[str, tuple[Path, ...]]:
    """Case name -> image files in the order of their channels; names in natural order.

    Args:
        folder: of images.
        endings: the image files' endings; files with others are left alone.
        channels: files per case; None takes those the cases have, the same for all, and then refuses image files
            without a number, because nothing else says that they are not meant.
        colours: a file may hold several channels, as for nnU-Net's reader of natural images, so that there may be fewer
            files; whether they add up is seen when they are read.
        any_case: .NII.GZ is .nii.gz, too.

    Raises:
        UserError: no folder, no case, a missing or surplus channel, or a name that cannot be a case's.
    """
    found = channel_files(folder, endings, any_case=any_case)
    for path in found.others:
        ending = ending_of(path.name, endings, any_case=any_case)
        if ending is None:
            continue
        stem = path.name[: -len(ending)]
        if stem[:-5] in _NO_NAMES and re.fullmatch(r".*_\d{4}", stem, re.ASCII):
            raise UserError(f"{path} has no name before its channel number; rename it to NAME{stem[-5:]}{ending}")
        if channels is None:
            raise UserError(f"{path} has no channel number; rename it to {stem}_0000{ending}")
    if not found.cases:
        raise UserError(f"{folder} holds no image named NAME_0000 with the ending {' or '.join(endings)}")
    numbers: Sequence[int]
    if channels is None:
        numbers = sorted({number for files in found.cases.values() for number in files})
    else:
        numbers = range(channels)
    for name, files in found.cases.items():
        expected = range(min(len(files), len(numbers))) if colours else numbers
        missing = [number for number in expected if number not in files]
        ending = ending_of(next(iter(files.values())).name, endings, any_case=any_case)
        if missing:
            raise UserError(
                f"{folder} lacks {name}_{missing[0]:04d}{ending}; {len(numbers)} channel(s) of each case are expected"
            )
        if len(files) > len(expected):
            raise UserError(f"{folder} has {len(files)} channels of {name}; {len(numbers)} are expected, from 0000")
    return {name: tuple(files.values()) for name, files in found.cases.items()}


def ending_of(name: str, endings: Sequence[str], *, any_case: bool = False) -> str | None:
    """The first of the endings that a file name has, or None."""
    compared = name.lower() if any_case else name
    return next((ending for ending in endings if compared.endswith(ending)), None)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key by which case_2 comes before case_10."""
    parts = re.split(r"(\d+)", name, flags=re.ASCII)
    return [int(part) if odd % 2 else part for odd, part in enumerate(parts)], name
