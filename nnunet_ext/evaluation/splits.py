"""The folds of a cross-validation: which nnU-Net planned (splits_final.json), and which are there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, resolved
from nnunet_ext.json_object import JsonObject

_REMEDY = "restore nnU-Net's splits_final.json"


def fold_folders(result_folder: Path) -> dict[int, Path]:
    """{number: folder} of the `fold_k` of a result folder, ascending."""
    found = {int(p.name[5:]): p for p in result_folder.glob("fold_*") if re.fullmatch(r"fold_\d+", p.name)}
    return dict(sorted(found.items()))


def find_splits(result_folder: Path, reference_folder: Path) -> Path | None:
    """The splits_final.json of a result folder, or None.

    nnU-Net writes it to nnUNet_preprocessed/DATASET, beside gt_segmentations: looked for beside the references, then
    in the folder that nnUNet_preprocessed has for the data set that the folder above the result folder is named after.
    """
    folders = [resolved(reference_folder).parent]
    if root := os.environ.get("nnUNet_preprocessed"):
        folders.append(Path(root, resolved(result_folder).parent.name))
    return next((file for folder in folders if (file := folder / "splits_final.json").is_file()), None)


def read_splits(path: Path) -> list[tuple[str, ...]]:
    """Names of the validation cases of each fold.

    Raises:
        UserError: the file is no splits_final.json.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(fold, dict) for fold in content):
        raise UserError(f"{path} is no list of folds; {_REMEDY}")
    return [JsonObject(path, fold, f"[{k}]", _REMEDY).texts("val") for k, fold in enumerate(content)]


def notes_about_folds(finished: Iterable[int], begun: Iterable[int], splits: Sequence[object] | None) -> list[str]:
    """What a reader must know about folds that are not there.

    Args:
        finished: folds that were validated.
        begun: folds that have a folder.
        splits: one entry per planned fold; None when that is unknown.
    """
    finished, begun = set(finished), set(begun)
    notes = [f"fold {k} has no validation folder and is left out" for k in sorted(begun - finished)]
    planned = range(len(splits) if splits is not None else 0)
    if absent := [str(k) for k in planned if k not in begun]:
        notes.append(
            f"fold(s) {', '.join(absent)} of the {len(planned)} in splits_final.json are not there and left out"
        )
    if splits is not None:
        notes += [f"fold {k} is not among the {len(planned)} of splits_final.json: its cases without a prediction "
                  "cannot be noticed" for k in sorted(finished - set(planned))]  # fmt: skip
    return notes
