"""Reading clicks other programs wrote: 3D Slicer markups, grand-challenge points, napari points.

None of them knows objects. Points are grouped by name; a leading "-" or the word "neg", "negative" or "not" before a
name makes them negative; such a word alone, or "background", is negative for every object of the file.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json
from nnunet_ext.json_object import shown
from nnunet_ext.prompts.types import CasePrompts, ObjectPrompts, PointPrompt

_NEGATIVE = re.compile(r"^(?:-\s*|(?:negative|neg|not)\b[\s_-]*)", re.IGNORECASE)
# Slicer numbers the points of a list: "liver-1".
_NUMBERED = re.compile(r"[\s_-]+\d+$")


def read_slicer(path: Path) -> CasePrompts:
    """3D Slicer markups (`.mrk.json`): names from the control points' labels, signs also from their descriptions.

    Points that were never placed (`positionStatus` other than "defined") are left out.

    Raises:
        UserError: not such a file, or no placed point.
    """
    content = read_json(path)
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list):
        raise UserError(f'{path} is no 3D Slicer markups file: it has no list "markups"')
    named = []
    for number, markup in enumerate(markups, start=1):
        system = markup.get("coordinateSystem") if isinstance(markup, dict) else None
        if system not in ("LPS", "RAS"):
            raise UserError(f"{path}: markup {number} has coordinateSystem {shown(system)}; expected LPS or RAS")
        points = markup.get("controlPoints") or []
        if not isinstance(points, list):
            raise UserError(f"{path}: markup {number} has controlPoints {shown(points)}; expected a list")
        for n, point in enumerate(points, start=1):
            where = f"markup {number}, point {n}"
            if not isinstance(point, dict):
                raise UserError(f"{path}: {where} must be a JSON object, not {shown(point)}")
            if point.get("positionStatus", "defined") != "defined":
                continue
            x, y, z = position(path, where, point.get("position"))
            if system == "RAS":
                x, y = -x, -y
            name = _NUMBERED.sub("", str(point.get("label") or "").strip())
            described = str(point.get("description") or "").strip().lower()
            if described in ("negative", "neg", "-") and not _NEGATIVE.match(name):
                name = "-" + name
            named.append((name, (x, y, z), where))
    return CasePrompts(path, "LPS", group(path, named))


def read_grand_challenge(path: Path, space: str | None) -> CasePrompts:
    """grand-challenge.org points ("Multiple points", or one "Point").

    Args:
        path: the file.
        space: of its coordinates, x first; such files do not say, and challenges differ.

    Raises:
        UserError: not such a file, or `space` is missing.
    """
    content = read_json(path)
    kind = content.get("type") if isinstance(content, dict) else None
    if kind not in ("Multiple points", "Point"):
        raise UserError(
            f'{path} is no prompt file: expected grand-challenge\'s "type": "Multiple points", or another file ending'
        )
    if space is None:
        raise UserError(f"{path} does not say its space; add --space voxel, LPS or RAS, as the challenge documents it")
    points = content.get("points") if kind == "Multiple points" else [content]
    if not isinstance(points, list):
        raise UserError(f'{path}: "points" must be a list')
    named = []
    for n, point in enumerate(points, start=1):
        if not isinstance(point, dict):
            raise UserError(f"{path}: point {n} must be a JSON object, not {shown(point)}")
        named.append(
            (str(point.get("name") or "").strip(), position(path, f"point {n}", point.get("point")), f"point {n}")
        )
    return CasePrompts(path, space, group(path, named))


def read_napari(path: Path) -> CasePrompts:
    """napari points (`index,axis-0,axis-1,axis-2`, and a column `label` or `name`; `positive` if there is one).

    Axes are those of the array a layer was made of, (z, y, x) of an image loaded with SimpleITK.

    Raises:
        UserError: not such a file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error})") from None
    axes = ("axis-0", "axis-1", "axis-2")
    names = [column for column in ("label", "name") if table and column in table[0]]
    if not table or any(axis not in table[0] for axis in axes) or not names:
        raise UserError(
            f"{path} must have the columns {', '.join(axes)} of a 3D points layer, a column label, and a point"
        )
    named = []
    for n, row in enumerate(table, start=1):
        where = f"point {n}"
        z, y, x = position(path, where, [row[axis] for axis in axes])
        name, sign = str(row[names[0]] or "").strip(), str(row.get("positive") or "true").strip().lower()
        if sign not in ("true", "false", "1", "0"):
            raise UserError(f"{path}: {where} has positive={sign!r}; expected true, false, 1 or 0")
        named.append(("-" + name if sign in ("false", "0") else name, (x, y, z), where))
    return CasePrompts(path, "voxel", group(path, named))


def group(path: Path, named: Iterable[tuple[str, tuple[float, float, float], str]]) -> tuple[ObjectPrompts, ...]:
    """Points (name with sign, position, place in the file) to objects, in the order in which names appear."""
    points = []
    for text, xyz, where in named:
        sign = _NEGATIVE.match(text)
        name = text[sign.end() :].strip() if sign else text
        if not sign and not name:
            raise UserError(f"{path}: {where} has no name; name it after its label, or -label for a negative click")
        background = name.lower() == "background"
        points.append(("" if background else name, PointPrompt(xyz, not sign and not background, where)))
    names = list(dict.fromkeys(name for name, _ in points if name))
    if not names:
        raise UserError(f"{path} has no point that names an object")
    return tuple(
        ObjectPrompts(decimal(name), name, tuple(point for own, point in points if own in ("", name))) for name in names
    )


def position(path: Path, where: str, value: Any) -> tuple[float, float, float]:
    """Three finite numbers.

    Raises:
        UserError: anything else; the message names the point.
    """
    try:
        x, y, z = (float(v) for v in value)
        if all(math.isfinite(v) for v in (x, y, z)):
            return x, y, z
    except (TypeError, ValueError):
        pass
    raise UserError(f"{path}: {where} has position {value!r}; expected three numbers")
