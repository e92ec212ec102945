"""Batches are nnU-Net's, sample by sample, where both draw the same; what cannot be read is named."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from helpers.augmentation import nnunet_transforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.augmentation.batches import Batches
from nnunet_ext.augmentation.randomness import Random
from nnunet_ext.errors import TrainingError

# ruff: noqa: NPY002 (nnU-Net draws from the global generator)


def make_cases(folder, ignore=None, numpy=False):
    """Four cases of different size with labels 0 to 3, one without any foreground, as nnU-Net preprocesses them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(30, 40, 35), (12, 50, 44), (40, 28, 60), (25, 30, 20)]):
        image = rng.standard_normal((2, *size)).astype(np.float32)
        labels = np.clip(rng.integers(-6, 4, (1, *size)), -1, None).astype(np.int8) * (number != 3)
        places = {k: np.argwhere(labels == k)[:500] for k in (1, 2, 3)}
        if ignore is not None:
            places[(-1, 0, 1, 2)] = np.argwhere(labels != ignore)[:500]
            places.pop(3)
        name = str(folder / f"case_{number}")
        if numpy:
            np.savez(f"{name}.npz", data=image, seg=labels)
            write_pickle({"class_locations": places}, f"{name}.pkl")
        else:
            blocks = {"chunks": (1, 16, 16, 16), "blocks": (1, 8, 8, 8)}
            nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": places}, name, **blocks)
    return folder


def make_loader(dataset, patch, cut, ignore=None, transforms=None, **options):
    labels = {"background": 0, "a": 1, "b": 2, **({"c": 3} if ignore is None else {"ignore": ignore})}
    return nnUNetDataLoader(
        dataset, 3, cut, patch, LabelManager(labels, None), oversample_foreground_percent=0.5, transforms=transforms,
        **options,
    )  # fmt: skip


def assert_nnunets(loader, monkeypatch, numbers=5):
    """The batches are those of the loader's own, from the same seeds."""
    batches = Batches(copy.deepcopy(loader), seed=0)
    for number in range(numbers):
        np.random.seed(number)
        torch.manual_seed(number)
        expected = next(loader)
        monkeypatch.setattr(Random, "of_batch", lambda *_, n=number: Random(n, n))
        found = batches.make(number)
        assert list(found["keys"]) == list(expected["keys"])
        assert torch.allclose(found["data"], expected["data"], rtol=0, atol=1e-4)
        maps = found["target"] if isinstance(found["target"], list) else [found["target"]]
        others = expected["target"] if isinstance(expected["target"], list) else [expected["target"]]
        assert len(maps) == len(others)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(maps, others, strict=True))


@pytest.mark.parametrize("patch, cut", [((16, 20, 24), (24, 30, 36)), ((32, 24), (48, 36))], ids=["3d", "2d"])
def test_batches_are_nnunets(patch, cut, tmp_path, monkeypatch):
    dataset = nnUNetDatasetBlosc2(str(make_cases(tmp_path / "cases")))
    assert_nnunets(make_loader(dataset, patch, cut, transforms=nnunet_transforms(patch)), monkeypatch)


def test_batches_are_nnunets_with_an_ignore_label(tmp_path, monkeypatch):
    dataset = nnUNetDatasetBlosc2(str(make_cases(tmp_path / "cases", ignore=3)))
    loader = make_loader(dataset, (16, 16, 16), (24, 24, 24), ignore=3, probabilistic_oversampling=True)
    assert_nnunets(loader, monkeypatch, 10)


def test_batches_are_nnunets_in_a_cascade_of_numpy_files(tmp_path, monkeypatch):
    folder = make_cases(tmp_path / "cases", numpy=True)
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    for case in folder.glob("*.npz"):
        np.savez(earlier / case.name, seg=np.clip(np.load(case)["seg"][0], 0, None))
    dataset = nnUNetDatasetNumpy(str(folder), folder_with_segs_from_previous_stage=str(earlier))
    transforms = nnunet_transforms((16, 16, 16), cascade=True, probability=0)
    assert_nnunets(make_loader(dataset, (16, 16, 16), (24, 24, 24), transforms=transforms), monkeypatch)


def test_a_batch_is_that_of_its_seed_stream_and_number(tmp_path):
    dataset = nnUNetDatasetBlosc2(str(make_cases(tmp_path / "cases")))
    loader = make_loader(dataset, (16, 16, 16), (24, 24, 24), transforms=nnunet_transforms((16, 16, 16)))
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = Batches(loader, 1).make(5)["data"]
    assert torch.equal(Batches(loader, 1).make(5)["data"], first)
    others = Batches(loader, 2).make(5), Batches(loader, 1, (0,)).make(5), Batches(loader, 1).make(6)
    assert not any(torch.equal(other["data"], first) for other in others)
    # The process's own generators are left alone.
    assert (np.random.get_state()[1] == state).all() and torch.equal(torch.get_rng_state(), torch_state)


def test_a_case_that_cannot_be_read_is_named(tmp_path):
    folder = make_cases(tmp_path / "cases")
    for file in folder.glob("case_?.b2nd"):
        file.write_bytes(file.read_bytes()[:100])
    batches = Batches(make_loader(nnUNetDatasetBlosc2(str(folder)), (16, 16, 16), (24, 24, 24)), 1)
    with pytest.raises(TrainingError, match=r"^case case_\d cannot be read: .*"):
        batches.make(0)


class FailingTransform(ImageOnlyTransform):
    def _apply_to_image(self, img, **params):
        raise ValueError("made to fail")


def test_a_transform_that_fails_is_named_with_its_case_and_line(tmp_path):
    dataset = nnUNetDatasetBlosc2(str(make_cases(tmp_path / "cases")))
    loader = make_loader(dataset, (16, 16, 16), (24, 24, 24), transforms=ComposeTransforms([FailingTransform()]))
    words = r"^case case_\d, transform FailingTransform: ValueError: made to fail \(test_batches.py, line \d+\)$"
    with pytest.raises(TrainingError, match=words):
        Batches(loader, 1).make(0)
