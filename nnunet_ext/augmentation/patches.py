"""Patches of preprocessed cases: where nnU-Net's loader cuts them, and reading no more of a file than is looked at.

The parameters of rotation, scaling and cropping are drawn before anything is read: two thirds of nnU-Net's samples are
neither rotated nor scaled and show only the middle of what nnU-Net reads for them. Files of blosc2 are read block by
block, each of which is decompressed once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import blosc2
import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2

from nnunet_ext.augmentation.randomness import Random
from nnunet_ext.augmentation.spatial import Window
from nnunet_ext.augmentation.transform import Sample


class Case:
    """One case as nnU-Net's data set gives it; arrays are read where they are sliced, properties when asked for.

    Attributes:
        image: (channels, z, y, x).
        maps: of labels (z, y, x): the segmentation, and in a cascade the earlier stage's.
    """

    def __init__(self, dataset: nnUNetBaseDataset, key: str):
        self._properties: Callable[[], dict]
        if type(dataset) is nnUNetDatasetBlosc2:
            # As its load_case, but for the properties: places of each class, megabytes with many classes.
            folder, earlier = dataset.source_folder, dataset.folder_with_segs_from_previous_stage
            self.image = _open(os.path.join(folder, f"{key}.b2nd"))
            segmentation = _open(os.path.join(folder, f"{key}_seg.b2nd"))
            previous = None if earlier is None else _open(os.path.join(earlier, f"{key}.b2nd"))
            self._properties = lambda: load_pickle(os.path.join(folder, f"{key}.pkl"))
        else:
            self.image, segmentation, previous, properties = dataset.load_case(key)
            self._properties = lambda: properties
        self._segmentation, self._previous = segmentation, previous

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.image.shape[1:])

    def places(self) -> dict:
        """Voxels of each class: {class: (n, 4), channel first}."""
        return self._properties()["class_locations"]

    def read(self, first: Sequence[int], window: Window) -> Sample:
        """The part of a box that a window shows, as nnU-Net's loader gives it: zeros and label -1 outside the case.

        Args:
            first: where the box begins in the case.
            window: of the box.

        Returns:
            image (channels, *window.shape) in float32, segmentation (maps, *window.shape) in int16.
        """
        begin = [f + w for f, w in zip(first, window.origin, strict=True)]
        image = _cut(self.image, begin, window.shape, 0, np.float32)
        maps = _cut(self._segmentation, begin, window.shape, -1, np.int16)
        if self._previous is not None:
            previous = _cut(self._previous, begin, window.shape, -1, np.int16)
            maps = np.concatenate((maps, previous.reshape(1, *window.shape)))
        return {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(maps)}


def choose_box(
    loader: nnUNetDataLoader, size: Sequence[int], foreground: bool, places: Callable[[], dict], random: Random
) -> list[int]:
    """Where the patch begins in a case: `nnUNetDataLoader.get_bbox` with random numbers of one's own.

    Args:
        loader: its patch size, padding and labels are obeyed.
        size: of the case.
        foreground: the patch must show a voxel of a class.
        places: gives the voxels of each class; asked only where they matter.
    """
    patch = [int(n) for n in loader.patch_size]
    pads = [max(int(pad), n - s) for pad, n, s in zip(loader.need_to_pad, patch, size, strict=True)]
    lowest = [-pad // 2 for pad in pads]
    highest = [s + pad // 2 + pad % 2 - n for s, pad, n in zip(size, pads, patch, strict=True)]
    voxels = None
    if foreground:
        known = places()
        classes = [key for key in known if len(known[key]) > 0]
        annotated = loader.annotated_classes_key
        if len(classes) > 1 and annotated in classes:
            classes.remove(annotated)  # all that is annotated: only where there is no class of its own
        if classes:
            voxels = known[classes[random.numpy.choice(len(classes))]]
    elif loader.has_ignore:
        voxels = places()[loader.annotated_classes_key]
        if len(voxels) == 0:
            warnings.warn("Warning! No annotated pixels in image!", stacklevel=2)
            voxels = None
    if voxels is None:
        return [int(random.numpy.randint(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    centre = voxels[random.numpy.choice(len(voxels))][1:]
    return [max(low, int(c) - n // 2) for low, c, n in zip(lowest, centre, patch, strict=True)]


def _open(path: str) -> Any:
    mapped = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net
    return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **mapped)


def _cut(array: Any, begin: Sequence[int], shape: Sequence[int], outside: int, dtype: Any) -> np.ndarray:
    """(channels, *shape) of an array (channels, z, y, x) or (z, y, x) from voxel `begin`, which may lie outside."""
    size = array.shape[-len(begin) :]
    lead = array.shape[: -len(begin)]
    first = [min(max(0, b), n) for b, n in zip(begin, size, strict=True)]
    last = [min(max(f, b + s), n) for f, b, s, n in zip(first, begin, shape, size, strict=True)]
    inside = (*[slice(None)] * len(lead), *map(slice, first, last))
    if tuple(last[d] - first[d] for d in range(len(size))) == tuple(shape):
        # Transforms work in place: what is in memory or mapped from a file is copied, what was decompressed is not.
        part = array[inside]
        return np.array(part, dtype, order="C") if isinstance(array, np.ndarray) else np.ascontiguousarray(part, dtype)
    out = np.full((*lead, *shape), outside, dtype)
    if all(f < l for f, l in zip(first, last, strict=True)):
        target = (..., *(slice(f - b, l - b) for f, l, b in zip(first, last, begin, strict=True)))
        out[target] = array[inside]
    return out
