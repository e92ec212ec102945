"""STAPLE of ten samples: ours by vote patterns against SimpleITK, in CPU seconds of one thread.

First the gate: on small ensembles of every kind, and on each timed one, labels must equal those of SimpleITK's
STAPLEImageFilter (masks) or MultiLabelSTAPLEImageFilter, and the probabilities of masks must agree to 1e-6.

    python benchmarks/staple.py            # writes benchmarks/results/staple.csv, minutes
    python benchmarks/staple.py --quick    # small volumes, no file written

The samples are what a sampler gives for one image: the same structures with borders that wander by a voxel or two.
"disputed" is the share of voxels on which they do not all agree. Dice is against the truth the samples were made from.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from shared import write_rows

from nnunet_ext.diffusion.fusion import Consensus, majority, staple

RESULTS = Path(__file__).parent / "results" / "staple.csv"
SAMPLES = 10
UNDECIDED = 255
COLUMNS = (
    "what", "implementation", "shape", "samples", "labels", "disputed", "patterns", "iterations", "cpu_seconds",
    "times_ours", "equal_labels", "mean_dice", "date", "cpu", "python", "versions",
)  # fmt: skip


def ensemble(shape: tuple[int, ...], samples: int, labels: int, noise: float, seed: int) -> tuple[np.ndarray, ...]:
    """Truth (*shape) and samples (samples, *shape), uint8: smooth structures on a background, borders that wander."""
    rng = np.random.default_rng(seed)

    def smooth(voxels: int) -> np.ndarray:
        """A standard normal field for each label, with details of about `voxels` voxels."""
        coarse = rng.standard_normal((labels, *(max(2, n // voxels) for n in shape))).astype(np.float32)
        zoom = [1, *(n / m for n, m in zip(shape, coarse.shape[1:], strict=True))]
        return ndimage.zoom(coarse, zoom, order=1)

    fields = smooth(max(4, shape[0] // 6))
    fields[0] += 1.0 if labels == 2 else 1.6
    votes = np.stack([(fields + noise * smooth(4)).argmax(0) for _ in range(samples)])
    return fields.argmax(0).astype(np.uint8), votes.astype(np.uint8)


def by_simpleitk(images: list[sitk.Image], labels: int) -> np.ndarray:
    """Probabilities of the foreground for masks, else labels with `UNDECIDED` where ITK cannot decide."""
    if labels == 2:
        itk = sitk.STAPLEImageFilter()
        itk.SetForegroundValue(1)
    else:
        itk = sitk.MultiLabelSTAPLEImageFilter()
        itk.SetLabelForUndecidedPixels(UNDECIDED)
    return sitk.GetArrayFromImage(itk.Execute(images))


def equal_labels(ours: Consensus, theirs: np.ndarray, labels: int) -> float:
    """Share of voxels with the same label; 0 where the probabilities of masks differ by more than 1e-6."""
    if labels == 2:
        close = np.abs(ours.probabilities(2)[1] - theirs).max() <= 1e-6
        return float(((theirs > 0.5) == ours.labels).mean()) if close else 0.0
    return float((theirs == ours.labels).mean())


def gate() -> int:
    """Check ensembles of 2 to 10 samples and 2 to 6 labels, from nearly equal to nearly random; return their number."""
    checked = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels, samples = int(rng.integers(2, 7)), int(rng.integers(2, SAMPLES + 1))
        _, votes = ensemble((16, 18, 20), samples, labels, float(rng.uniform(0.1, 1.0)), seed)
        theirs = by_simpleitk([sitk.GetImageFromArray(vote) for vote in votes], labels)
        share = equal_labels(staple(votes, undecided=UNDECIDED), theirs, labels)
        require(share == 1, f"{samples} samples of {labels} labels (seed {seed}): {share:.6f} of the labels are equal")
        checked += 1
    return checked


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least CPU seconds of `repeats` runs, and the last result."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        least = min(least, time.process_time() - start)
    return least, result


def mean_dice(truth: np.ndarray, found: np.ndarray, labels: int) -> float:
    both = [((truth == k) & (found == k)).sum() / ((truth == k).sum() + (found == k).sum()) for k in range(1, labels)]
    return 2 * float(np.mean(both))


def timed(what: str, shape: tuple[int, ...], labels: int, noise: float, repeats: int) -> list[dict[str, Any]]:
    """Rows of ours, SimpleITK's and the majority vote for one ensemble."""
    truth, votes = ensemble(shape, SAMPLES, labels, noise, seed=0)
    images = [sitk.GetImageFromArray(vote) for vote in votes]
    ours, found = seconds(lambda: staple(votes, undecided=UNDECIDED), repeats)
    theirs, expected = seconds(lambda: by_simpleitk(images, labels), 1)
    voting, winner = seconds(lambda: majority(votes), repeats)
    share = equal_labels(found, expected, labels)
    require(share >= 0.9999, f"{what}: {share:.6f} of the labels are equal")
    common = {
        "what": what,
        "shape": "x".join(map(str, shape)),
        "samples": SAMPLES,
        "labels": labels,
        "disputed": len(found.patterns.disputed) / truth.size,
        "patterns": len(found.patterns.counts),
        "equal_labels": share,
    }
    expected = expected > 0.5 if labels == 2 else expected
    rows = (
        ("nnunet_ext", ours, found.labels, found.iterations),
        ("SimpleITK", theirs, expected, ""),
        ("nnunet_ext majority", voting, winner, ""),
    )
    return [
        common
        | {
            "implementation": name,
            "cpu_seconds": cpu,
            "times_ours": cpu / ours,
            "mean_dice": mean_dice(truth, labels_found, labels),
            "iterations": iterations,
        }
        for name, cpu, labels_found, iterations in rows
    ]


def require(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"gate: {message}; nothing is timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes, no file written")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of ours per time (SimpleITK's: one)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    print(f"gate passed: labels of {gate()} ensembles equal SimpleITK's", flush=True)
    cube = (48, 48, 48) if arguments.quick else (128, 128, 128)
    rows = []
    for what, labels, noise in (
        ("masks", 2, 0.06),
        ("4 labels", 4, 0.06),
        ("14 labels", 14, 0.06),
        ("14 labels, noisy", 14, 0.3),
    ):
        for row in timed(what, cube, labels, noise, arguments.repeats):
            print(
                f"{row['what']:17s} {row['shape']}  {row['implementation']:20s} {row['cpu_seconds']:7.3f} s  "
                f"{row['times_ours']:6.1f} x ours  disputed {100 * row['disputed']:4.1f} %, "
                f"{row['patterns']} patterns, equal labels {row['equal_labels']:.6f}, Dice {row['mean_dice']:.4f}",
                flush=True,
            )
            rows.append(row)
    if not arguments.quick:
        write_rows(RESULTS, COLUMNS, rows, ("nnunet-ext", "numpy", "scipy", "SimpleITK"))


if __name__ == "__main__":
    main()
