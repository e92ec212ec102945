"""Which labels and regions are evaluated, and what they are called: nnU-Net's dataset.json or a plain list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.files import resolved
from nnunet_ext.json_object import JsonObject, shown

Target = int | tuple[int, ...]
# What an int64 label map can hold.
LARGEST_LABEL = 2**63 - 1
# The confusion matrix has this many rows: 134 MB.
_MOST_VALUES = 4096


@dataclass(frozen=True)
class Labels:
    """The evaluated labels and regions of a data set.

    Attributes:
        targets: a label value, or the values that make up a region, in the order of dataset.json.
        names: their names, same order.
        values: every value that a label map may hold, 0 and the ignore label included, ascending.
        ignore: value of the ignore label; voxels with it in the reference count nowhere.
        file_ending: file ending that dataset.json declares, if any.
    """

    targets: tuple[Target, ...]
    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int | None = None
    file_ending: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The targets as nnU-Net writes them in summary.json: `1`, `(1, 2)`."""
        return tuple(str(target) for target in self.targets)


def labels_from_values(targets: Iterable[Target], ignore: int | None = None) -> Labels:
    """Labels without a dataset.json: the given targets are also the only values that the maps may hold.

    Raises:
        UserError: no target or more than 4096 values, 0, a negative or a too large value, a value twice in one region,
            or a target twice.
    """
    chosen = tuple(tuple(int(v) for v in t) if isinstance(t, Sequence) else int(t) for t in targets)
    values = {0} if ignore is None else {0, ignore}
    for target in chosen:
        members = target if isinstance(target, tuple) else (target,)
        fits = members and 0 < min(members) and max(members) <= LARGEST_LABEL
        if not fits or len(set(members)) < len(members) or ignore in members:
            raise UserError(
                f"label {target} cannot be evaluated; expected integers from 1 to 2^63 - 1 other than the ignore "
                "label, or regions of such without repetition"
            )
        values.update(members)
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"labels {list(chosen)} cannot be evaluated; give at least one, and each once")
    if len(values) > _MOST_VALUES:
        raise UserError(f"{len(values)} label values cannot be evaluated at once; give at most {_MOST_VALUES}")
    if ignore is not None and not 0 <= ignore <= LARGEST_LABEL:
        raise UserError(f"ignore label {ignore} cannot occur in a label map; expected an integer from 0 to 2^63 - 1")
    return Labels(chosen, tuple(str(t) for t in chosen), tuple(sorted(values)), ignore)


def labels_from_dataset_json(path: str | os.PathLike[str], only: Iterable[Target] | None = None) -> Labels:
    """The labels that nnU-Net would evaluate for this dataset.json: regions if there are any, else foreground labels.

    Args:
        path: the file.
        only: evaluate these targets instead; the maps may still hold every value of dataset.json.

    Raises:
        UserError: the file is no dataset.json, or `only` names values it does not have.
    """
    content = JsonObject.read(Path(path), "give nnU-Net's dataset.json")
    declared = content.content.get("labels")
    if not isinstance(declared, dict) or not declared:
        raise UserError(f"{path} has no 'labels' dictionary; expected nnU-Net's dataset.json")
    content.object("labels").names()  # can be written
    entries = {name: _members(path, name, value) for name, value in declared.items()}
    ignore = declared.get("ignore")
    values = {0} | {v for members in entries.values() for v in members}
    foreground = {name: members for name, members in entries.items() if name != "ignore" and members != (0,)}
    # nnU-Net's rule: one list of two values makes every entry a region; lists of one value alone are labels.
    has_regions = any(len(members) > 1 for members in foreground.values())
    named: dict[Target, str] = {}
    for name, members in foreground.items():
        target: Target = members if has_regions and isinstance(declared[name], list) else members[0]
        named[target] = name
    chosen = labels_from_values(named if only is None else only)
    if not set(chosen.values) <= values - {ignore}:
        raise UserError(
            f"labels {list(chosen.targets)} are not all in {path}, which has {sorted(values - {0, ignore})}"
        )
    file_ending = content.optional_text("file_ending")
    names = tuple(named.get(target, str(target)) for target in chosen.targets)
    return Labels(chosen.targets, names, tuple(sorted(values)), ignore, file_ending)


def find_dataset_json(
    reference_folder: str | os.PathLike[str], prediction_folder: str | os.PathLike[str]
) -> Path | None:
    """The dataset.json that belongs to two folders, or None.

    Looked for in the prediction folder (where `nnUNetv2_predict` puts one) and the three folders above it (training
    puts one above fold_k/validation), then in the reference folder and the one above it.
    """
    prediction, reference = resolved(prediction_folder), resolved(reference_folder)
    for folder in [prediction, *prediction.parents[:3], reference, *reference.parents[:1]]:
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    return None


def _members(path: str | os.PathLike[str], name: Any, value: Any) -> tuple[int, ...]:
    members = tuple(value) if isinstance(value, list) else (value,)
    whole = all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= LARGEST_LABEL for v in members)
    if not members or not whole or (name == "ignore" and isinstance(value, list)):
        raise UserError(f"{path}: label '{name}' is {shown(value)}; expected a whole number from 0 or a list of such")
    return members
