"""Samples of predictions as `diffusion/samples_file.py` writes them, measured case by case; see docs/uncertainty.md."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_ext.diffusion.samples_file import PROBABILITIES, SETTINGS
from nnunet_ext.diffusion.uncertainty import (
    BINS,
    UncertaintyMaps,
    agreement,
    calibration_error,
    ged_squared,
    maps_of_votes,
    overlaps,
    pairwise_dice,
    vote_confidence,
)
from nnunet_ext.diffusion.votes import LABEL_LIMIT, vote_patterns
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.cases import split_name
from nnunet_ext.evaluation.images import LabelMap, check_same_grid, read_label_map
from nnunet_ext.evaluation.labels import Labels, Target
from nnunet_ext.json_object import JsonObject

_SAMPLE = re.compile(r"sample_\d+")


@dataclass(frozen=True)
class Uncertainty:
    """What the samples of one case say.

    Attributes:
        samples: how many there are.
        source: "votes" or "probabilities", what the maps and the calibration error come from.
        maps: over the grid.
        vote_share: (*grid), share of the samples that do not say background.
        entropy: mean over the voxels in which any sample (or reference) has foreground, nats; NaN without such.
        variance: mean over the same voxels.
        labels: {label or region: {"agreement", and with references "GED2" and "Dice"}}; NaN where no map has it.
        scores: {"agreement", "GED2", "Dice"}: means over the labels that have them; {"ECE", "ECE_foreground"}: of the
            calibration, over the image and over the voxels of `entropy`.
    """

    samples: int
    source: str
    maps: UncertaintyMaps
    vote_share: np.ndarray
    entropy: float
    variance: float
    labels: dict[Target, dict[str, float]]
    scores: dict[str, float] = field(default_factory=dict)


def find_samples(folder: Path) -> dict[str, list[Path]]:
    """Cases and their files.

    Raises:
        UserError: no folder, or no case in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder with one folder of samples per case")
    cases = {}
    for case in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in case.iterdir() if _SAMPLE.fullmatch(split_name(path)[0]))
        if files:
            cases[case.name] = files
    if not cases:
        raise UserError(f"{folder} holds no samples; expected files such as {folder / 'CASE' / 'sample_00.nii.gz'}")
    return cases


def find_reference(folder: Path, case: str) -> Path:
    """The reference label map of a case.

    Raises:
        UserError: there is none, or more than one.
    """
    files = [path for path in folder.iterdir() if split_name(path)[0] == case and split_name(path)[1]]
    if len(files) != 1:
        raise UserError(f"{folder} has {len(files)} label maps of {case}; expected one, such as {case}.nii.gz")
    return files[0]


def find_image(case_folder: Path, images: Path | None = None) -> Path:
    """The first channel of the image that the samples in `CASE_FOLDER` segment.

    Args:
        case_folder: of the samples of one case.
        images: folder to look in; None takes what samples.json names.

    Raises:
        UserError: there is none.
    """
    if images is not None:
        found = [
            path for path in images.glob("*") if split_name(path)[0] in (f"{case_folder.name}_0000", case_folder.name)
        ]
        if not found:
            raise UserError(f"{images} holds no {case_folder.name}_0000; give the folder of the images with --images")
        return found[0]
    settings = case_folder / SETTINGS
    named = JsonObject.read(settings).optional_text("image") if settings.is_file() else None
    if named is None or not Path(named).is_file():
        where = "samples.json names none" if named is None else f"{named} is not there"
        raise UserError(f"{where}; give the folder of the images with --images")
    return Path(named)


def read_samples(files: Sequence[Path]) -> tuple[np.ndarray, LabelMap]:
    """Label maps (R, *grid) of one case, and the first of them with its geometry.

    Raises:
        UserError: a file is damaged, or lies on another grid than the first.
    """
    maps = [read_label_map(path) for path in files]
    for other in maps[1:]:
        check_same_grid(maps[0], other)
    return np.stack([found.array for found in maps]), maps[0]


def measure(
    samples: np.ndarray,
    targets: Sequence[Target],
    references: Sequence[np.ndarray] = (),
    *,
    ignore: int | None = None,
    maps: UncertaintyMaps | None = None,
    mean: np.ndarray | None = None,
    bins: int = BINS,
    unbiased: bool = False,
) -> Uncertainty:
    """Measure one case.

    Args:
        samples: (R, *grid), whole numbers from 0.
        targets: labels and regions.
        references: label maps (*grid), one per annotator.
        ignore: label of the references; where one has it, no score looks.
        maps: from the samples' probabilities; None: from the votes.
        mean: (K, *grid), their mean, for the calibration; None: the shares of the votes.
        bins: of the calibration error.
        unbiased: form of GED², see `ged_squared`.
    """
    R = len(samples)
    source = "votes" if maps is None else "probabilities"
    maps = maps or maps_of_votes(samples)
    share = (samples > 0).mean(axis=0, dtype=np.float32)
    every = np.concatenate([samples, np.stack(references)]) if len(references) else samples
    counted = np.ones(samples.shape[1:], dtype=bool)
    if ignore is not None:
        counted = np.all([reference != ignore for reference in references], axis=0)
    foreground = (every > 0).any(axis=0) & counted
    scored = every[:, counted]
    labels: dict[Target, dict[str, float]] = {}
    shared = overlaps(scored, targets) if scored.size else np.zeros((len(targets), len(every), len(every)), np.int64)
    for target, overlap in zip(targets, shared, strict=True):
        labels[target] = {"agreement": agreement(overlap[:R, :R])}
        if len(references):
            labels[target]["GED2"] = ged_squared(overlap, R, unbiased=unbiased)
            dice = float(pairwise_dice(overlap)[:R, R:].mean())
            labels[target]["Dice"] = dice if overlap.any() else math.nan
    names = ("agreement", "GED2", "Dice") if len(references) else ("agreement",)
    scores = {name: _mean([values[name] for values in labels.values()]) for name in names}
    if len(references):
        if mean is None:
            predicted, confidence = vote_confidence(samples)
        else:
            predicted, confidence = mean.argmax(axis=0), mean.max(axis=0)
        correct = np.mean([predicted == reference for reference in references], axis=0)
        for name, voxels in (("ECE", counted), ("ECE_foreground", foreground)):
            scores[name] = calibration_error(confidence[voxels], correct[voxels], bins)
    entropy, variance = (
        float(values[foreground].mean(dtype=np.float64)) if foreground.any() else math.nan
        for values in (maps.entropy, maps.variance)
    )
    return Uncertainty(R, source, maps, share, entropy, variance, labels, scores)


def measure_files(
    files: Sequence[Path],
    references: Sequence[Path] = (),
    labels: Labels | None = None,
    *,
    bins: int = BINS,
    unbiased: bool = False,
) -> Uncertainty:
    """`measure` for the files of one case, with its probabilities where they were stored.

    Args:
        files: its samples.
        references: its label maps, one per annotator.
        labels: what to measure; None: every foreground label that occurs.

    Raises:
        UserError: a file is damaged, lies on another grid, or holds labels that `labels` does not know.
    """
    samples, first = read_samples(files)
    truths = []
    for path in references:
        truth = read_label_map(path)
        check_same_grid(truth, first)
        truths.append(truth.array)
    occurring: set[int] = set()
    for path, array in [(files[0].parent, samples), *zip(references, truths, strict=True)]:
        if array.min() < 0:
            raise UserError(f"{path} holds the value {array.min()}; expected whole numbers from 0")
        if array.max() >= LABEL_LIMIT:
            raise UserError(f"{path} holds the value {array.max()}; expected labels below {LABEL_LIMIT}")
        # Patterns know every label that occurs, without a table over all voxels of all samples.
        values = set(np.unique(vote_patterns(array if array is samples else array[None]).votes).tolist())
        if labels is not None and not values <= set(labels.values):
            unknown = sorted(values - set(labels.values))
            raise UserError(f"{path} holds the values {unknown}; expected only {list(labels.values)}")
        occurring |= values
    targets = tuple(sorted(occurring - {0})) if labels is None else labels.targets
    maps, mean = _read_probabilities(files[0].parent / PROBABILITIES, samples.shape[1:])
    ignore = None if labels is None else labels.ignore
    return measure(samples, targets, truths, ignore=ignore, maps=maps, mean=mean, bins=bins, unbiased=unbiased)


def _read_probabilities(path: Path, grid: tuple[int, ...]) -> tuple[UncertaintyMaps | None, np.ndarray | None]:
    if not path.is_file():
        return None, None
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name].astype(np.float32) for name in file.files}
        maps = UncertaintyMaps(*(stored[name] for name in ("entropy", "variance", "mutual_information")))
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or no file of probabilities ({error}); predict the case again") from None
    if maps.entropy.shape != grid:
        raise UserError(
            f"{path} has the grid {maps.entropy.shape}, the samples beside it {grid}; predict the case again"
        )
    return maps, stored.get("mean")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
