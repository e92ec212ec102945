"""A part of somebody's nnU-Net raw data set as a new one with held-out test cases; the original is only read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_ext.cases import channel_files
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.images import read_label_map
from nnunet_ext.evaluation.labels import Labels, labels_from_dataset_json
from nnunet_ext.files import atomic_folder, link_or_copy, read_json, write_json
from nnunet_ext.image_files import read_image

# nnU-Net makes five folds.
FEWEST_TRAINING_CASES = 5

# Formats that are one file each and carry their spacing: what a link to the file is enough for.
FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True)
class RawDataset:
    """What an nnU-Net raw data set consists of."""

    folder: Path
    description: dict[str, Any]
    """dataset.json as it is."""
    labels: Labels
    file_ending: str
    cases: dict[str, tuple[list[Path], Path]]
    """Case name to its image files, one per channel, and its label file."""


def read_raw_dataset(folder: str | os.PathLike[str]) -> RawDataset:
    """Find the training cases of an nnU-Net raw data set, either form of dataset.json.

    Raises:
        UserError: this is no data set, or a case lacks a channel or its label file; the message names it.
    """
    folder = Path(os.path.abspath(folder))
    if not (folder / "dataset.json").is_file():
        raise UserError(
            f"{folder} has no dataset.json; expected an nnU-Net raw data set such as Dataset004_Hippocampus, "
            "with dataset.json, imagesTr and labelsTr"
        )
    if not re.fullmatch(r"Dataset\d{3}_.+", folder.name):
        raise UserError(f"{folder} is not named as nnU-Net wants it; expected a folder such as Dataset004_Hippocampus")
    description = read_json(folder / "dataset.json")
    labels = labels_from_dataset_json(folder / "dataset.json")
    channels, file_ending = description.get("channel_names"), description.get("file_ending")
    if not isinstance(channels, dict) or not channels or not isinstance(file_ending, str):
        raise UserError(f"{folder / 'dataset.json'} lacks channel_names or file_ending; nnU-Net needs both")
    if file_ending not in FILE_ENDINGS:
        raise UserError(f"{folder} has {file_ending} files; expected 3D volumes in one of {', '.join(FILE_ENDINGS)}")
    listed = description.get("dataset")
    if listed is not None:
        cases = {
            name: ([folder / os.path.expandvars(i) for i in c["images"]], folder / os.path.expandvars(c["label"]))
            for name, c in listed.items()
        }
    else:
        place = folder / "imagesTr"
        names = channel_files(place, (file_ending,)).cases if place.is_dir() else ()
        cases = {
            name: (
                [folder / "imagesTr" / f"{name}_{channel:04d}{file_ending}" for channel in range(len(channels))],
                folder / "labelsTr" / f"{name}{file_ending}",
            )
            for name in names
        }
    if not cases:
        raise UserError(f"{folder / 'imagesTr'} has no file named CASE_0000{file_ending}; a data set needs images")
    for name, (images, label) in cases.items():
        for path in [*images, label]:
            if not path.is_file():
                kind = "label file" if path == label else f"channel (dataset.json names {len(channels)})"
                raise UserError(f"{path} is missing; case {name} needs this {kind}")
        if len(images) != len(channels):
            raise UserError(f"case {name} of {folder} has {len(images)} channels; dataset.json names {len(channels)}")
    return RawDataset(folder, description, labels, file_ending, cases)


def hold_out(
    source: RawDataset,
    folder: str | os.PathLike[str],
    num_training: int,
    num_test: int,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write a data set of links to randomly chosen cases of `source`, some of them held out, and return its folder.

    `imagesTr` and `labelsTr` link to the training cases, `imagesTs` and `labelsTs` to the held-out ones; where links
    cannot be made (Windows, without the right to) they are copies. Chosen files are read once, so that a damaged one
    is named now and not by nnU-Net's workers later. The folder appears only when it is complete.

    Args:
        source: the data set, from `read_raw_dataset`.
        folder: what to create, with the same name as the source.
        num_training: training cases wanted; fewer when the source has fewer.
        num_test: held-out cases wanted; fewer when that leaves fewer than five for training.
        seed: decides which cases.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: too few cases, a damaged file, a 2D image, image and labels of different size, a label value that
            dataset.json does not know, or `folder` cannot be written.
    """
    folder = Path(folder)
    if len(source.cases) < FEWEST_TRAINING_CASES + 1:
        raise UserError(
            f"{source.folder} has {len(source.cases)} cases; expected at least {FEWEST_TRAINING_CASES} for nnU-Net's "
            "five folds and one to hold out"
        )
    num_test = max(1, min(num_test, len(source.cases) - FEWEST_TRAINING_CASES))
    num_training = min(num_training, len(source.cases) - num_test)
    chosen = np.random.default_rng(seed).permutation(sorted(source.cases))[: num_training + num_test].tolist()
    for name in tqdm(chosen, desc="read", unit="case", delay=2, disable=not progress):
        _check(source, name)
    with atomic_folder(folder) as unfinished:
        for split in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (unfinished / split).mkdir()
        for position, name in enumerate(chosen):
            split = "Ts" if position < num_test else "Tr"
            images, label = source.cases[name]
            for channel, image in enumerate(images):
                link_or_copy(image, unfinished / f"images{split}" / f"{name}_{channel:04d}{source.file_ending}")
            link_or_copy(label, unfinished / f"labels{split}" / f"{name}{source.file_ending}")
        description = {key: value for key, value in source.description.items() if key != "dataset"}
        write_json(unfinished / "dataset.json", {**description, "numTraining": num_training})
    return folder


def _check(source: RawDataset, name: str) -> None:
    images, label = source.cases[name]
    mask = read_label_map(label)
    unknown = sorted(set(np.unique(mask.array).tolist()) - set(source.labels.values))
    if unknown:
        raise UserError(f"{label} holds the value {unknown[0]}; dataset.json knows {list(source.labels.values)}")
    for path in images:
        shape = _read_shape(path)
        if len(shape) != 3 or min(shape) < 2:
            raise UserError(f"{path} has shape {shape}; the demo trains 3d_fullres and needs 3D volumes")
        if shape != mask.array.shape:
            raise UserError(f"{label} has shape {mask.array.shape}, but its image {path} has {shape} (z, y, x)")


def _read_shape(path: Path) -> tuple[int, ...]:
    """Shape (z, y, x) of an image that can be read to its end."""
    return tuple(read_image(path).GetSize()[::-1])
