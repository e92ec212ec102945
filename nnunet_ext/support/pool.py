"""The labelled slices of a preprocessed data set, resized once: what episodes and support sets are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.errors import UserError
from nnunet_ext.support import draw
from nnunet_ext.support.view import to_view

# Memory a pool may take; beyond it slices are thinned evenly within each case.
_MOST_BYTES = 1 << 30
# A label counts as present where it covers at least this share of a pixel in all.
_LEAST_PIXELS = 1.0
# Percentiles of the intensities that become 0 and 1.
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Task:
    """A binary segmentation task of a data set: a label, or the labels of a region."""

    name: str
    labels: tuple[int, ...]


def tasks_of(has_regions: bool, dataset_json: dict) -> tuple[Task, ...]:
    """One task per output of the network but background: labels by value, or regions in their order.

    Args:
        has_regions: whether the labels of `dataset_json` are regions.
        dataset_json: content of the data set's dataset.json.
    """
    named = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    if has_regions:
        return tuple(
            Task(name, tuple(value) if isinstance(value, (list, tuple)) else (int(value),))
            for name, value in named.items()
        )
    return tuple(Task(name, (int(value),)) for name, value in sorted(named.items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class Pool:
    """Slices of some cases in the network's square view.

    Attributes:
        images: (n, C, s, s) uint8, 0 to 255 over the window.
        masks: (n, T, s, s) uint8, share of each pixel covered by task t in 255ths.
        cases: (n,) index of each slice's case in `case_names`.
        positions: (n,) 0 to 1, place of the slice in its volume.
        case_names: names of the cases.
        tasks: what the T masks are.
        window: (C, 2) preprocessed intensities that become 0 and 1.
        side: pixels of the square that slices are padded to before resizing.
    """

    images: Tensor
    masks: Tensor
    cases: np.ndarray
    positions: np.ndarray
    case_names: tuple[str, ...]
    tasks: tuple[Task, ...]
    window: Tensor
    side: int

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def present(self) -> np.ndarray:
        """(n, T) bool: which slice holds which task."""
        return present(self.masks)

    @cached_property
    def thumbnails(self) -> np.ndarray:
        """(n, features), see `draw.thumbnails`."""
        return draw.thumbnails(self.images.numpy())

    def is_aligned(self) -> bool:
        """Volumes whose labels lie at about the same place: no case's mean position is a tenth from that of all."""
        if len(self.case_names) < 2 or not self.positions.any():
            return False
        for task in range(len(self.tasks)):
            means = np.array([np.mean(positions) for positions in self.where(task).values()])
            if len(means) < 2 or np.abs(means - means.mean()).max() > 0.1:
                return False
        return True

    def where(self, task: int) -> dict[str, list[float]]:
        """Case name -> positions of its slices that hold the task."""
        found: dict[str, list[float]] = {}
        for i in np.flatnonzero(self.present[:, task]):
            found.setdefault(self.case_names[self.cases[i]], []).append(float(self.positions[i]))
        return found

    def draw(
        self,
        task: int,
        size: int,
        rng: np.random.Generator,
        *,
        strategy: str = "balanced",
        query: tuple[np.ndarray, float] | None = None,
        without_case: str | None = None,
        with_label: bool = True,
    ) -> np.ndarray:
        """Indices of a support set.

        Args:
            task: index into `tasks`.
            size: how many; fewer are returned when there are fewer.
            rng: for the strategies with chance.
            strategy: one of `draw.STRATEGIES`; the last two need `query`.
            query: thumbnail and position of the slice to segment.
            without_case: a case whose slices may not be drawn: the query's.
            with_label: draw slices that hold the task, or those that do not.

        Raises:
            ValueError: unknown strategy.
        """
        allowed = self.present[:, task] == with_label
        if without_case is not None and without_case in self.case_names:
            allowed &= self.cases != self.case_names.index(without_case)
        candidates = np.flatnonzero(allowed)
        if strategy == "random":
            chosen = draw.at_random(candidates, size, rng)
        elif strategy == "balanced":
            chosen = draw.balanced(candidates, self.cases, size, rng)
        elif strategy == "similar" and query is not None:
            chosen = draw.nearest(candidates, -(self.thumbnails @ query[0]), size)
        elif strategy == "position" and query is not None:
            chosen = draw.nearest(candidates, np.abs(self.positions - query[1]), size)
        else:
            raise ValueError(f"strategy {strategy!r} must be one of {', '.join(draw.STRATEGIES)}, the last two a query")
        if without_case is not None:
            draw.refuse_leak((self.case_names[self.cases[i]] for i in chosen), without_case)
        return chosen

    def subset(self, indices: np.ndarray) -> Pool:
        """The pool of these slices only."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        return Pool(
            self.images[rows],
            self.masks[rows],
            self.cases[indices],
            self.positions[indices],
            self.case_names,
            self.tasks,
            self.window,
            self.side,
        )


def present(masks: Tensor) -> np.ndarray:
    """(n, T, s, s) uint8 masks -> (n, T) bool: which task is in which slice."""
    return (masks.flatten(2).sum(dim=2, dtype=torch.int64) >= 255 * _LEAST_PIXELS).numpy()


def unit_intensities(x: Tensor, window: Tensor) -> Tensor:
    """Preprocessed intensities (N, C, H, W) -> [0, 1], clipped to the window (C, 2)."""
    low, high = window[:, 0].view(1, -1, 1, 1), window[:, 1].view(1, -1, 1, 1)
    return ((x - low) / (high - low)).clamp_(0, 1)


def largest_side(dataset: Any) -> int:
    """Pixels of the longest slice side over all cases of an nnU-Net data set."""
    return max(max(dataset.load_case(case)[0].shape[-2:]) for case in dataset.identifiers)


def read_pool(
    dataset: Any,
    tasks: Sequence[Task],
    size: int,
    side: int,
    *,
    ignore_label: int | None = None,
    window: Tensor | None = None,
    every_slice: bool = False,
    report: Callable[[str], object] = print,
) -> Pool:
    """Read the slices of nnU-Net's preprocessed cases: all that hold a task and, per case, half as many that do not.

    Slices with a pixel of the ignore label are left out.

    Args:
        dataset: nnU-Net's data set object; slices lie across the first spatial axis.
        tasks: what to read masks of.
        size: pixels of the view.
        side: see `Pool`; slices that are larger are padded to their own longest side.
        ignore_label: value of unannotated pixels.
        window: of another pool of the same data set; None measures it on these cases.
        every_slice: keep all slices, with or without label.
        report: gets a line when slices are thinned to bound memory.

    Raises:
        UserError: no case, or no slice holds any task.
    """
    names = tuple(sorted(dataset.identifiers))
    if not names:
        raise UserError(f"no cases to read in {dataset.source_folder}")
    window = measure_window(dataset, names) if window is None else window
    most = _MOST_BYTES // len(names) // (size * size * (len(window) + len(tasks)))
    images, masks, cases, positions = [], [], [], []
    thinned = 0
    for number, name in enumerate(names):
        data, labels = _read(dataset, name)
        chosen = _choose(labels, tasks, ignore_label, every_slice)
        if not every_slice and len(chosen) > most:
            thinned += len(chosen) - most
            chosen = chosen[np.linspace(0, len(chosen) - 1, max(most, 1)).round().astype(int)]
        if not len(chosen):
            continue
        slices = torch.from_numpy(np.ascontiguousarray(data[:, chosen].swapaxes(0, 1)))
        picked = labels[chosen]
        marked = torch.from_numpy(np.stack([np.isin(picked, task.labels) for task in tasks], axis=1)).float()
        images.append(to_uint8(unit_intensities(_view(slices, size, side), window)))
        masks.append(to_uint8(_view(marked, size, side)))
        cases += [number] * len(chosen)
        positions += [i / max(data.shape[1] - 1, 1) for i in chosen]
    if thinned:
        report(f"support pool: {thinned} slices left out, evenly within each case, to stay below 1 GiB")
    if not images:
        whole = "" if ignore_label is None else " and no pixel of the ignore label"
        raise UserError(f"no slice of {', '.join(names[:5])} in {dataset.source_folder} holds a label{whole}")
    return Pool(
        torch.cat(images), torch.cat(masks), np.array(cases), np.array(positions), names, tuple(tasks), window, side
    )


def measure_window(dataset: Any, names: Collection[str], most_cases: int = 20) -> Tensor:
    """(C, 2): low and high percentiles of the preprocessed intensities, over some of the cases."""
    names = list(names)
    some = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(len(names), most_cases)).astype(int))]
    values = [_read(dataset, name)[0] for name in some]
    samples = [
        np.concatenate([v[c].ravel()[:: max(v[c].size // 20_000, 1)] for v in values]) for c in range(len(values[0]))
    ]
    window = torch.tensor(np.array([np.percentile(s, _PERCENTILES) for s in samples]), dtype=torch.float32)
    window[:, 1] = torch.maximum(window[:, 1], window[:, 0] + 1e-6)
    return window


def to_uint8(x: Tensor) -> Tensor:
    """[0, 1] -> 0 to 255."""
    return (x * 255).round_().to(torch.uint8)


def _view(x: Tensor, size: int, side: int) -> Tensor:
    # Padding is 0 in the preprocessed intensities, as where nnU-Net pads an image to its patch.
    return to_view(x, size, side=side)


def _read(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, Z, H, W) and labels (Z, H, W), outside of the nonzero region 0."""
    data, labels, _, _ = dataset.load_case(name)
    return np.asarray(data[:], dtype=np.float32), np.maximum(np.asarray(labels[:])[0], 0)


def _choose(labels: np.ndarray, tasks: Sequence[Task], ignore_label: int | None, every_slice: bool) -> np.ndarray:
    """Slices without ignored pixels: those that hold a task, and half as many others at even distances, or all."""
    wanted = np.isin(labels, [label for task in tasks for label in task.labels]).any(axis=(1, 2))
    usable = np.ones(len(labels), bool) if ignore_label is None else (labels != ignore_label).all(axis=(1, 2))
    if every_slice:
        return np.flatnonzero(usable)
    held, empty = np.flatnonzero(wanted & usable), np.flatnonzero(~wanted & usable)
    spaced = np.linspace(0, len(empty) - 1, min(len(empty), (len(held) + 1) // 2)).astype(int)
    return np.sort(np.concatenate((held, empty[spaced])))


def nnunet_dataset(folder: Path, identifiers: Sequence[str] | None = None) -> Any:
    """nnU-Net's data set object for a folder of preprocessed cases.

    Raises:
        UserError: there is no such folder.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; preprocess that data set for 2d first")
    return infer_dataset_class(str(folder))(str(folder), identifiers)
