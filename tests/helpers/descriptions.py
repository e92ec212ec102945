"""Random data sets in one line each: what nnU-Net's code branches on, drawn from a seed, with tiny images to match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from scipy.ndimage import gaussian_filter
from skimage.io import imsave

from helpers import model_folders

LABELS: dict[str, dict[str, Any]] = {
    "one": {"background": 0, "a": 1},
    "four": {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4},
    "ignore": {"background": 0, "a": 1, "b": 2, "ignore": 3},
    "regions": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3},
    "regions and ignore": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
    "300": {"background": 0, **{f"label {n}": n for n in range(1, 301)}},
}
READERS = {
    ("SimpleITKIO", ".nii.gz"): 0.45,
    ("SimpleITKIO", ".nrrd"): 0.1,
    ("NibabelIO", ".nii.gz"): 0.1,
    ("NibabelIOWithReorient", ".nii.gz"): 0.15,
    ("Tiff3DIO", ".tif"): 0.1,
    ("NaturalImage2DIO", ".png"): 0.1,
}
NORMALISATIONS = {
    "ZScoreNormalization": 0.5,
    "CTNormalization": 0.25,
    "RescaleTo01Normalization": 0.1,
    "NoNormalization": 0.15,
}


@dataclass(frozen=True)
class Description:
    """One data set, and the image of it that is looked at.

    Attributes:
        seed: of the voxels.
        content: "organs", in a border of zeros; "noise", without; "constant"; "empty", nothing but zeros.
        dtype: of the files.
        shape: z, y, x of the image as nnU-Net's reader gives it.
        spacing_mm: of its axes.
        planned_mm: spacing the plans ask for, after the transpose; two numbers for a 2d configuration.
        transpose: the plans' `transpose_forward`.
        patch: of the network.
        normalisation: of each channel.
        in_mask: of each channel, whether it is normalised within the nonzero region.
        labels: key of `LABELS`.
        reader, ending: nnU-Net's class, and that of the files.
        turned: whether the image lies obliquely in space.
        cascade: whether the configuration continues a previous stage.
        mirroring: axes of test-time augmentation.
        folds: networks that are averaged.
    """

    seed: int
    content: str
    dtype: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    planned_mm: tuple[float, ...]
    transpose: tuple[int, int, int]
    patch: tuple[int, ...]
    normalisation: tuple[str, ...]
    in_mask: tuple[bool, ...]
    labels: str
    reader: str
    ending: str
    turned: bool
    cascade: bool
    mirroring: tuple[int, ...]
    folds: int

    @property
    def channels(self) -> int:
        return len(self.normalisation)

    @property
    def dataset_json(self) -> dict[str, Any]:
        labels = LABELS[self.labels]
        order = {"regions": [1, 2, 3], "regions and ignore": [1, 2]}.get(self.labels)
        return {
            "channel_names": {str(n): "CT" if "CT" in name else "MR" for n, name in enumerate(self.normalisation)},
            "labels": labels,
            **({"regions_class_order": order} if order else {}),
            "numTraining": 1,
            "file_ending": self.ending,
        }


def describe(seed: int) -> Description:
    """The description that belongs to a seed."""
    rng = np.random.default_rng(seed)

    def one_of(choices: Mapping[Any, float]) -> Any:
        return list(choices)[rng.choice(len(choices), p=np.array(list(choices.values())) / sum(choices.values()))]

    reader, ending = one_of(READERS)
    pictures = reader == "NaturalImage2DIO"
    flat = pictures or bool(rng.random() < 0.2)
    shape = tuple(int(n) for n in np.where(rng.random(3) < 0.15, rng.integers(1, 4, 3), rng.integers(4, 25, 3)))
    spacing = rng.uniform(0.4, 2, 3)
    if rng.random() < 0.3:
        spacing[rng.integers(3)] *= rng.uniform(3, 8)  # slices thick enough to be resampled for themselves
    if rng.random() < 0.1:
        spacing *= one_of({1e-3: 1, 1e3: 1})
    transpose = tuple(int(n) for n in rng.permutation(3)) if rng.random() < 0.4 and not pictures else (0, 1, 2)
    if pictures:
        shape, spacing = (1, *shape[1:]), np.array([999.0, 1.0, 1.0])
    # Near ratios of small numbers equal weights are frequent, and with a ratio of 1 nothing is resampled.
    ratio = np.where(rng.random(3) < 0.3, rng.choice([0.5, 1, 1.5, 2], 3), rng.uniform(0.5, 1.8, 3))
    planned = (spacing[list(transpose)] * ratio).round(6)[1 if flat else 0 :]
    channels = int(rng.choice([1, 3] if pictures else [1, 2, 3, 4]))
    kinds = [one_of(NORMALISATIONS) for _ in range(channels)]
    patch = (8, 16) if rng.random() < 0.5 else (12, 12)
    labels = one_of({"four": 3, "regions": 2, "ignore": 1.5, "one": 1, "regions and ignore": 1.5, "300": 0.7})
    return Description(
        seed=seed,
        content=one_of({"organs": 7, "noise": 2, "constant": 0.5, "empty": 0.5}),
        dtype="uint8" if pictures else one_of({"int16": 1, "float32": 1}),
        shape=shape,
        spacing_mm=tuple(spacing.round(6).tolist()),
        planned_mm=tuple(planned.tolist()),
        transpose=transpose,
        patch=patch if flat else (int(rng.choice([4, 8])), *patch),
        normalisation=tuple(kinds),
        in_mask=tuple(bool(rng.random() < 0.5) and kind == "ZScoreNormalization" for kind in kinds),
        labels=labels,
        reader=reader,
        ending=ending,
        turned=bool(rng.random() < 0.5),
        cascade=labels != "300" and bool(rng.random() < 0.15),
        mirroring=tuple(axis for axis in range(2 if flat else 3) if rng.random() < 0.3),
        folds=2 if rng.random() < 0.15 else 1,
    )


def image_of(d: Description) -> np.ndarray:
    """(channels, z, y, x) of `d.dtype`, as the reader gives it."""
    rng = np.random.default_rng(d.seed)
    image = gaussian_filter(rng.standard_normal((d.channels, *d.shape)), (0, 1, 1, 1)) * rng.uniform(50, 500)
    if d.content == "organs":
        inside = np.zeros(d.shape, bool)
        inside[tuple(slice(n // 5, n - n // 6) for n in d.shape)] = True
        image = np.where(inside, image + 200, 0)
    elif d.content in ("constant", "empty"):
        image[:] = 7 if d.content == "constant" else 0
    limits = (0, 255) if d.dtype == "uint8" else (-1024, 3071)
    return np.clip(image, *limits).astype(d.dtype)


def labels_of(d: Description) -> np.ndarray:
    """(1, z, y, x) float32, as nnU-Net's readers give label maps: smooth borders, and not every label."""
    rng = np.random.default_rng((d.seed, 1))
    values = {0}
    for value in LABELS[d.labels].values():
        values |= set(value) if isinstance(value, list) else {value}
    chosen = np.array(sorted(values)) if len(values) < 10 else np.array([0, 1, 127, 128, 255, 256, 299, 300])
    chosen = chosen[rng.random(len(chosen)) < 0.9] if rng.random() < 0.3 else chosen
    if d.content == "empty" or not len(chosen):
        return np.zeros((1, *d.shape), np.float32)
    fields = gaussian_filter(rng.standard_normal((len(chosen), *d.shape)), (0, *rng.uniform(0.3, 2, 3)))
    return chosen[fields.argmax(axis=0)][None].astype(np.float32)


def properties_of(d: Description) -> dict[str, Any]:
    """What nnU-Net's reader notes about the image, as far as preprocessing looks at it."""
    return {"spacing": list(d.spacing_mm)}


def plans_of(d: Description, preprocessor: str = "DefaultPreprocessor") -> dict[str, Any]:
    """Plans with a small U-Net of random weights."""
    plans = model_folders.plans()
    (own,) = plans["configurations"].values()
    own |= {
        "preprocessor_name": preprocessor,
        "patch_size": list(d.patch),
        "spacing": list(d.planned_mm),
        "normalization_schemes": list(d.normalisation),
        "use_mask_for_norm": list(d.in_mask),
        "architecture": model_folders.unet(axes=len(d.patch)),
    }
    if d.cascade:
        own["previous_stage"] = "before"
        plans["configurations"]["before"] = {**own, "previous_stage": None}
    intensities = {"mean": 60.0, "std": 150.0, "percentile_00_5": -300.0, "percentile_99_5": 400.0}
    return plans | {
        "image_reader_writer": d.reader,
        "transpose_forward": list(d.transpose),
        "transpose_backward": np.argsort(d.transpose).tolist(),
        "foreground_intensity_properties_per_channel": {str(n): intensities for n in range(d.channels)},
    }


def write_case(d: Description, folder: Path, name: str) -> list[Path]:
    """Write the image and, in `folder`/previous, the label map of the stage before, if any; the image's files."""
    folder.mkdir(parents=True, exist_ok=True)
    image = image_of(d)
    if d.reader == "NaturalImage2DIO" and d.channels == 3 and d.turned:
        # All channels in one file.
        imsave(folder / f"{name}_0000.png", image[:, 0].transpose(1, 2, 0), check_contrast=False)
    else:
        for number, channel in enumerate(image):
            _write(d, channel, folder / f"{name}_{number:04d}{d.ending}")
    if d.reader == "Tiff3DIO":
        (folder / f"{name}.json").write_text(f'{{"spacing": {list(d.spacing_mm)}}}')
    if d.cascade:
        (folder / "previous").mkdir(exist_ok=True)
        _write(d, labels_of(d)[0].astype(np.uint8), folder / "previous" / f"{name}{d.ending}")
    return sorted(folder.glob(f"{name}_*{d.ending}"))


def _write(d: Description, volume: np.ndarray, path: Path) -> None:
    """(z, y, x)."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    direction = (turn[[1, 2, 0]] * [[1], [-1], [1]]) if d.turned else np.eye(3)
    if d.reader == "NaturalImage2DIO":
        imsave(path, volume[0], check_contrast=False)
    elif d.reader == "Tiff3DIO":
        tifffile.imwrite(path, volume)
    elif d.reader == "SimpleITKIO":
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing(d.spacing_mm[::-1])
        image.SetDirection(direction.ravel())
        image.SetOrigin((3.0, -20.0, 11.0))
        sitk.WriteImage(image, str(path))
    else:
        affine = np.eye(4)
        affine[:3, :3] = direction @ np.diag(d.spacing_mm[::-1])
        affine[:3, 3] = 3, -20, 11
        nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), affine), path)
