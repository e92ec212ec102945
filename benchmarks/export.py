"""Export of a prediction of many classes: nnU-Net's against the exact fast one, equal labels first.

    python benchmarks/export.py                                  # 117 classes, 100x160x160 to 150x240x240
    python benchmarks/export.py --classes 14 --grid 180 205 205 --image 120 256 256

Half-precision logits of noisy cells, one per class, are resized to the image and turned into labels. Each export runs
in a fresh process of one thread; CPU seconds are `time.process_time`, memory is what the largest resident size (VmHWM,
set back by clear_refs; Linux only) exceeds that before the export, logits not included. Before a row is written, every
voxel whose labels differ is looked at: interpolated in double precision, its two labels must be closer than nnU-Net's
half-precision result can tell. Results are appended to a CSV file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter, map_coordinates
from selective_scan import append, hardware, version

from nnunet_ext.inference.export import segmentation_of_logits

RESULTS = Path(__file__).parent / "results" / "export.csv"
EXPORTS = {
    "nnU-Net": lambda *args: convert_predicted_logits_to_segmentation_with_correct_shape(*args, num_threads_torch=1),
    "nnunet_ext": segmentation_of_logits,
}


def make_logits(classes: int, grid: tuple[int, ...]) -> np.ndarray:
    """(classes, *grid) float16: background, and the nearer to a class's centre the larger, with some smooth noise."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in grid), indexing="ij", sparse=True)
    noise = [gaussian_filter(rng.standard_normal(grid, dtype=np.float32), 2) for _ in range(4)]
    logits = np.empty((classes, *grid), np.float16)
    for c, centre in enumerate(rng.random((classes, len(grid)))):
        distance = np.sqrt(sum((axis - x) ** 2 for axis, x in zip(axes, centre, strict=True)))
        logits[c] = 10 - 40 * distance + np.roll(noise[c % 4], 7 * c, axis=c % 3)
    logits[0] = 6  # half of the image
    return logits


def case(classes: int, grid: list[int], image: list[int]):
    """What both exports are given beside the logits."""
    labels = {"background": 0, **{f"class_{c}": c for c in range(1, classes)}}
    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "spacing": [1.5, 1.5, 1.5], "architecture": {},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape", "resampling_fn_probabilities_kwargs": kwargs,
    }  # fmt: skip
    plans = PlansManager(
        {
            "dataset_name": "Dataset990_Cells", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
            "configurations": {"3d_fullres": configuration}, "label_manager": "LabelManager",
        }
    )  # fmt: skip
    properties = {
        "spacing": [1.5 * old / new for old, new in zip(grid, image, strict=True)], "shape_before_cropping": image,
        "shape_after_cropping_and_before_resampling": image, "bbox_used_for_cropping": [[0, n] for n in image],
    }  # fmt: skip
    return plans, plans.get_configuration("3d_fullres"), plans.get_label_manager({"labels": labels}), properties


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def export(name: str, classes: int, grid: list[int], image: list[int], out: str) -> dict[str, float]:
    """One export in this process; labels go to the file `out`."""
    small = [8, 8, 8]
    EXPORTS[name](torch.from_numpy(make_logits(3, tuple(small))), *case(3, small, [12, 12, 12]))  # warm up
    logits, rest = torch.from_numpy(make_logits(classes, tuple(grid))), case(classes, grid, image)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    labels = EXPORTS[name](logits, *rest)
    seconds = time.process_time() - start
    peak = status("VmHWM") - before
    np.save(out, labels)
    return {"cpu_seconds": round(seconds, 2), "peak_mb": round(peak / 1e6)}


def farthest(logits: np.ndarray, image: list[int], a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance between the logits of two differing labels, in units of half precision."""
    places = np.nonzero(a != b)
    if not len(places[0]):
        return 0.0
    scaled = [(p + 0.5) * old / new - 0.5 for p, old, new in zip(places, logits.shape[1:], image, strict=True)]
    values = []
    for labels in (a[places], b[places]):
        found = np.empty(len(labels))
        for c in np.unique(labels):
            own = labels == c
            at = [s[own] for s in scaled]
            found[own] = map_coordinates(logits[c].astype(np.float64), at, order=1, mode="nearest")
        values.append(found)
    units = np.spacing(np.maximum(np.abs(values[0]), np.abs(values[1])).astype(np.float16)).astype(np.float64)
    return float((np.abs(values[0] - values[1]) / units).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=117)
    parser.add_argument("--grid", type=int, nargs=3, default=[100, 160, 160], help="of the logits")
    parser.add_argument("--image", type=int, nargs=3, default=[150, 240, 240], help="of the labels")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one export, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(export(*json.loads(args.child))))
        return
    found, labels = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in EXPORTS:
            file = f"{folder}/{name}.npy"
            words = json.dumps([name, args.classes, args.grid, args.image, file])
            command = [sys.executable, "-W", "ignore", __file__, "--child", words]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name], labels[name] = json.loads(done.stdout.splitlines()[-1]), np.load(file)
            print(name, found[name], flush=True)
    expected, result = labels.values()
    differing = float((expected != result).mean())
    border = np.zeros(expected.shape, bool)
    for axis in range(3):
        border |= expected != np.roll(expected, 1, axis)
    units = farthest(make_logits(args.classes, tuple(args.grid)), args.image, expected, result)
    # Both are rounded to a half-precision number, each by half a unit at most.
    if units > 1:
        raise SystemExit(f"{differing:.1e} of the labels differ, by up to {units:.2f} units of half precision; no row")
    for name, values in found.items():
        row = {
            "date": time.strftime("%Y-%m-%d"), "export": name, "classes": args.classes,
            "grid": "x".join(map(str, args.grid)), "image": "x".join(map(str, args.image)), **values,
            "times_faster": round(found["nnU-Net"]["cpu_seconds"] / values["cpu_seconds"], 1),
            "times_less_memory": round(found["nnU-Net"]["peak_mb"] / values["peak_mb"], 1),
            "border_voxels": round(float(border.mean()), 3),
            "labels_differing": f"{differing:.1e}", "by_half_precision_units": round(units, 3),
            "hardware": hardware("cpu"), "nnunetv2": version("nnunetv2"), "torch": version("torch"),
        }  # fmt: skip
        print(row)
        append(args.out, row)


if __name__ == "__main__":
    main()
