"""A picture of a case as bodies in space: the surfaces of the reference and of the prediction beside each other."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from nnunet_ext.files import atomic_path
from nnunet_ext.reports.figures import COLOURS, OverlayCase, crop

# Voxels along the longest axis of what is drawn; more triangles only take time.
_MOST_VOXELS = 96
# From the front, a little from above and from the patient's left.
_ELEVATION, _AZIMUTH = 18, -60
_GLASS = 0.3
_LIGHT = np.array([0.35, -0.75, 0.55]) / np.linalg.norm([0.35, -0.75, 0.55])


def surfaces_figure(case: OverlayCase, labels: Mapping[str, Sequence[int]]) -> Figure:
    """Reference left, prediction right, seen from the same place, in true proportions.

    Args:
        case: (z, y, x) arrays in LPS order.
        labels: name to the label values it consists of, without background.
    """
    figure = Figure(figsize=(9, 4.9), facecolor="white")
    FigureCanvasAgg(figure)
    box = crop(case)
    for place, (title, volume) in enumerate((("reference", case.reference), ("prediction", case.prediction)), start=1):
        axes = figure.add_subplot(1, 2, place, projection="3d", computed_zorder=False)
        extent = [n * mm for n, mm in zip(volume[box].shape, case.spacing_mm, strict=True)]
        masks = {number: np.isin(volume[box], values) for number, values in enumerate(labels.values())}
        # The largest body is as glass, first, so that what lies in it is seen.
        order = sorted(masks, key=lambda number: -int(masks[number].sum()))
        for number in order:
            surface = body(masks[number], case.spacing_mm)
            if surface is None:
                continue
            corners, triangles = surface
            colour = np.array(to_rgb(COLOURS[number % len(COLOURS)]))
            # x to the left, y to the back (drawn away from the viewer), z up.
            points = corners[:, ::-1][triangles]
            opacity = _GLASS if number == order[0] and len(order) > 1 else 1.0
            colours = np.column_stack((shaded(points, colour), np.full(len(points), opacity)))
            axes.add_collection3d(Poly3DCollection(points, facecolors=colours, edgecolors="none"))
        for set_limits, length in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), extent[::-1], strict=True):
            set_limits(0, length)
        axes.set_box_aspect(extent[::-1], zoom=1.35)
        axes.view_init(_ELEVATION, _AZIMUTH)
        axes.set_axis_off()
        axes.set_title(title, fontsize=11)
    figure.suptitle(f"{case.name}   Dice {case.dice:.3f}", fontsize=11, fontweight="bold")
    handles = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=6, label=n) for k, n in enumerate(labels)]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 8), frameon=False, fontsize=10)
    figure.subplots_adjust(left=0, right=1, bottom=0.06, top=0.92, wspace=0)
    return figure


def body(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
    """The surface of a mask (z, y, x): corners in mm (n, 3) and triangles of three of them (m, 3); None for nothing."""
    step = math.ceil(max(mask.shape) / _MOST_VOXELS)
    coarse = np.pad(mask[::step, ::step, ::step], 2).astype(np.float32)
    # Rounds the stairs of voxels, about as much on every axis.
    smooth = gaussian_filter(coarse, [0.8 * min(spacing_mm) / mm for mm in spacing_mm])
    if smooth.max() <= 0.5:
        smooth = coarse  # too small to be smoothed
    if not smooth.any():
        return None
    corners, triangles, _, _ = marching_cubes(smooth, 0.5, spacing=[mm * step for mm in spacing_mm])
    return corners - 2 * step * np.array(spacing_mm), triangles


def shaded(points: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The colour (m, 3) of every triangle (m, 3 corners, xyz) under a light from the front, above."""
    normals = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    brightness = 0.45 + 0.55 * np.abs(normals @ _LIGHT)
    return np.clip(brightness[:, None] * colour, 0, 1)


def write_surfaces(case: OverlayCase, labels: Mapping[str, Sequence[int]], path: str | os.PathLike[str]) -> None:
    """Write `surfaces_figure(case, labels)` as a PNG, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    figure = surfaces_figure(case, labels)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
