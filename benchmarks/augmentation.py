"""Augmentation: batchgeneratorsv2's transforms as nnU-Net composes them, against the same in this package's kernels.

    python benchmarks/augmentation.py                       # four patches, 60 samples each
    python benchmarks/augmentation.py --samples 20 --patches 4x128x128x128

Both get the same samples and, from the same seeds, draw the same parameters, so that a pair differs in nothing but the
computation. Before the clock starts, every transform, made likelier than in training, is compared on patches of full
size: labels equal, images to 1e-5 of their range. Times are CPU seconds of one thread per sample
(`time.process_time`), each the mean over the samples; a sample lies in memory as nnU-Net's loader cuts it, for the
kernels too. Results are appended to a CSV file.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.ndimage import zoom
from selective_scan import append, hardware, version

from nnunet_ext.augmentation.convert import convert
from nnunet_ext.augmentation.randomness import Random

# ruff: noqa: NPY002 (batchgeneratorsv2 draws from the global generator)

RESULTS = Path(__file__).parent / "results" / "augmentation.csv"
PATCHES = ("4x128x128x128", "1x128x128x128", "1x20x320x256", "1x512x512")
LABELS = 4


def transforms(patch: tuple[int, ...]) -> tuple[ComposeTransforms, tuple[int, ...]]:
    """nnU-Net's training transforms for a patch, and the size its loader cuts for it, as its trainer decides."""
    dummy_2d = len(patch) == 3 and max(patch) / patch[0] > 3
    if len(patch) == 2:
        angle = 15 if max(patch) / min(patch) > 1.5 else 180
        mirrored: tuple[int, ...] = (0, 1)
    else:
        angle, mirrored = 180 if dummy_2d else 30, (0, 1, 2)
    rotation = (-angle / 360 * 2 * np.pi, angle / 360 * 2 * np.pi)
    size = get_patch_size(np.array(patch), rotation, rotation, rotation, (0.85, 1.25))
    if dummy_2d:
        size[0] = patch[0]
    scales = [[1 / 2**level] * len(patch) for level in range(5)]
    if dummy_2d:
        scales = [[1.0, *scale[1:]] for scale in scales]
    composed = nnUNetTrainer.get_training_transforms(
        patch, rotation, scales, mirrored, dummy_2d, [False] * 4, False, list(range(1, LABELS)), None, None
    )
    return composed, tuple(int(n) for n in size)


def sample(channels: int, size: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    """Noise around smooth structures of four labels."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal([max(2, n // 24 + 1) for n in size])
    smooth = zoom(coarse, [n / c for n, c in zip(size, coarse.shape, strict=True)], order=1)
    labels = np.digitize(smooth, np.quantile(smooth, [0.6, 0.8, 0.92])).astype(np.int16)
    image = rng.standard_normal((channels, *size), dtype=np.float32) + labels
    return {"image": torch.from_numpy(image.astype(np.float32)), "segmentation": torch.from_numpy(labels[None])}


def cloned(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in batch.items()}


def seconds(function, batch) -> tuple[float, dict]:
    batch = cloned(batch)
    start = time.process_time()
    result = function(batch)
    return time.process_time() - start, result


def both(composed: ComposeTransforms, own, batch, seed: int):
    """CPU seconds and result of the reference and of the kernels for one seed."""

    def reference(batch):
        np.random.seed(seed)
        torch.manual_seed(seed)
        return composed(**batch)

    return seconds(reference, batch), seconds(lambda batch: own(batch, Random(seed, seed)), batch)


def gate(composed: ComposeTransforms, batch) -> tuple[float, int]:
    """The largest difference of images, in their range, and of labels, when nearly every transform is applied."""
    likelier = copy.deepcopy(composed)
    for transform in likelier.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 0.8
        if hasattr(transform, "p_rotation"):
            transform.p_rotation = transform.p_scaling = 0.8
    own, worst, differing = convert(copy.deepcopy(likelier)), 0.0, 0
    for seed in range(3):
        (_, expected), (_, found) = both(likelier, own, batch, seed)
        extent = (expected["image"].max() - expected["image"].min()).item()
        worst = max(worst, (expected["image"] - found["image"]).abs().max().item() / extent)
        pairs = zip(expected["segmentation"], found["segmentation"], strict=True)
        differing += sum(int((a != b).sum()) for a, b in pairs)
    return worst, differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", nargs="+", default=PATCHES, help="CHANNELSxPATCH")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for text in args.patches:
        channels, *patch = map(int, text.split("x"))
        composed, size = transforms(tuple(patch))
        batch = sample(channels, size, seed=0)
        worst, differing = gate(composed, batch)
        if worst > 1e-5 or differing:
            raise SystemExit(f"{text}: images differ by {worst:.1e} of their range, {differing} labels differ; no row")
        own = convert(copy.deepcopy(composed))
        times = np.zeros((args.samples, 2))
        for seed in range(args.samples):
            times[seed] = [found[0] for found in both(composed, own, batch, 100 + seed)]
        reference, kernels = times.mean(axis=0)
        row = {
            "date": time.strftime("%Y-%m-%d"), "patch": text, "cut": "x".join(map(str, size)), "samples": args.samples,
            "nnunet_cpu_seconds": round(reference, 4), "cpu_seconds": round(kernels, 4),
            "share": round(kernels / reference, 3), "images_differ_by": f"{worst:.1e}", "labels_differing": differing,
            "hardware": hardware("cpu"), "batchgeneratorsv2": version("batchgeneratorsv2"),
            "nnunetv2": version("nnunetv2"), "torch": version("torch"), "numba": version("numba"),
        }  # fmt: skip
        print(row)
        append(args.out, row)


if __name__ == "__main__":
    main()
