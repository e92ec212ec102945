"""Prediction with torch and with onnxruntime: equal labels first, then seconds and memory on one core.

    nnunet_ext export-model -m nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION -o model.zip --onnx
    nnunet_ext import-model model.zip -o models
    python benchmarks/onnx_runtime.py --model models/DATASET/TRAINER__PLANS__CONFIGURATION --images imagesTs

CPU seconds and peak memory are those of the whole command, imports too, in one thread. A row is written only if at most
one label in ten thousand differs: logits are summed in half precision, where two classes can be equal. Results are
appended to a CSV file. (Not called onnx.py, which Python would import in the place of the package.)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from selective_scan import append, hardware, version

from nnunet_ext.image_files import read_values

RESULTS = Path(__file__).parent / "results" / "onnx.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model with ONNX files")
    parser.add_argument("--images", type=Path, required=True, help="images, named as in nnU-Net")
    parser.add_argument("--folds", nargs="+", default=["0"])
    parser.add_argument("--tta", action="store_true", help="with mirroring")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    expected: dict[str, np.ndarray] = {}
    for runtime in ("torch", "onnxruntime"):
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "nnunet_ext", "predict", "-m", args.model, "-i", args.images, "-o", folder]
            words += ["-f", *args.folds, "--runtime", runtime, "--disable_progress_bar", *["--disable_tta"][args.tta :]]
            seconds, megabytes = measured(list(map(str, words)))
            found = {path.name: read_values(path) for path in sorted(Path(folder).glob("*.*"))
                     if path.suffix != ".json"}  # fmt: skip
        expected = expected or found
        differing = sum(int((found[case] != labels).sum()) for case, labels in expected.items())
        voxels = sum(labels.size for labels in expected.values())
        if not expected or differing > 1e-4 * voxels:
            raise SystemExit(f"{runtime}: {differing} of {voxels} labels differ; no row written")
        row = {
            "date": time.strftime("%Y-%m-%d"), "runtime": runtime, "dataset": args.model.parent.name,
            "model": args.model.name, "cases": len(found), "mirroring": args.tta, "labels": voxels,
            "labels_differing": differing,
            "cpu_seconds": round(seconds, 1), "peak_mb": megabytes,
            "hardware": hardware("cpu"), "torch": version("torch"), "onnxruntime": version("onnxruntime"),
        }  # fmt: skip
        print(row)
        append(args.out, row)


def measured(words: list[str]) -> tuple[float, int]:
    """CPU seconds and peak memory in MB of a command in one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        said.seek(0)
        text = said.read()
    if status:
        raise SystemExit(text)
    return used.ru_utime + used.ru_stime, used.ru_maxrss // 1000


if __name__ == "__main__":
    main()
