"""A picture that shows where predictions go wrong: the worst, the median and the best case, with contours.

Numbers hide what kind of error a network makes; three cases chosen by rank, not by taste, show it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_path
from nnunet_ext.image_files import read_image

# Okabe and Ito's colours, told apart by people with any kind of colour vision; black and grey vanish on a scan.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")

# Name of the plane, the array axis across it, whether its rows run upwards, and which side of the patient is on the
# left of the picture (arrays are (z, y, x) in LPS order).
PLANES = (("axial", 0, False, "R"), ("coronal", 1, True, "R"), ("sagittal", 2, True, "A"))

# The reference is a broad pale band, the prediction a thin line: agreement is a line inside its band.
_REFERENCE_WIDTH, _PREDICTION_WIDTH = 3.4, 1.1

_MARGIN_MM = 12.0


@dataclass(frozen=True)
class OverlayCase:
    """One case to draw: image, reference and prediction as (z, y, x) arrays in LPS order, and its scores."""

    name: str
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    spacing_mm: tuple[float, ...]
    """(z, y, x)."""
    dice: float
    """Mean over the foreground labels."""
    hd95_mm: float
    """Mean over the foreground labels; infinite when a label was missed or is a false alarm."""
    upright: bool = True
    """Whether the axes are those of a patient; a picture of two axes is as it was stored."""

    @property
    def planes(self) -> tuple[tuple[str, int, bool, str], ...]:
        """Those of `PLANES` it has; of a single slice, that slice."""
        if self.image.shape[0] > 1:
            return PLANES
        name, axis, upwards, left = PLANES[0]
        return ((name, axis, upwards, left) if self.upright else ("image", axis, upwards, ""),)


def read_case(
    name: str,
    image: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    prediction: str | os.PathLike[str],
    *,
    dice: float,
    hd95_mm: float,
) -> OverlayCase:
    """Read the three files of a case, turned so that axial, coronal and sagittal mean what they say.

    An image of two axes is one slice, as it was stored; one with colours is shown in grey.

    Raises:
        UserError: a file is missing or unreadable, has more axes or channels, or the three differ in size.
    """
    volumes = [_read_lps(path) for path in (image, reference, prediction)]
    for path, volume in zip((reference, prediction), volumes[1:], strict=True):
        if volume.GetSize() != volumes[0].GetSize():
            raise UserError(
                f"{path} has {volume.GetSize()} voxels but {image} has {volumes[0].GetSize()}; "
                "an overlay needs an image and masks on the same grid"
            )
        if volume.GetNumberOfComponentsPerPixel() != 1:
            raise UserError(f"{path} has {volume.GetNumberOfComponentsPerPixel()} channels; a label map has one")
    scan, truth, guess = (sitk.GetArrayFromImage(volume) for volume in volumes)
    if volumes[0].GetNumberOfComponentsPerPixel() > 1:
        scan = scan.mean(axis=-1)
    if volumes[0].GetDimension() == 3:
        return OverlayCase(name, scan, truth, guess, volumes[0].GetSpacing()[::-1], dice, hd95_mm)
    spacing = (1.0, *volumes[0].GetSpacing()[::-1])
    return OverlayCase(name, scan[None], truth[None], guess[None], spacing, dice, hd95_mm, upright=False)


def worst_median_best(dice: Mapping[str, float]) -> dict[str, str]:
    """Choose cases by rank: `{"worst": case, "median": case, "best": case}`.

    Cases without a score (NaN) are left out. With two cases there is no median; a single case is the "only" one.
    """
    ranked = sorted((score, case) for case, score in dice.items() if not math.isnan(score))
    names = [case for _, case in ranked]
    roles = [(), ("only",), ("worst", "best"), ("worst", "median", "best")][min(len(names), 3)]
    # The lower of the two middle cases when their number is even.
    place = {"only": 0, "worst": 0, "median": (len(names) - 1) // 2, "best": -1}
    return {role: names[place[role]] for role in roles}


def write_overlay(
    cases: Mapping[str, OverlayCase], labels: Mapping[str, Sequence[int]], path: str | os.PathLike[str]
) -> None:
    """Write `overlay_figure(cases, labels)` as a PNG, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    figure = overlay_figure(cases, labels)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def overlay_figure(cases: Mapping[str, OverlayCase], labels: Mapping[str, Sequence[int]]) -> Figure:
    """One row per case, one column per plane, reference and predicted contours on the image.

    Each plane is the one with the most voxels in which reference and prediction differ. The figure draws itself
    without a display and without pyplot, whose global state belongs to the caller.

    Args:
        cases: role ("worst" ...) to case, drawn from top to bottom.
        labels: name to the label values it consists of, without background; more than one value for a region.

    Raises:
        ValueError: no cases.
    """
    if not cases:
        raise ValueError("overlay_figure got no cases; expected at least one")
    colour = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(labels)}
    figure = Figure(figsize=(10.5, 3.3 * len(cases) + 0.8), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    # A part of its own per case, so that captions lie above their planes however flat these are.
    parts = figure.subfigures(len(cases), 1, squeeze=False)[:, 0]
    for part, (role, case) in zip(parts, cases.items(), strict=True):
        row = part.subplots(1, len(case.planes), squeeze=False)[0]
        box = crop(case)
        low, high = np.percentile(case.image[box], (1, 99.5))
        for axes, (plane, axis, upwards, left) in zip(row, case.planes, strict=True):
            _draw_plane(axes, case, box, axis, upwards, (low, high), labels, colour)
            axes.set_title(plane, fontsize=9)
            axes.text(0.02, 0.5, left, transform=axes.transAxes, color="white", fontsize=9, va="center")
        caption = f"{role}: {case.name}   Dice {case.dice:.3f}   HD95 {_millimetres(case.hd95_mm)}"
        part.suptitle(caption, x=0.01, ha="left", fontsize=10, fontweight="bold")
    handles = [Line2D([], [], color=colour[name], linewidth=5, label=name) for name in labels]
    handles += [
        Line2D([], [], color="0.75", linewidth=_REFERENCE_WIDTH, label="reference (band)"),
        Line2D([], [], color="0.2", linewidth=_PREDICTION_WIDTH, label="prediction (line)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=10)
    return figure


def _draw_plane(
    axes: Axes,
    case: OverlayCase,
    box: tuple[slice, ...],
    axis: int,
    upwards: bool,
    window: tuple[float, float],
    labels: Mapping[str, Sequence[int]],
    colour: Mapping[str, str],
) -> None:
    index = most_disagreement(case, axis)
    plane = tuple(index if a == axis else box[a] for a in range(3))
    height_mm, width_mm = (case.spacing_mm[a] for a in range(3) if a != axis)
    image = case.image[plane]
    rows, columns = image.shape
    # Pixel k spans [k - 1/2, k + 1/2] times the spacing, so contours through pixel centres fit on the image.
    extent = (-0.5 * width_mm, (columns - 0.5) * width_mm, -0.5 * height_mm, (rows - 0.5) * height_mm)
    axes.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, origin="lower")
    y = np.arange(-1, rows + 1) * height_mm
    x = np.arange(-1, columns + 1) * width_mm
    for volume, width, paleness in (
        (case.reference, _REFERENCE_WIDTH, 0.45),
        (case.prediction, _PREDICTION_WIDTH, 0.0),
    ):
        for name, values in labels.items():
            mask = np.isin(volume[plane], values)
            if mask.any():
                pale = tuple(paleness + (1 - paleness) * c for c in to_rgb(colour[name]))
                # A rim of zeros closes contours at the border of the crop.
                axes.contour(x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=[pale], linewidths=width)
    axes.set_xlim(extent[0], extent[1])
    axes.set_ylim(*((extent[2], extent[3]) if upwards else (extent[3], extent[2])))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"slice {index + 1} of {case.image.shape[axis]}", fontsize=8, color="0.35", labelpad=2)


def most_disagreement(case: OverlayCase, axis: int) -> int:
    """Index of the plane across `axis` with most voxels in error; with none, the one with most foreground."""
    others = tuple(a for a in range(3) if a != axis)
    errors = (case.reference != case.prediction).sum(axis=others)
    return int(np.argmax(errors if errors.any() else (case.reference > 0).sum(axis=others)))


def crop(case: OverlayCase) -> tuple[slice, ...]:
    """The box of all foreground in reference or prediction, with a margin; everything when there is none."""
    foreground = (case.reference > 0) | (case.prediction > 0)
    box = []
    for axis, (size, spacing) in enumerate(zip(foreground.shape, case.spacing_mm, strict=True)):
        used = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(_MARGIN_MM / spacing)
        box.append(slice(max(used[0] - margin, 0), min(used[-1] + margin + 1, size)) if len(used) else slice(0, size))
    return tuple(box)


def _millimetres(value: float) -> str:
    return f"{value:.1f} mm" if math.isfinite(value) else "infinite (a label missed or false)"


def _read_lps(path: str | os.PathLike[str]) -> sitk.Image:
    image = read_image(path)
    if image.GetDimension() == 2:
        return image
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} is no 2D image and no 3D volume with one channel; overlays are drawn of these only")
    return sitk.DICOMOrient(image, "LPS")
