"""What lies in a folder of DICOM: image series, SEG and RTSTRUCT, by their headers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError, one_line, reason_of

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True)
class Header:
    """A file and its header, without pixels."""

    path: Path
    content: Any

    def text(self, key: str) -> str:
        """An attribute as text, empty where there is none.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return one_line(str(self.content.get(key, "") or "").strip())
        except Exception as error:  # pydicom converts values when they are asked for, and raises what it likes
            raise self.refusal(f"{key} cannot be read ({reason_of(error)[:200]})") from None

    def numbers(self, key: str, count: int) -> list[float]:
        """An attribute of so many finite numbers.

        Raises:
            UserError: it is missing or something else.
        """
        try:
            value = self.content.get(key)
            values = [float(value)] if count == 1 else [float(number) for number in value]
            if len(values) != count or not all(abs(number) < 1e9 for number in values):
                raise ValueError(f"it is {value}")
        except Exception as error:  # as above
            expected = "a number" if count == 1 else f"{count} numbers"
            raise self.refusal(f"{key} is missing or damaged ({reason_of(error)[:100]}); expected {expected}") from None
        return values

    def refusal(self, what: str) -> UserError:
        """An error that names the file."""
        return UserError(f"{self.path}: {what}; export it again, or leave it out")


@dataclass
class Contents:
    """What a folder holds.

    Attributes:
        series: UID -> headers of the images of each image series.
        drawn: SEG and RTSTRUCT files.
    """

    series: dict[str, list[Header]] = field(default_factory=dict)
    drawn: list[Header] = field(default_factory=list)


def read_contents(folder: Path) -> Contents:
    """Headers of all DICOM files of a folder and those below; other files, and DICOM of other kinds, are passed over.

    Raises:
        UserError: pydicom is not installed, or a file is damaged.
    """
    found = Contents()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        header = read_header(path)
        if header is None:
            continue
        kind = header.text("SOPClassUID")
        if kind in (SEG, RTSTRUCT):
            found.drawn.append(header)
        elif header.text("Rows"):
            found.series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    return found


def read_header(path: Path) -> Header | None:
    """The header of a DICOM file, or None for other files.

    Raises:
        UserError: pydicom is not installed, or the file is damaged.
    """
    pydicom = need("pydicom")
    from pydicom.errors import InvalidDicomError

    try:
        with quiet():
            content = pydicom.dcmread(path, stop_before_pixels=True)
            if path.name == "DICOMDIR":
                return None
            return Header(path, content)
    except InvalidDicomError:
        if path.suffix.lower() == ".dcm":
            raise UserError(f"{path} is no DICOM file, or damaged; export it again, or leave it out") from None
        return None
    except Exception as error:  # pydicom, given bytes that are none of its own, raises anything
        raise UserError(f"{path} is damaged ({reason_of(error)[:200]}); export it again, or leave it out") from None


def need(name: str) -> Any:
    """A package of the extra `dicom`.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed; pip install 'nnunet-ext[dicom]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what pydicom and highdicom have to say about headers they can read all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
