"""Uncertainty to look at: maps in the geometry of their image, and a picture of one case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.diffusion.uncertainty import UncertaintyMaps
from nnunet_ext.evaluation.samples import Uncertainty
from nnunet_ext.files import atomic_path
from nnunet_ext.image_files import read_image, write_image


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
        image.CopyInformation(geometry)
        written.append(folder / f"{case}_{name}.nii.gz")
        write_image(image, written[-1])
    return written


def write_picture(result: Uncertainty, case: str, like: Path, path: Path) -> None:
    """A PNG of the axial slice with most entropy: share of the samples with foreground, entropy, variance.

    Args:
        result: of the case.
        case: its name.
        like: a file with its geometry.
        path: to write.

    Raises:
        UserError: the file cannot be written.
    """
    geometry = read_image(like)
    share, entropy, variance = (
        _as_seen(values, geometry) for values in (result.vote_share, result.maps.entropy, result.maps.variance)
    )
    place = ""
    if entropy.ndim == 3:
        index = int(entropy.sum(axis=(1, 2)).argmax())
        place = f", slice {index + 1} of {len(entropy)}"
        share, entropy, variance = share[index], entropy[index], variance[index]
    panels = (
        ("samples with foreground (share)", share, "gray", 1.0),
        # A map of zeros stays dark instead of being scaled up.
        ("entropy (nats)", entropy, "magma", max(float(entropy.max()), 1e-6)),
        ("variance", variance, "magma", max(float(variance.max()), 1e-6)),
    )
    spacing = geometry.GetSpacing()
    figure = Figure(figsize=(11, 4.2), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, values, colours, top) in zip(figure.subplots(1, 3), panels, strict=True):
        shown = axes.imshow(values, cmap=colours, vmin=0, vmax=top, aspect=spacing[1] / spacing[0])
        if share.min() < 0.5 < share.max():
            axes.contour(share, levels=[0.5], colors=["#56B4E9"], linewidths=0.9)
        axes.set_title(title, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.suptitle(f"{case}{place}: {result.samples} samples; within the blue line at least half have foreground")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _as_seen(values: np.ndarray, geometry: sitk.Image) -> np.ndarray:
    """Rows from front to back, columns from the patient's right to left; two-dimensional images as they are."""
    if values.ndim == 2:
        return values
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.CopyInformation(geometry)
    return sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))
