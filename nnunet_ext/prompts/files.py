"""Prompt files of this project, `<case>.prompts.json`, and the choice of reader by a file's name.

    {"version": 1, "space": "LPS", "unit": "mm", "objects": [
      {"label": 1, "name": "liver", "mask": null,
       "points": [{"xyz": [-12.5, 33.0, 80.0], "positive": true}]}]}

`space` has no default: "LPS" and "RAS" are patient coordinates in mm (x first), "voxel" are indices of the stored image
(x first, 0 the centre of the first voxel). Patient coordinates survive flips, crops and resampling.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, write_json
from nnunet_ext.json_object import shown
from nnunet_ext.prompts.foreign import position, read_grand_challenge, read_napari, read_slicer
from nnunet_ext.prompts.types import CasePrompts, ObjectPrompts, PointPrompt

SPACES = ("LPS", "RAS", "voxel")
# File ending -> what such a file is, longest first.
ENDINGS = {
    ".prompts.json": "prompts of this project",
    ".mrk.json": "3D Slicer markups",
    ".json": "grand-challenge points",
    ".csv": "napari points",
}


def read_prompts(path: str | os.PathLike[str], space: str | None = None) -> CasePrompts:
    """Read a prompt file of any of the kinds in `ENDINGS`.

    Args:
        path: the file.
        space: one of `SPACES`, for grand-challenge points, which do not say theirs; ignored by the others.

    Raises:
        UserError: unreadable, of no known kind, or not as expected; the message names file and place.
    """
    path = Path(path)
    if path.name.endswith(".prompts.json"):
        return _read_own(path)
    if path.name.endswith(".mrk.json"):
        return read_slicer(path)
    if path.suffix == ".json":
        return read_grand_challenge(path, space)
    if path.suffix == ".csv":
        return read_napari(path)
    raise UserError(f"{path} is no prompt file: its name must end with {', '.join(ENDINGS)}")


def find_prompts(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Case name -> prompt file of a folder.

    Raises:
        UserError: no such folder, no prompt file in it, or two files of one case.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the prompt files")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending is None or path.name.startswith(".") or path.name in ("dataset.json", "plans.json"):
            continue
        case = path.name[: -len(ending)]
        if case in found:
            raise UserError(f"{folder} has two prompt files of case {case}: {found[case].name}, {path.name}; keep one")
        found[case] = path
    if not found:
        raise UserError(f"{folder} holds no prompt file; expected names such as case_001.prompts.json")
    return found


def write_prompts(prompts: CasePrompts, path: str | os.PathLike[str]) -> None:
    """Write prompts in this project's own format, atomically; masks as paths relative to the file where possible."""
    folder = Path(path).parent
    objects = [
        {
            "label": thing.label,
            "name": thing.name,
            "points": [{"xyz": list(point.xyz), "positive": point.positive} for point in thing.points],
            "mask": None if thing.mask is None else os.path.relpath(thing.mask, folder),
        }
        for thing in prompts.objects
    ]
    unit = "voxel" if prompts.space == "voxel" else "mm"
    write_json(path, {"version": 1, "space": prompts.space, "unit": unit, "objects": objects})


def _read_own(path: Path) -> CasePrompts:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != 1:
        raise UserError(f'{path} must be a JSON object with "version": 1; see docs/sam_med3d.md')
    space = content.get("space")
    if space not in SPACES:
        raise UserError(f'{path}: "space" is {space!r}; expected {", ".join(SPACES)}')
    unit, expected = content.get("unit"), "voxel" if space == "voxel" else "mm"
    if unit not in (None, expected):
        raise UserError(f'{path}: "unit" is {unit!r} where space {space} is in {expected}')
    objects = content.get("objects")
    if not isinstance(objects, list) or not objects:
        raise UserError(f'{path}: "objects" must be a list of at least one object')
    return CasePrompts(path, space, tuple(_object(path, n, entry) for n, entry in enumerate(objects, start=1)))


def _object(path: Path, number: int, entry: Any) -> ObjectPrompts:
    where = f"object {number}"
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {where} must be a JSON object, not {shown(entry)}")
    label, name, points, mask = (entry.get(key) for key in ("label", "name", "points", "mask"))
    if label is not None and (not isinstance(label, int) or isinstance(label, bool) or label < 1):
        raise UserError(f"{path}: {where} has label {shown(label)}; expected a whole number from 1")
    if label is None and not isinstance(name, str):
        raise UserError(f"{path}: {where} needs a label or a name")
    if points is not None and not isinstance(points, list):
        raise UserError(f'{path}: {where} has "points" {shown(points)}; expected a list')
    if not points and mask is None:
        raise UserError(f"{path}: {where} has neither points nor a mask")
    read = tuple(_point(path, f"{where}, point {n}", point) for n, point in enumerate(points or [], start=1))
    return ObjectPrompts(label, name, read, None if mask is None else path.parent / str(mask))


def _point(path: Path, where: str, entry: Any) -> PointPrompt:
    if not isinstance(entry, dict) or not isinstance(entry.get("positive"), bool):
        raise UserError(f'{path}: {where} must have "xyz" and "positive" (true or false), not {shown(entry)}')
    return PointPrompt(position(path, where, entry.get("xyz")), entry["positive"], where)
