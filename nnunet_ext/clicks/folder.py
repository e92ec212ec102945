"""A folder of images and a folder of prompt files to label maps."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.cases import channel_files
from nnunet_ext.clicks.model import PromptModel
from nnunet_ext.clicks.viewer_session import SessionModel
from nnunet_ext.environment import decimal
from nnunet_ext.errors import UserError
from nnunet_ext.images import Image, read_image, read_mask
from nnunet_ext.prompts.files import find_prompts, read_prompts
from nnunet_ext.prompts.locate import LocatedObject, locate
from nnunet_ext.prompts.raster import draw_ball


@dataclass(frozen=True)
class PromptedCase:
    """One case with everything checked: its image files, its prompts' file, and a previous label map or None."""

    case: str
    images: tuple[Path, ...]
    prompts: Path
    previous: Path | None


def pair_with_prompts(
    images: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    channels: int,
    ending: str,
    previous: str | os.PathLike[str] | None = None,
) -> tuple[list[PromptedCase], list[str]]:
    """Pair images with prompt files.

    Images are named as nnU-Net names them, `<case>_0000<ending>`; where there is one channel, `<case><ending>` will do.
    A prompt file that is named after the first channel, as viewers name it, belongs to the case.

    Args:
        images, prompts: folders.
        channels: image files per case.
        ending: of image files.
        previous: folder of label maps `<case><ending>` to continue from.

    Returns:
        The cases with prompts, and the names of images without.

    Raises:
        UserError: prompts without an image, two prompt files of a case, a missing channel or previous label map.
    """
    folder = Path(images)
    found = channel_files(folder, (ending,))
    whole = {path.name.removesuffix(ending): path for path in found.others if path.name.endswith(ending)}
    named = _by_case(find_prompts(prompts), {*found.cases, *whole})
    cases, used = [], set()
    for case, file in named.items():
        files = found.cases.get(case, {})
        if channels == 1 and 0 not in files and case in whole:
            chosen: tuple[Path, ...] = (whole[case],)
            used.add(case)
        else:
            missing = [number for number in range(channels) if number not in files]
            if missing:
                lacking = folder / f"{case}_{missing[0]:04d}{ending}"
                raise UserError(f"{file} has no image {lacking}; expected {case}_0000{ending} and so on")
            chosen = tuple(files[number] for number in range(channels))
        before = None if previous is None else Path(previous) / f"{case}{ending}"
        if before is not None and not before.is_file():
            raise UserError(f"{before} does not exist; every case needs a label map to continue from")
        cases.append(PromptedCase(case, chosen, file, before))
    alone = [name for name in found.cases if name not in named]
    return cases, sorted([*alone, *(name for name in whole if name not in used)])


def _by_case(files: Mapping[str, Path], cases: Collection[str]) -> dict[str, Path]:
    """Case -> prompt file, where `files` may bear the name of the case's first channel."""
    named: dict[str, Path] = {}
    for name, file in files.items():
        stem = name.removesuffix("_0000")
        case = stem if name not in cases and stem in cases else name
        if case in named:
            raise UserError(f"{named[case]} and {file} are both prompts of {case}; keep one")
        named[case] = file
    return named


def segment_case(
    model: PromptModel | SessionModel, case: PromptedCase, labels: Mapping[str, int] | None, space: str | None
) -> tuple[np.ndarray, Image]:
    """The label map of a case, (z, y, x) uint8 or uint16, and its image.

    Where objects overlap, the one with the largest logit has the voxel. Labels of the previous label map that no
    object of the prompts has are kept.

    Raises:
        UserError: an image, mask or prompt is not as it should be.
    """
    image = read_image(case.images)
    objects = located(case, image, labels, space)
    previous = None if case.previous is None else read_mask(case.previous, image)
    prepared = model.prepare(image)
    best: np.ndarray = np.zeros(image.shape, dtype=np.float32)
    result: np.ndarray = np.zeros(image.shape, dtype=np.uint16)
    if previous is not None:
        result[...] = np.where(np.isin(previous, [thing.label for thing in objects]), 0, previous)
    for thing in objects:
        logits = _segment(model, prepared, thing, image, previous)
        larger = logits > best
        best[larger], result[larger] = logits[larger], thing.label
    return result if result.max() > 255 else result.astype(np.uint8), image


def located(
    case: PromptedCase, image: Image, labels: Mapping[str, int] | None, space: str | None
) -> tuple[LocatedObject, ...]:
    """The prompts of a case in voxels of its image.

    Raises:
        UserError: see `nnunet_ext.prompts.locate.locate`.
    """
    return locate(read_prompts(case.prompts, space), image.affine, image.shape, image.name, labels)


def draw_case(case: PromptedCase, labels: Mapping[str, int] | None, space: str | None, radius_mm: float) -> tuple:
    """The positive clicks of a case as balls, and its masks, in a label map for `-prev_stage_predictions`.

    Returns:
        The label map (z, y, x) uint8, its image, and the number of negative clicks, which it cannot hold.
    """
    image = read_image(case.images[:1])
    drawn: np.ndarray = np.zeros(image.shape, dtype=np.uint8)
    if case.previous is not None:
        drawn[...] = read_mask(case.previous, image)
    lost = 0
    for thing in located(case, image, labels, space):
        if thing.mask is not None:
            drawn[read_mask(thing.mask, image) == thing.label] = thing.label
        for index, positive in thing.clicks:
            if positive:
                draw_ball(drawn, [round(i) for i in index], thing.label, radius_mm, image.spacing_mm)
            lost += not positive
    return drawn, image, lost


def _segment(
    model: PromptModel | SessionModel, prepared: Any, thing: LocatedObject, image: Image, previous: np.ndarray | None
) -> np.ndarray:
    mask = None
    if thing.mask is not None:
        mask = read_mask(thing.mask, image) == thing.label
    elif previous is not None:
        mask = previous == thing.label
    start = prepared.mask_to_grid(mask) if mask is not None and mask.any() else None
    found = model.begin(prepared, start)
    for index, positive in thing.clicks:
        found.click(prepared.to_grid(index), positive)
    return prepared.to_image(found.logits())


def parse_labels(words: list[str]) -> dict[str, int]:
    """`["liver=1", "spleen=2"]` as a mapping.

    Raises:
        UserError: a word that is not NAME=VALUE.
    """
    return dict(_label(word) for word in words)


def _label(word: str) -> tuple[str, int]:
    name, _, value = word.rpartition("=")
    number = decimal(value)
    if not name or not number:
        raise UserError(f"--labels {word!r} must be NAME=VALUE with a whole number from 1, such as liver=1")
    return name, number
