"""Prediction of a small folder: nnUNetv2_predict against nnunet_ext predict, equal labels first.

    python benchmarks/predict.py --model nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION --images imagesTs

CPU seconds are those of the whole command on the CPU, workers included, in one thread each; mirroring off unless --tta.
A row is written only if at most one label in a thousand differs in float32. bf16 rows tell the Dice of the labels
against those of float32. Results are appended to a CSV file.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from selective_scan import append, hardware, version

RESULTS = Path(__file__).parent / "results" / "predict.csv"
COMMANDS = {
    "nnUNetv2_predict": ["nnUNetv2_predict_from_modelfolder"],
    "nnunet_ext predict": ["nnunet_ext", "predict"],
    "nnunet_ext predict, bf16": ["nnunet_ext", "predict", "--precision", "bf16"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a trained model")
    parser.add_argument("--images", type=Path, required=True, help="images, named as in nnU-Net")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--tta", action="store_true", help="with mirroring")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    expected: dict[str, np.ndarray] = {}
    baseline = 0.0
    for name, command in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            words = [*command, "-m", args.model, "-i", args.images, "-o", folder, "-f", args.fold, "-device", "cpu"]
            words += [] if args.tta else ["--disable_tta"]
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(list(map(str, words)), env=environment, check=True, stdout=subprocess.DEVNULL)
            wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            found = {p.name: sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in Path(folder).glob("*.nii.gz")}
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if not expected:
            expected, baseline = found, seconds
        differing = np.mean([(found[case] != labels).mean() for case, labels in expected.items()])
        if "bf16" not in name and differing > 1e-3:
            raise SystemExit(f"{name}: {differing:.1e} of the labels differ; no row written")
        row = {
            "date": time.strftime("%Y-%m-%d"), "command": name, "model": args.model.name, "cases": len(found),
            "mirroring": args.tta, "cpu_seconds": round(seconds, 1), "ratio": round(baseline / seconds, 2),
            "wall_seconds": round(wall, 1), "labels_differing": f"{differing:.1e}",
            "dice_against_first": round(float(np.mean([dice(found[c], expected[c]) for c in expected])), 5),
            "hardware": hardware("cpu"), "nnunetv2": version("nnunetv2"), "torch": version("torch"),
        }  # fmt: skip
        print(row)
        append(args.out, row)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the labels of either."""
    labels = np.union1d(np.unique(a), np.unique(b))
    scores = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in labels if k]
    return float(np.mean(scores)) if scores else 1.0


if __name__ == "__main__":
    main()
