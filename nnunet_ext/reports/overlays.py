"""Worst, median and best case of each method in three planes: slices as small pictures, contours as vector paths."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import contourpy
import numpy as np
from PIL import Image

from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.images import FILE_ENDINGS
from nnunet_ext.reports.comparison import MEAN, Comparison
from nnunet_ext.reports.evaluation_file import ScoredCase
from nnunet_ext.reports.figures import (
    COLOURS,
    OverlayCase,
    crop,
    most_disagreement,
    read_case,
    worst_median_best,
)
from nnunet_ext.reports.runs import Method

# Pixels along the longer side of a slice; more only make the file larger.
_MOST_PIXELS = 320
_QUALITY = 82


def overlays(
    data: Comparison, images: Path | None, references: Path | None, members: Mapping[str, Sequence[int]]
) -> tuple[str, str | None]:
    """(HTML of all methods' pictures, why some are absent or None).

    Args:
        data: the comparison.
        images: folder of images such as imagesTr; by default that of nnUNet_raw, or the one beside the references.
        references: folder of references, for an evaluation whose files have moved.
        members: label name to the values it consists of.
    """
    blocks, problems = [], []
    for run in data.runs:
        dice = data.per_case[run.name, data.overall, "Dice"]
        blocks.append(f"<h3>{escape(run.name)}</h3>")
        for role, name in worst_median_best(dice).items():
            case = run.cases[name]
            try:
                drawn = read_scored_case(run, case, images, references, dice[name], _hd95(data, run, name))
            except UserError as error:
                problems.append(str(error))
                continue
            blocks.append(_row(role, drawn, members, case))
    legend = "".join(
        f'<span><i style="background:{COLOURS[k % len(COLOURS)]}"></i>{escape(name)}</span>'
        for k, name in enumerate(members)
    )
    shown = f'<div class="legend">{legend}</div>{"".join(blocks)}' if any("<svg" in block for block in blocks) else ""
    return shown, "; ".join(dict.fromkeys(problems)) or None


def label_values(data: Comparison) -> dict[str, tuple[int, ...]]:
    """{shown name: label values it consists of}, from the keys `1` and `(1, 2)` of summary.json."""
    names = [label for label in data.labels if label != MEAN]
    values = [tuple(map(int, re.findall(r"\d+", key))) for key in data.runs[0].labels]
    return dict(zip(names, values, strict=True))


def _hd95(data: Comparison, run: Method, case: str) -> float:
    values = data.per_case.get((run.name, data.overall, "HD95"))
    return values[case] if values else math.nan


def read_scored_case(
    run: Method, case: ScoredCase, images: Path | None, references: Path | None, dice: float, hd95: float
) -> OverlayCase:
    """Image, reference and prediction of a method's case.

    Raises:
        UserError: a file is not there, or cannot be drawn.
    """
    reference = case.reference
    if not reference.is_file() and references is not None:
        reference = references / reference.name
    for what, path in (("reference", reference), ("prediction", case.prediction)):
        if path is None or not path.is_file():
            raise UserError(f"the {what} of {case.name} ({run.name}) is not there: {path}")
    image = _image(run, case, images)
    return read_case(case.name, image, reference, str(case.prediction), dice=dice, hd95_mm=hd95)


def _image(run: Method, case: ScoredCase, images: Path | None) -> Path:
    folders = [images] if images is not None else []
    if images is None:
        beside = case.reference.parent
        if beside.name.startswith("labels"):
            folders.append(beside.with_name("images" + beside.name[6:]))
        if raw := os.environ.get("nnUNet_raw"):
            folders += [Path(raw, run.dataset, name) for name in ("imagesTr", "imagesTs")]
    for folder in folders:
        for ending in FILE_ENDINGS:
            if (found := folder / f"{case.name}_0000{ending}").is_file():
                return found
    looked = " or ".join(map(str, folders)) or "nnUNet_raw, which is not set"
    raise UserError(f"no image {case.name}_0000 in {looked}; name the folder with --images to see pictures")


def _row(role: str, case: OverlayCase, members: Mapping[str, Sequence[int]], facts: ScoredCase) -> str:
    box = crop(case)
    low, high = np.percentile(case.image[box], (1, 99.5))
    missed = sum(state != "both" and state != "both_empty" for state in facts.status.values())
    hd95 = "" if math.isnan(case.hd95_mm) else f", HD95 {case.hd95_mm:.1f} mm"
    hd95 += f" ({missed} label(s) missed or false)" if missed else ""
    planes = []
    for name, axis, upwards, left in case.planes:
        index = most_disagreement(case, axis)
        plane = tuple(index if a == axis else box[a] for a in range(3))
        height_mm, width_mm = (case.spacing_mm[a] for a in range(3) if a != axis)
        slices = [case.image[plane], case.reference[plane], case.prediction[plane]]
        if upwards:
            slices = [s[::-1] for s in slices]
        grey = np.clip((slices[0] - low) / ((high - low) or 1) * 255, 0, 255).astype(np.uint8)
        rows, columns = grey.shape
        size = f'width="{columns * width_mm:.2f}" height="{rows * height_mm:.2f}"'
        paths = "".join(
            f'<path class="{kind}" stroke="{COLOURS[k % len(COLOURS)]}" d="{path}"/>'
            for kind, mask in (("ref", slices[1]), ("pred", slices[2]))
            for k, values in enumerate(members.values())
            if (path := _contour(np.isin(mask, values), width_mm, height_mm))
        )
        planes.append(
            f'<figure><svg class="scan" viewBox="0 0 {columns * width_mm:.2f} {rows * height_mm:.2f}" role="img" '
            f'aria-label="{escape(case.name)} {name}"><image {size} preserveAspectRatio="none" '
            f'href="{_data_url(grey)}"/>{paths}</svg><figcaption>'
            f"{_where(case, name, axis, index, left)}</figcaption></figure>"
        )
    title = f"{role}: {escape(case.name)}, Dice {case.dice:.3f}{hd95}"
    return f'<div class="case"><p>{title}</p><div class="planes">{"".join(planes)}</div></div>'


def _where(case: OverlayCase, name: str, axis: int, index: int, left: str) -> str:
    slices = case.image.shape[axis]
    side = f" (left: {left})" if left else ""
    return f"{name}{side}" if slices == 1 else f"{name}, slice {index + 1} of {slices}{side}"


def _contour(mask: np.ndarray, width_mm: float, height_mm: float) -> str:
    """Outline of a mask as an SVG path in mm; a pixel k spans k to k + 1 times its size."""
    if not mask.any():
        return ""
    y = (np.arange(-1, mask.shape[0] + 1) + 0.5) * height_mm
    x = (np.arange(-1, mask.shape[1] + 1) + 0.5) * width_mm
    # A rim of zeros closes contours at the border of the crop.
    lines = contourpy.contour_generator(x, y, np.pad(mask, 1).astype(float)).lines(0.5)
    return "".join("M" + "L".join(f"{a:.2f} {b:.2f}" for a, b in _corners(np.asarray(line))) for line in lines)


def _corners(line: np.ndarray) -> np.ndarray:
    """The points at which a polyline turns, and its ends."""
    if len(line) < 3:
        return line
    steps = np.diff(line, axis=0)
    cross = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    return line[np.concatenate([[True], np.abs(cross) > 1e-9, [True]])]


def _data_url(grey: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(grey))
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
