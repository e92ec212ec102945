"""How fast and how exact is `nnunet_ext evaluate`? Correctness gate first, then CPU seconds of one thread.

    python benchmarks/hd95.py            # about ten minutes; writes benchmarks/results/hd95.csv
    python benchmarks/hd95.py --quick    # small volumes, prints only

Gate: HD95 equals MONAI's `compute_hausdorff_distance(percentile=95)` within 1e-5 (of the value, or mm below 1 mm: MONAI
computes in float32) on random blobs and on every timed volume, and the overlap counts equal nnU-Net's; otherwise
nothing is timed. Times are `time.process_time`, the least of
`--repeats`; volumes are synthetic: ellipsoids with ragged borders against a slightly (Dice 0.95) or strongly (0.89)
perturbed copy.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import SimpleITK as sitk
import torch
from monai.metrics import compute_hausdorff_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy import ndimage
from shared import write_rows

from nnunet_ext.evaluation import (
    compare_label_maps,
    evaluate_case,
    labels_from_values,
    surface_distances,
    surface_metrics,
)

RESULTS = Path(__file__).parent / "results" / "hd95.csv"
TOLERANCE = 1e-5
# Strength of the perturbation: the distances of a poor prediction take longer to find.
GOOD, POOR = 0.12, 0.3
COLUMNS = (
    "what", "implementation", "metrics", "shape", "labels", "cpu_seconds", "times_ours", "mean_dice", "mean_hd95_mm",
    "difference_to_monai", "date", "cpu", "python", "versions",
)  # fmt: skip


def phantom(shape: tuple[int, ...], count: int, error: float) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction, uint8 (z, y, x): `count` ellipsoids with ragged borders, and a perturbed copy."""
    rng = np.random.default_rng(0)
    maps = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    grid = (1, 1, 1) if count == 1 else (2, 3, 3)
    cells = [np.array(cell) for cell in np.ndindex(*grid)]
    size = np.array(shape) / grid
    for label, cell in enumerate((cells[i] for i in rng.permutation(len(cells))[:count]), start=1):
        centre = (cell + 0.5 + rng.uniform(-0.05, 0.05, 3)) * size
        radius = size * rng.uniform(0.28, 0.42, 3)
        low = np.maximum((cell * size).astype(int), 0)
        high = np.minimum(((cell + 1) * size).astype(int), shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[box]
        bumps = _bumps(high - low, rng) * 0.25
        for target, shift, extra in ((maps[0], 0.0, 0.0), (maps[1], error / 6, error)):
            ellipsoid = sum(
                (((axis - c - shift * r) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True)), bumps
            )
            target[box][ellipsoid + extra * _bumps(high - low, rng) < 1] = label
    return maps


def _bumps(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.standard_normal(np.maximum(shape // 8, 2)).astype(np.float32)
    return ndimage.zoom(coarse, shape / coarse.shape, order=1)


def monai_hd95(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], count: int) -> np.ndarray:
    """HD95 of labels 1 to `count`, making the one-hot masks included."""
    values = torch.arange(1, count + 1).reshape(1, -1, *[1] * reference.ndim)
    masks = [torch.from_numpy(m)[None, None] == values for m in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        result = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(spacing))
    return result[0].numpy()


def our_hd95(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], count: int) -> np.ndarray:
    distances = surface_distances(reference, prediction, spacing, range(1, count + 1))
    return np.array([surface_metrics(d)["HD95"] for d in distances.values()])


def difference_to_monai(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative above 1 mm."""
    return float((np.abs(ours - theirs) / np.maximum(1, ours)).max())


def gate(seeds: int = 200) -> float:
    """Largest difference to MONAI on random blobs: 2D and 3D, anisotropic, touching the edge."""
    worst = 0.0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        ndim = 2 if seed % 4 == 0 else 3
        shape, spacing = rng.integers(8, 28, ndim), tuple(rng.uniform(0.4, 5.0, ndim).tolist())
        field = ndimage.gaussian_filter(rng.standard_normal(shape), rng.uniform(0.5, 2))
        reference = (field > np.quantile(field, 0.7)).astype(np.uint8)
        field = field + rng.uniform(0, 0.5) * field.std() * rng.standard_normal(shape)
        prediction = np.roll((field > np.quantile(field, 0.7)).astype(np.uint8), rng.integers(0, 4), axis=0)
        ours, theirs = (f(reference, prediction, spacing, 1) for f in (our_hd95, monai_hd95))
        worst = max(worst, difference_to_monai(ours, theirs))
    return worst


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of `repeats` runs, and the last result."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        least = min(least, time.process_time() - start)
    return least, result


def time_arrays(shape: tuple[int, ...], count: int, error: float, repeats: int) -> list[dict[str, Any]]:
    """HD95 of two arrays in memory: ours against MONAI."""
    spacing = (1.5, 0.8, 0.8)
    reference, prediction = phantom(shape, count, error)
    ours, our_values = seconds(lambda: our_hd95(reference, prediction, spacing, count), repeats)
    theirs, their_values = seconds(lambda: monai_hd95(reference, prediction, spacing, count), max(1, repeats // 2))
    everything, metrics = seconds(
        lambda: compare_label_maps(reference, prediction, spacing, labels_from_values(range(1, count + 1))), repeats
    )
    difference = difference_to_monai(our_values, their_values)
    require(difference <= TOLERANCE, f"HD95 differs from MONAI's by {difference} at {shape}, {count} labels")
    common = {
        "what": "arrays in memory",
        "shape": "x".join(map(str, shape)),
        "labels": count,
        "mean_dice": np.mean([m["Dice"] for m in metrics.values()]),
        "mean_hd95_mm": our_values.mean(),
        "difference_to_monai": difference,
    }
    return [
        common | {"implementation": "nnunet_ext", "metrics": "HD95", "cpu_seconds": ours, "times_ours": 1.0},
        common | {"implementation": "nnunet_ext", "metrics": "all", "cpu_seconds": everything, "times_ours": ""},
        common | {"implementation": "monai", "metrics": "HD95", "cpu_seconds": theirs, "times_ours": theirs / ours},
    ]


def time_files(shape: tuple[int, ...], count: int, error: float, repeats: int) -> list[dict[str, Any]]:
    """All our metrics of two .nii.gz on disk against nnU-Net's Dice, IoU and counts of the same files."""
    labels = labels_from_values(range(1, count + 1))
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("reference.nii.gz", "prediction.nii.gz")]
        for file, array in zip(files, phantom(shape, count, error), strict=True):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((0.8, 0.8, 1.5))
            sitk.WriteImage(image, file)
        ours, result = seconds(lambda: evaluate_case(*files, labels), repeats)
        targets = list(range(1, count + 1))
        theirs, expected = seconds(lambda: compute_metrics(*files, SimpleITKIO(), targets), max(1, repeats // 2))
    for label in targets:
        for name, value in expected["metrics"][label].items():
            require(
                abs(result.metrics[label][name] - value) <= 1e-12, f"{name} of label {label} differs from nnU-Net's"
            )
    common = {
        "what": "two .nii.gz on disk",
        "shape": "x".join(map(str, shape)),
        "labels": count,
        "mean_dice": result.foreground_dice,
        "mean_hd95_mm": np.mean([m["HD95"] for m in result.metrics.values()]),
    }
    return [
        common | {"implementation": "nnunet_ext", "metrics": "all", "cpu_seconds": ours, "times_ours": 1.0},
        common
        | {
            "implementation": "nnunetv2",
            "metrics": "Dice IoU counts",
            "cpu_seconds": theirs,
            "times_ours": theirs / ours,
        },
    ]


def require(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"gate: {message}; nothing is timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes, no file written")
    parser.add_argument("--repeats", type=int, default=4, metavar="N", help="runs per time (half for others)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    worst = gate()
    require(worst <= TOLERANCE, f"HD95 of random blobs differs from MONAI's by {worst}")
    print(f"gate passed: largest difference to MONAI on random blobs {worst:.1e}", flush=True)
    cube = (64, 64, 64) if arguments.quick else (256, 256, 256)
    scan = (48, 64, 64) if arguments.quick else (300, 512, 512)
    rows = []
    cases: list[tuple[Callable[..., list[dict[str, Any]]], tuple[int, ...], int, float]] = [
        (time_arrays, cube, 14, GOOD),
        (time_arrays, cube, 14, POOR),
        (time_arrays, cube, 1, GOOD),
        (time_arrays, cube, 1, POOR),
        (time_files, scan, 14, GOOD),
        (time_files, scan, 14, POOR),
    ]
    for work, shape, count, error in cases:
        for row in work(shape, count, error, arguments.repeats):
            ratio = f"{row['times_ours']:.1f} x ours" if row["times_ours"] else ""
            print(
                f"{row['what']:20s} {row['shape']:12s} {row['labels']:3d} labels  "
                f"Dice {row['mean_dice']:.2f}  {row['implementation']:10s} "
                f"{row['metrics']:16s} {row['cpu_seconds']:7.3f} s  {ratio}",
                flush=True,
            )
            rows.append(row)
    if not arguments.quick:
        write_rows(
            RESULTS,
            COLUMNS,
            rows,
            ("nnunet-ext", "nnunetv2", "monai", "numpy", "scipy", "torch", "nibabel", "SimpleITK"),
        )


if __name__ == "__main__":
    main()
