"""SegMamba base: predicting one patch on the CPU, or one training step on a GPU.

    python benchmarks/segmamba.py --patch 128                 # float32, channels last and bfloat16, compared
    python benchmarks/segmamba.py --device cuda --patch 128   # forward, backward and step with every scan backend

On the CPU every variant's logits are compared with the plain float32 ones of the same weights (`--variants` chooses,
`plain` first); on CUDA one row per backend gives seconds per step (median of five after two) and peak memory. Results
are appended to a CSV file with versions and hardware.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from selective_scan import append, hardware, version

from nnunet_ext.architectures.segmamba import SegMamba
from nnunet_ext.ops.selective_scan import ENVIRONMENT_VARIABLE, backend_status

RESULTS = Path(__file__).parent / "results" / "segmamba.csv"
VARIANTS = ("plain", "channels_last", "bfloat16")
CHANNELS, CLASSES = 4, 4


def predict(patch: int, variants: list[str]):
    """One forward pass per variant: processor seconds, and the largest difference to the first one's logits."""
    torch.manual_seed(0)
    model = SegMamba(CHANNELS, CLASSES).eval()
    image, expected = torch.randn(1, CHANNELS, patch, patch, patch), None
    for variant in variants:
        if variant != "plain":
            model = model.to(memory_format=torch.channels_last_3d)
            image = image.to(memory_format=torch.channels_last_3d)
        half = torch.autocast("cpu", torch.bfloat16) if variant == "bfloat16" else contextlib.nullcontext()
        with torch.inference_mode(), half:
            # A small patch first: kernels are compiled outside the measurement.
            model(image[..., :32, :32, :32])
            started, started_cpu = time.perf_counter(), time.process_time()
            logits = model(image).float()
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
        expected = logits if expected is None else expected
        yield {
            "what": "forward", "variant": variant, "batch": 1, "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3), "peak_gb": "", "compared_with": variants[0],
            "difference": f"{(logits - expected).abs().max() / expected.abs().max():.2g}",
            "same_label": f"{(logits.argmax(1) == expected.argmax(1)).float().mean():.6f}",
        }  # fmt: skip


def training_steps(patch: int, batch: int):
    """Seconds and peak memory of a bfloat16 training step with every backend that runs."""
    for backend, reason in backend_status("cuda").items():
        if reason is not None or backend == "reference":
            print(f"{backend}: {reason or 'its backward pass is quadratic in the length'}", file=sys.stderr)
            continue
        os.environ[ENVIRONMENT_VARIABLE] = backend
        torch.manual_seed(0)
        model = SegMamba(CHANNELS, CLASSES).cuda().train()
        optimiser = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.99, nesterov=True)
        image = torch.randn(batch, CHANNELS, patch, patch, patch, device="cuda")
        labels = torch.randint(CLASSES, (batch, patch, patch, patch), device="cuda")
        torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(7):
            started = time.perf_counter()
            optimiser.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(image), labels)
            loss.backward()
            optimiser.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        yield {
            "what": "training step", "variant": backend, "batch": batch,
            "seconds": round(statistics.median(times[2:]), 4), "cpu_seconds": "",
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2), "compared_with": "", "difference": "",
            "same_label": "",
        }  # fmt: skip
        del model, optimiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--patch", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2, help="of the training step (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = predict(args.patch, args.variants) if args.device == "cpu" else training_steps(args.patch, args.batch)
    for row in rows:
        row = {
            "date": time.strftime("%Y-%m-%d"), "patch": args.patch, **row, "load": round(os.getloadavg()[0], 1),
            "hardware": hardware(args.device), "threads": args.threads, "torch": torch.__version__,
            "numba": version("numba"), "triton": version("triton"), "mamba_ssm": version("mamba-ssm"),
        }  # fmt: skip
        print(row, file=sys.stderr)
        append(args.out, row)


if __name__ == "__main__":
    main()
