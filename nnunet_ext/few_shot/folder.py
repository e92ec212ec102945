"""Segment a folder of images by a folder of labelled ones, with no training: `nnunet_ext predict-fewshot`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_ext.architectures.universeg import UniverSeg
from nnunet_ext.architectures.universeg.few_shot import mean_logits, segment
from nnunet_ext.cases import ending_of, find_cases
from nnunet_ext.checkpoints import build_from_official, read_checkpoint
from nnunet_ext.checkpoints.universeg import core_weights, sizes
from nnunet_ext.errors import UserError
from nnunet_ext.evaluation.labels import labels_from_dataset_json
from nnunet_ext.files import read_json, write_json
from nnunet_ext.image_files import copy_geometry, read_values, whole_numbers, write_image
from nnunet_ext.image_files import read_image as read_whole
from nnunet_ext.support import draw
from nnunet_ext.support.pool import Pool, Task, to_uint8
from nnunet_ext.support.view import from_view, to_view

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".bmp", ".tif", ".tiff")
# The array axis across which a volume is cut into slices; arrays are (z, y, x).
AXES = {"z": 0, "y": 1, "x": 2}
# More values than this is an image, not a label map.
_MOST_LABELS = 255


@dataclass(frozen=True)
class Slices:
    """A 2D image or a volume as slices.

    Attributes:
        array: (n, H, W).
        spacing: of rows and columns.
        reference: the file, for its geometry.
        axis: the array axis that became the first.
    """

    array: np.ndarray
    spacing: tuple[float, float]
    reference: sitk.Image
    axis: int


@dataclass(frozen=True)
class Prediction:
    """Labels (n, H, W), and the variance of the probability over support draws (n, H, W), if there was more than one.

    The variance is that of the label with the largest one at each pixel.
    """

    labels: np.ndarray
    variance: np.ndarray | None


def load_network(path: Path) -> tuple[UniverSeg, int | None]:
    """UniverSeg from the official file or from a checkpoint of nnUNetTrainerUniverSeg; widths are those of the file.

    Returns:
        The network, and the size of its slices if the file says.

    Raises:
        UserError: the file is missing, unreadable or of another network.
    """
    weights = read_checkpoint(path)
    size = weights["support_images"].shape[-1] if "support_images" in weights else None
    kept = core_weights(weights)
    try:
        return build_from_official("universeg", kept, **sizes(kept)), size  # type: ignore[return-value]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def find_images(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Case name -> image files, one per channel, by nnU-Net's names `case_0000.ending`.

    Raises:
        UserError: see `nnunet_ext.cases.find_cases`.
    """
    return find_cases(folder, ENDINGS, any_case=True)


def read_slices(path: Path, axis: str) -> Slices:
    """Read an image with one value per pixel, or colours, which become grey.

    Raises:
        UserError: it cannot be read, or has neither two nor three axes.
    """
    image = read_whole(path)
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = array[..., :3].mean(axis=-1)
    step = image.GetSpacing()[::-1]
    if array.ndim == 2:
        return Slices(array[None], (step[0], step[1]), image, 0)
    if array.ndim != 3:
        raise UserError(f"{path} has {array.ndim} axes; expected an image of two or a volume of three")
    number = AXES[axis]
    rows, columns = (spacing for other, spacing in enumerate(step) if other != number)
    return Slices(np.moveaxis(array, number, 0), (rows, columns), image, number)


def read_image(files: Sequence[Path], size: int, axis: str) -> tuple[Tensor, Slices]:
    """All channels of a case as views (n, C, size, size) in [0, 1], and the first channel's slices.

    Each channel's 0.5th to 99.5th percentile become 0 and 1.

    Raises:
        UserError: a file is unreadable, holds NaN, or differs in size from the first.
    """
    channels = []
    first = None
    for path in files:
        slices = read_slices(path, axis)
        first = first or slices
        if slices.array.shape != first.array.shape:
            raise UserError(f"{path} has {slices.array.shape} pixels but {files[0]} has {first.array.shape}")
        values: np.ndarray = slices.array.astype(np.float32)
        stored = read_values(path)
        if not np.isfinite(values).all() or (stored.dtype.kind == "f" and not np.isfinite(stored).all()):
            raise UserError(f"{path} holds NaN or infinite values; repair it with nnunet_ext data clean")
        low, high = map(float, np.percentile(values, (0.5, 99.5)))
        values = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
        channels.append(to_view(torch.from_numpy(values)[:, None], size, slices.spacing))
    assert first is not None
    return torch.cat(channels, dim=1).clamp_(0, 1), first


def read_support(images: Path, labels: Path, size: int, axis: str) -> Pool:
    """All labelled slices of a support folder; the tasks are the values that occur in its label maps.

    Raises:
        UserError: naming the image without label, the label without image, the label map that is none, or a mismatch.
    """
    cases = find_images(images)
    if not labels.is_dir():
        raise UserError(f"{labels} is not a folder; give one with label maps such as case.nii.gz")
    files = {
        path.name[: -len(ending)]: path
        for path in sorted(labels.iterdir())
        if (ending := ending_of(path.name, ENDINGS, any_case=True))
    }
    if alone := sorted(set(cases) - set(files)):
        raise UserError(f"{cases[alone[0]][0]} has no label map in {labels}; expected {alone[0]} with an image ending")
    if alone := sorted(set(files) - set(cases)):
        raise UserError(f"{files[alone[0]]} has no image in {images}; expected {alone[0]}_0000 with an image ending")
    views, maps = {}, {}
    for case, paths in cases.items():
        views[case], slices = read_image(paths, size, axis)
        maps[case] = _read_labels(files[case], axis)
        if maps[case].array.shape != slices.array.shape:
            raise UserError(
                f"{files[case]} has {maps[case].array.shape} pixels but {paths[0]} has {slices.array.shape}"
            )
    values = sorted({int(v) for m in maps.values() for v in np.unique(m.array)} - {0})
    if not values:
        raise UserError(f"no label map in {labels} marks anything; labels are values above 0")
    images_of, masks_of, number_of, position_of = [], [], [], []
    for number, (case, labelled) in enumerate(maps.items()):
        held = np.flatnonzero(labelled.array.any(axis=(1, 2)))
        marked = np.stack([labelled.array[held] == value for value in values], axis=1).astype(np.float32)
        images_of.append(to_uint8(views[case][held]))
        masks_of.append(to_uint8(to_view(torch.from_numpy(marked), size, labelled.spacing)))
        number_of += [number] * len(held)
        position_of += [i / max(len(labelled.array) - 1, 1) for i in held]
    window = torch.tensor([[0.0, 1.0]] * images_of[0].shape[1])
    tasks = tuple(Task(str(value), (value,)) for value in values)
    cats = torch.cat(images_of), torch.cat(masks_of)
    return Pool(*cats, np.array(number_of), np.array(position_of), tuple(maps), tasks, window, 0)


def _read_labels(path: Path, axis: str) -> Slices:
    slices = read_slices(path, axis)
    array = slices.array
    whole_numbers(path, read_values(path))
    whole = whole_numbers(path, array)
    if whole.min() < 0:
        raise UserError(f"{path} holds {whole.min()}; labels are whole numbers from 0")
    if len(np.unique(whole)) > _MOST_LABELS:
        raise UserError(f"{path} holds {len(np.unique(whole))} values; that is an image, not a label map")
    return Slices(whole.astype(np.int64), slices.spacing, slices.reference, slices.axis)


@torch.inference_mode()
def predict_case(
    core: UniverSeg,
    views: Tensor,
    slices: Slices,
    support: Pool,
    name: str,
    *,
    support_size: int,
    ensemble: int,
    strategy: str,
    seed: int,
    device: torch.device,
) -> Iterator[Prediction]:
    """Segment a case slice by slice; yields after each slice, for a progress bar.

    A support case of the same name as the query never supports it.

    Args:
        views: (n, C, s, s) of the case, see `read_image`.
        slices: the case in its own grid.
        support: what to segment by.
        name: of the case.
        support_size: entries per support set; all are taken when there are fewer.
        ensemble: support sets per slice and label, averaged.
        strategy: one of `draw.STRATEGIES`; the last two take the nearest, so they have no draws to average.
        seed: of the draws.
        device: of the network.

    Raises:
        UserError: the only support is the case itself.
    """
    looks = draw.thumbnails(to_uint8(views).numpy())
    values: np.ndarray = np.array([0] + [task.labels[0] for task in support.tasks])
    for i, view in enumerate(views):
        rng = np.random.default_rng((seed, i))
        query = (looks[i], i / max(len(views) - 1, 1))
        logits, variances = [], []
        for task, described in enumerate(support.tasks):
            passes = []
            for _ in range(ensemble):
                chosen = support.draw(task, support_size, rng, strategy=strategy, query=query, without_case=name)
                if not len(chosen):
                    raise UserError(f"{name}: label {described.name} is in no other support case; add one")
                passes.append(_pass(core, view, support, task, chosen, device))
            stacked = torch.stack(passes)
            logits.append(mean_logits(stacked))
            variances.append(stacked.sigmoid().var(dim=0, correction=0))
        grid = slices.array.shape[1:]
        on_grid = from_view(torch.stack(logits)[None], grid, slices.spacing)[0]
        labels = values[torch.cat((torch.zeros_like(on_grid[:1]), on_grid)).argmax(dim=0).cpu().numpy()]
        variance = None
        if ensemble > 1:
            largest = torch.stack(variances).amax(dim=0)[None, None]
            variance = from_view(largest, grid, slices.spacing)[0, 0].clamp_(min=0).cpu().numpy()
        yield Prediction(labels, variance)


def _pass(core: UniverSeg, view: Tensor, support: Pool, task: int, chosen: np.ndarray, device: torch.device) -> Tensor:
    rows = torch.as_tensor(chosen)
    images = support.images[rows].transpose(0, 1)[:, :, None].to(device).float() / 255  # (C, S, 1, s, s)
    labels = support.masks[rows, task][None, :, None].to(device).float() / 255
    return segment(core, view[:, None].to(device), images, labels.expand_as(images))


def write_like(array: np.ndarray, slices: Slices, path: Path) -> None:
    """Write (n, H, W) as an image with the axes and the geometry of the case it belongs to, whole or not at all."""
    array = np.moveaxis(array, 0, slices.axis) if slices.reference.GetDimension() == 3 else array[0]
    image = sitk.GetImageFromArray(array)
    copy_geometry(image, slices.reference)
    write_image(image, path)


def write_dataset_json(output: Path, support_labels: Path, support: Pool) -> None:
    """Put a dataset.json beside the results, as nnUNetv2_predict does: what they are evaluated by.

    It is that in or above the folder of the support's label maps where it declares their values; else the values are
    their own names. One that is there stays.
    """
    values = {task.name: task.labels[0] for task in support.tasks}
    content: Any = {"labels": {"background": 0, **values}}
    for folder in (support_labels, support_labels.resolve().parent):
        with contextlib.suppress(UserError):
            if set(values.values()) <= set(labels_from_dataset_json(folder / "dataset.json").values):
                content = read_json(folder / "dataset.json")
                break
    if not (output / "dataset.json").exists():
        write_json(output / "dataset.json", content)


def label_type(values: Mapping[int, object] | list[int]) -> type:
    """The smallest type of label maps that holds these values."""
    return np.uint8 if max(values) < 256 else np.uint16
