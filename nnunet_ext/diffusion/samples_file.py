"""Samples of a prediction on disk, which `nnunet_ext uncertainty` reads and any viewer opens.

FOLDER/CASE/sample_00.nii.gz ...   one label map per sample, in the geometry of the image
FOLDER/CASE/probabilities.npz      optional: maps from the samples' probabilities, and the mean of these
FOLDER/CASE/samples.json           how the samples were drawn
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from torch import Tensor

from nnunet_ext import __version__
from nnunet_ext.diffusion.uncertainty import maps_of_probabilities
from nnunet_ext.errors import UserError
from nnunet_ext.files import atomic_folder, write_json
from nnunet_ext.image_files import read_image, write_image

PROBABILITIES = "probabilities.npz"
SETTINGS = "samples.json"


def write_samples(
    folder: str | os.PathLike[str],
    case: str,
    samples: np.ndarray,
    like: sitk.Image | str | os.PathLike[str],
    *,
    probabilities: Tensor | None = None,
    regions: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write the samples of one case, in place of those that may be there.

    Args:
        folder: for all cases.
        case: its name, as that of its prediction without ending.
        samples: (R, z, y, x) or (R, y, x) label maps, whole numbers from 0; nnU-Net's leading axis of length 1 of
            two-dimensional images may stay.
        like: an image or its file, for the geometry: one of the channels, or the prediction.
        probabilities: (R, K, *grid) of the samples, when maps should show more than votes.
        regions: the K channels are nnU-Net's regions, not its labels.
        settings: how the samples were drawn, e.g. sampler, steps and seed.

    Returns:
        The case's folder.

    Raises:
        UserError: `like` cannot be read, has another grid, or the folder cannot be written.
    """
    geometry = like if isinstance(like, sitk.Image) else read_image(like)
    grid = geometry.GetSize()[::-1]
    if samples.ndim == len(grid) + 2 and samples.shape[1] == 1:
        samples = samples[:, 0]
        probabilities = None if probabilities is None else probabilities[:, :, 0]
    if samples.shape[1:] != grid:
        raise UserError(f"samples of {case} have the grid {samples.shape[1:]}, their image has {grid}")
    labels: np.ndarray = samples.astype(np.uint8 if int(samples.max()) < 256 else np.uint16)
    target = Path(folder) / case
    with atomic_folder(target, replace=True) as writing:
        digits = max(2, len(str(len(labels) - 1)))
        for number, sample in enumerate(labels):
            image = sitk.GetImageFromArray(sample)
            image.SetSpacing(geometry.GetSpacing())
            image.SetOrigin(geometry.GetOrigin())
            image.SetDirection(geometry.GetDirection())
            write_image(image, writing / f"sample_{number:0{digits}d}.nii.gz")
        if probabilities is not None:
            _write_probabilities(writing / PROBABILITIES, probabilities, regions)
        facts = {"samples": len(labels), "written_by": f"nnunet_ext {__version__}"}
        write_json(writing / SETTINGS, facts | dict(settings or {}))
    return target


def _write_probabilities(path: Path, probabilities: Tensor, regions: bool) -> None:
    maps = maps_of_probabilities(probabilities, regions=regions)
    arrays = {"entropy": maps.entropy, "variance": maps.variance, "mutual_information": maps.mutual_information}
    if not regions:
        # Channels of regions overlap; which label they make is nnU-Net's to say.
        arrays["mean"] = probabilities.float().mean(0).cpu().numpy()
    # Half precision keeps three digits, which is more than the samples' own spread.
    np.savez_compressed(path, **{name: np.asarray(array, dtype=np.float16) for name, array in arrays.items()})
