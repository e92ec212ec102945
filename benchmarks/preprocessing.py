"""Preprocessing of one case: nnU-Net's DefaultPreprocessor against ExactFastPreprocessor, equal output first.

    python benchmarks/preprocessing.py                                    # a phantom of 256x256x120 with 14 labels
    python benchmarks/preprocessing.py --data .../Dataset905_SCDLV --plans nnUNetPlans.json --cases 3

Each preprocessor runs in a process of its own, so that peak memory is its own too; `cpu_seconds` is that of
`run_case_npy` without reading and writing. A row is written only if images agree within 1e-5 of their standard
deviation and at most one label in ten thousand differs (equal weights). Results are appended to a CSV file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from selective_scan import append, hardware, version

RESULTS = Path(__file__).parent / "results" / "preprocessing.csv"
PREPROCESSORS = ("DefaultPreprocessor", "ExactFastPreprocessor")
STOCK = {
    f"resampling_fn_{what}{suffix}": value
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
    for suffix, value in (
        ("", "resample_data_or_seg_to_shape"),
        ("_kwargs", {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}),
    )
}


def phantom() -> tuple[np.ndarray, np.ndarray, list[float]]:
    """120x256x256 voxels of 1.5x0.8x0.8 mm, smooth regions of 14 labels, a dark border to crop."""
    rng = np.random.default_rng(0)
    labels, best = np.zeros((120, 256, 256), np.int8), np.full((120, 256, 256), 0.35, np.float32)
    for label in range(1, 15):
        field = ndimage.zoom(rng.standard_normal((12, 16, 16)).astype(np.float32), (10, 16, 16), order=1)
        labels[field > best] = label
        best = np.maximum(best, field)
    image = rng.standard_normal(labels.shape).astype(np.float32) + labels
    image[:, :10] = 0
    labels[:, :10] = 0
    return image[None], labels[None].astype(np.float32), [1.5, 0.8, 0.8]


def phantom_plans(transpose: list[int]) -> tuple[dict, dict]:
    spacing = [1.5, 0.8, 0.8]
    wanted = [s * f for s, f in zip(spacing, (120 / 180, 256 / 205, 256 / 205), strict=True)]
    configuration = {
        "preprocessor_name": PREPROCESSORS[0],
        "spacing": [wanted[axis] for axis in transpose],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        **STOCK,
    }
    plans = {
        "dataset_name": "phantom",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": transpose,
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": {}},
        "label_manager": "LabelManager",
    }
    labels = {"background": 0, **{f"organ {k}": k for k in range(1, 15)}}
    return plans, {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def measure(preprocessor: str, task: dict) -> dict:
    """Run one case in this process."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.plans.preprocessor import ExactFastPreprocessor

    if task["case"] is None:
        plans, dataset = phantom_plans(task["transpose"])
        image, segmentation, spacing = phantom()
        properties: dict = {"spacing": spacing}
        manager = PlansManager(plans)
    else:
        plans, dataset = (json.loads(Path(task[name]).read_text()) for name in ("plans", "dataset"))
        manager = PlansManager(plans)
        reader = manager.image_reader_writer_class()
        image, properties = reader.read_images(task["case"]["images"])
        segmentation, _ = reader.read_seg(task["case"]["label"])
    configuration = manager.get_configuration(task["configuration"])
    chosen = {c.__name__: c for c in (DefaultPreprocessor, ExactFastPreprocessor)}[preprocessor](verbose=False)
    # The first call makes what is kept between cases, imports included.
    small = [slice(None), *(slice(0, 8) for _ in range(3))]
    try:
        chosen.run_case_npy(
            image[tuple(small)] + 1, segmentation[tuple(small)], dict(properties), manager, configuration, dataset
        )
    except (ValueError, ZeroDivisionError):  # eight voxels can be too few for a configuration
        pass
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _peak(), time.process_time()
    data, labels, _ = chosen.run_case_npy(image, segmentation, properties, manager, configuration, dataset)
    seconds = time.process_time() - started
    np.savez(task["output"], data=data, labels=labels)
    return {"cpu_seconds": round(seconds, 3), "peak_mb": round(_peak() - before), "shape": list(data.shape)}


def _peak() -> float:
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def tasks(args: argparse.Namespace):
    if args.data is None:
        for transpose in ([0, 1, 2], [2, 0, 1]):
            yield f"phantom {transpose}", {"case": None, "transpose": transpose, "configuration": "3d_fullres"}
        return
    dataset = json.loads((args.data / "dataset.json").read_text())
    ending = dataset["file_ending"]
    for label in sorted((args.data / "labelsTr").glob(f"*{ending}"))[: args.cases]:
        name = label.name.removesuffix(ending)
        images = [str(p) for p in sorted((args.data / "imagesTr").glob(f"{name}_????{ending}"))]
        yield (
            f"{args.data.name} {name} {args.configuration}",
            {
                "case": {"images": images, "label": str(label)},
                "plans": str(args.plans),
                "dataset": str(args.data / "dataset.json"),
                "configuration": args.configuration,
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a raw data set of nnU-Net (default: a phantom)")
    parser.add_argument("--plans", type=Path, help="its plans file")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], json.loads(args.child[1]))))
        return
    for name, task in tasks(args):
        with tempfile.TemporaryDirectory() as folder:
            found = {}
            for preprocessor in PREPROCESSORS:
                output = str(Path(folder) / f"{preprocessor}.npz")
                command = [sys.executable, __file__, "--child", preprocessor, json.dumps({**task, "output": output})]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[preprocessor] = (json.loads(done.stdout.splitlines()[-1]), dict(np.load(output)))
        (default, expected), (fast, result) = (found[p] for p in PREPROCESSORS)
        difference = float(np.abs(result["data"] - expected["data"]).max() / expected["data"].std())
        labels = float((result["labels"] != expected["labels"]).mean())
        if difference > 1e-5 or labels > 1e-4:
            raise SystemExit(f"{name}: images differ by {difference:.1e} SD, {labels:.1e} of the labels; not timed")
        row = {
            "date": time.strftime("%Y-%m-%d"), "case": name, "shape": "x".join(map(str, default["shape"])),
            "default_cpu_seconds": default["cpu_seconds"], "fast_cpu_seconds": fast["cpu_seconds"],
            "ratio": round(default["cpu_seconds"] / fast["cpu_seconds"], 1),
            "default_peak_mb": default["peak_mb"], "fast_peak_mb": fast["peak_mb"],
            "difference_sd": f"{difference:.1e}", "labels_differing": f"{labels:.1e}",
            "hardware": hardware("cpu"), "nnunetv2": version("nnunetv2"), "scipy": version("scipy"),
        }  # fmt: skip
        print(row)
        append(args.out, row)


if __name__ == "__main__":
    main()
