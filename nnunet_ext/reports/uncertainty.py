"""Uncertainty to look at: maps in the geometry of their image, and a picture of one case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nnunet_ext.diffusion.uncertainty import UncertaintyMaps
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.samples import Uncertainty
from nnunet_ext.files import atomic_path
from nnunet_ext.image_files import copy_geometry, read_image, write_image

# Of the contours, told apart by people with any kind of colour vision.
_SAMPLES, _REFERENCE = "#56B4E9", "#E69F00"


def write_maps(maps: UncertaintyMaps, like: Path, folder: Path, case: str) -> list[Path]:
    """Write CASE_entropy.nii.gz and its siblings with the geometry of the file `like`; return them.

    Raises:
        UserError: a file cannot be written.
    """
    geometry = read_image(like)
    written = []
    for name in ("entropy", "variance", "mutual_information"):
        values = getattr(maps, name)
        if values is None:
            continue
        image = sitk.GetImageFromArray(values.astype(np.float32))
        copy_geometry(image, geometry)
        written.append(folder / f"{case}_{name}.nii.gz")
        write_image(image, written[-1])
    return written


def write_picture(
    result: Uncertainty,
    case: str,
    like: Path,
    path: Path,
    *,
    image: Path | None = None,
    references: Sequence[Path] = (),
    ignore: int | None = None,
) -> None:
    """A PNG of the axial slice with most entropy: the image with contours, and entropy and variance on it.

    Args:
        result: of the case.
        case: its name.
        like: a file with its geometry.
        path: to write.
        image: what was segmented; without it the first panel is the share of the samples with foreground.
        references: label maps of the case, drawn as contours.
        ignore: label of the references that is no foreground.

    Raises:
        UserError: a file cannot be read or written, or has another grid.
    """
    geometry = read_image(like)
    volumes = [result.vote_share, result.maps.entropy, result.maps.variance]
    scan = None if image is None else _on_grid(image, geometry)
    truths = [_on_grid(file, geometry) for file in references]
    truths = [((truth > 0) & (truth != ignore)).astype(np.float32) for truth in truths]
    volumes += truths + ([scan] if scan is not None else [])
    seen = [_as_seen(values, geometry) for values in volumes]
    place = ""
    if seen[1].ndim == 3:
        index = int(seen[1].sum(axis=(1, 2)).argmax())
        place = f", slice {index + 1} of {len(seen[1])}"
        seen = [values[index] for values in seen]
    shown = _around(np.any([seen[0], *seen[3 : 3 + len(truths)]], axis=0))
    seen = [values[shown] for values in seen]
    share, entropy, variance = seen[:3]
    truth_slices = seen[3 : 3 + len(truths)]
    under = seen[-1] if scan is not None else None
    spacing = geometry.GetSpacing()
    figure = Figure(figsize=(11, 4.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("entropy (nats)", entropy), ("variance", variance))
    for axes, (title, values) in zip(figure.subplots(1, 3), ((None, share), *panels), strict=True):
        _draw_map(figure, axes, title, values, under, spacing[1] / spacing[0])
        # Broad under thin, so that both are seen where they agree; the maps themselves are not hidden.
        contours = [(truth, _REFERENCE, 0.9 if title else 2.6) for truth in truth_slices]
        for mask, colour, width in [*contours, *([] if title else [(share, _SAMPLES, 1.1)])]:
            if mask.min() < 0.5 < mask.max():
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=width)
        axes.set_xticks([])
        axes.set_yticks([])
    lines = [Line2D([], [], color=_SAMPLES, label=f"foreground in at least half of {result.samples} samples")]
    lines += [Line2D([], [], color=_REFERENCE, label="reference")] if truths else []
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(f"{case}{place}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _draw_map(
    figure: Figure, axes: Axes, title: str | None, values: np.ndarray, under: np.ndarray | None, aspect: float
) -> None:
    """One panel: the image, a map over it in colours that fade to nothing at 0; `title` None is the image alone."""
    if under is not None:
        low, high = np.percentile(under, (1, 99.5))
        axes.imshow(under, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
    if title is None:
        axes.set_title("image" if under is not None else "share of the samples with foreground", fontsize=11)
        if under is None:
            figure.colorbar(axes.imshow(values, cmap="gray", vmin=0, vmax=1, aspect=aspect), ax=axes, shrink=0.8)
        return
    # A map of zeros stays empty instead of being scaled up.
    top = max(float(values.max()), 1e-6)
    alpha = None if under is None else np.clip(2 * values / top, 0, 0.85)
    shown = axes.imshow(values, cmap="magma", vmin=0, vmax=top, aspect=aspect, alpha=alpha)
    figure.colorbar(ScalarMappable(shown.norm, shown.cmap), ax=axes, shrink=0.8)
    axes.set_title(title, fontsize=11)


def _around(foreground: np.ndarray) -> tuple[slice, ...]:
    """The part of a slice with foreground in any map, and half as much again on each side; all of it without."""
    box = []
    for axis, size in enumerate(foreground.shape):
        used = np.flatnonzero(foreground.any(axis=1 - axis)).tolist() or [0, size - 1]
        margin = max((used[-1] - used[0] + 1) // 2, 8)
        box.append(slice(max(used[0] - margin, 0), used[-1] + margin + 1))
    return tuple(box)


def check_same_size(image: Path, sample: Path) -> None:
    """Refuse an image that no picture of the samples can be drawn on.

    Raises:
        UserError: it cannot be read, has another grid, or several channels.
    """
    _on_grid(image, read_image(sample))


def _on_grid(path: Path, geometry: sitk.Image) -> np.ndarray:
    """Values of a file that has the grid of the samples.

    Raises:
        UserError: it has another, or several channels.
    """
    found = read_image(path)
    size = found.GetSize()
    if size != geometry.GetSize() or found.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} has {size} voxels, the samples have {geometry.GetSize()}; give the same grid")
    return sitk.GetArrayFromImage(found).astype(np.float32)


def _as_seen(values: np.ndarray, geometry: sitk.Image) -> np.ndarray:
    """Rows from front to back, columns from the patient's right to left; two-dimensional images as they are."""
    if values.ndim == 2:
        return values
    image = sitk.GetImageFromArray(values.astype(np.float32))
    copy_geometry(image, geometry)
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
