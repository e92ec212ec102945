"""Data sets by number or name in nnU-Net's three folders."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError

# As nnU-Net names them. No glob character, and no way out of the folder.
_NAME = re.compile(r"Dataset\d{3,}_[^/\\*?\[\]]+")


def base_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables names, as it is written there.

    Raises:
        UserError: the variable is not set.
    """
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"{variable} is not set; export it as nnU-Net's documentation says")
    return Path(value)


def find_dataset(dataset: str, *variables: str, remedy: str = "") -> Path:
    """Folder of a data set given by number or name.

    Args:
        dataset: such as 4 or Dataset004_Hippocampus.
        variables: of nnU-Net, such as nnUNet_raw; the data set must have one name in all their folders together, and
            the first that holds it is taken.
        remedy: what to do when there is none.

    Raises:
        UserError: a variable is not set, this is neither a number nor a name, or there is none or more than one.
    """
    bases = [base_folder(variable) for variable in variables]
    number = decimal(dataset)
    if number is None and not _NAME.fullmatch(dataset):
        raise UserError(f"data set {dataset!r} must be a number such as 4 or a name such as Dataset004_Hippocampus")
    start = dataset if number is None else f"Dataset{number:03d}_"
    found = [
        path
        for base in bases
        for path in sorted(base.glob("Dataset*"))
        if path.is_dir() and (path.name == start or (number is not None and path.name.startswith(start)))
    ]
    names = sorted({path.name for path in found})
    if len(names) != 1:
        pattern = start if number is None else f"{start}*"
        places, listed = " or ".join(map(str, bases)), ", ".join(names) or "none"
        todo = "give the whole name" if names else remedy or "check number or name, and the folder"
        raise UserError(f"expected one folder {pattern} in {places}, found {listed}; {todo}")
    return found[0]
