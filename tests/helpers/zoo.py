"""A zoo of small raw data sets: one of each kind that nnU-Net takes, made by code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tifffile
from scipy.ndimage import gaussian_filter
from skimage.io import imsave

ORGANS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
TURNED = (0.8, -0.36, 0.48, 0.6, 0.48, -0.64, 0.0, 0.8, 0.6)


@dataclass(frozen=True)
class Member:
    """A data set of the zoo.

    Attributes:
        name: in words.
        folder: nnU-Net's name of it.
        labels, order: of dataset.json, the latter for regions.
        channels: of its images.
        cases: labelled ones; one more, labelled too, is for testing.
        shape: z, y, x of the images, about.
        spacing_mm: z, y, x.
        direction: of the images, row by row; None where the files have none.
        ending: of the files.
        case_name: what the cases are called, with a place for their number.
        configuration: what trainers of volumes are given; those of slices have 2d.
    """

    name: str
    folder: str
    labels: dict[str, Any] = field(default_factory=lambda: ORGANS)
    order: Sequence[int] | None = None
    channels: int = 1
    cases: int = 5
    shape: tuple[int, int, int] = (10, 22, 20)
    spacing_mm: tuple[float, float, float] = (2.0, 1.5, 1.5)
    direction: Sequence[float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    ending: str = ".nii.gz"
    case_name: str = "case_{}"
    configuration: str = "3d_fullres"

    @property
    def number(self) -> str:
        return self.folder[7:10]

    @property
    def flat(self) -> bool:
        return self.ending == ".png"


MEMBERS = (
    Member("one channel, labels", "Dataset901_Labels"),
    Member(
        "regions",
        "Dataset902_Regions",
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3},
        order=[1, 2, 3],
    ),
    Member("ignore label", "Dataset903_Ignore", labels={"background": 0, "liver": 1, "spleen": 2, "ignore": 3}),
    Member("cascade", "Dataset904_Cascade", cases=2, configuration="3d_cascade_fullres"),
    Member("RGB PNG", "Dataset905_Pictures", channels=3, shape=(1, 32, 28), ending=".png", configuration="2d"),
    Member("TIFF", "Dataset906_Tiff", spacing_mm=(0.5, 0.25, 0.25), ending=".tif"),
    Member("NRRD, two channels", "Dataset907_Nrrd", channels=2, ending=".nrrd"),
    Member("four channels", "Dataset908_Four", channels=4),
    Member("one case", "Dataset909_One", cases=1),
    Member("300 labels", "Dataset910_Many", labels={"background": 0, **{f"part {n}": n for n in range(1, 301)}}),
    Member("huge spacing", "Dataset911_Huge", spacing_mm=(4e3, 1e3, 1e3)),
    Member("tiny spacing", "Dataset912_Tiny", spacing_mm=(1e-3, 4e-4, 4e-4)),
    Member("oblique", "Dataset913_Oblique", direction=TURNED),
    Member("unicode and spaces", "Dataset914_Übung mit Leerzeichen", case_name="Fall Ä 1 {}"),
)


def make(member: Member, raw: Path) -> Path:
    """Write the data set below `raw`; `labelsTs` holds what is in the image for testing."""
    folder = raw / member.folder
    rng = np.random.default_rng(int(member.number))
    for number in range(member.cases + 1):
        split = "Tr" if number < member.cases else "Ts"
        name = member.case_name.format(number)
        # No two of one size.
        shape = tuple(n + int(rng.integers(-1, 2)) if n > 1 else n for n in member.shape)
        labels = _labels(member, shape, rng)
        images = np.stack([_image(labels, rng) for _ in range(member.channels)])
        channels = {f"{name}_0000": images} if member.flat else {f"{name}_{n:04d}": i for n, i in enumerate(images)}
        for sub, files in (("images", channels), ("labels", {name: labels})):
            (folder / f"{sub}{split}").mkdir(parents=True, exist_ok=True)
            for stem, array in files.items():
                _write(member, array, folder / f"{sub}{split}" / f"{stem}{member.ending}")
            if member.ending == ".tif":
                spacing = json.dumps({"spacing": member.spacing_mm})
                (folder / f"{sub}{split}" / f"{name}.json").write_text(spacing)
    description = {
        "channel_names": dict(enumerate("RGB" if member.flat else ["CT", "MR", "PET", "US"][: member.channels])),
        "labels": member.labels,
        "numTraining": member.cases,
        "file_ending": member.ending,
        **({"regions_class_order": member.order} if member.order else {}),
    }
    (folder / "dataset.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    return folder


def _labels(member: Member, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Balls in each other's way, one of each label; of 300 labels a handful."""
    names = {name: value for name, value in member.labels.items() if name != "ignore"}
    values = sorted({v for value in names.values() for v in (value if isinstance(value, list) else [value])} - {0})
    if len(values) > 10:
        values = sorted(rng.choice(values[:-1], 6, replace=False).tolist()) + values[-1:]
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    labels = np.zeros(shape, np.uint16 if max(values) > 255 else np.uint8)
    for value in values:
        middle = np.array([rng.uniform(0.3, 0.7) * n for n in shape]).reshape(3, 1, 1, 1)
        radius = np.array([max(n * rng.uniform(0.15, 0.25), 1) for n in shape]).reshape(3, 1, 1, 1)
        labels[(((at - middle) / radius) ** 2).sum(axis=0) < 1] = value
    if "ignore" in member.labels:
        labels[: shape[0] // 3] = member.labels["ignore"]  # slices that nobody has annotated
    return labels


def _image(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness follows the labels, with noise."""
    bright = labels.astype(float) / max(int(labels.max()), 1)
    return (60 + 120 * gaussian_filter(bright, 0.5) + rng.normal(0, 8, labels.shape)).clip(1, 250).astype(np.uint8)


def _write(member: Member, array: np.ndarray, path: Path) -> None:
    if member.flat:
        imsave(path, array[:, 0].transpose(1, 2, 0) if array.ndim == 4 else array[0], check_contrast=False)
    elif member.ending == ".tif":
        tifffile.imwrite(path, array)
    else:
        image = sitk.GetImageFromArray(array if "label" in path.parent.name else array.astype(np.int16))
        image.SetSpacing(member.spacing_mm[::-1])
        image.SetDirection(member.direction)
        image.SetOrigin((-30.0, 12.0, 100.0))
        sitk.WriteImage(image, str(path))
