"""Time and memory of every selective-scan backend; each must agree with the reference before it is timed.

    python benchmarks/selective_scan.py --threads 1 --lengths 4096 32768 262144
    python benchmarks/selective_scan.py --device cuda

Every measurement runs in a process of its own, so that peak memory is its own too: resident memory above the inputs on
the CPU, allocated memory above the inputs on CUDA. Seconds are the best of the repeats; `cpu_seconds` is processor
time over all threads, which other processes disturb less than the wall clock. `mambapy` (pip install mambapy) is
measured where it can be imported. Results are appended to a CSV file, one row per measurement, with versions and
hardware; a backend that does not run here gets no row but a line that says why.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from nnunet_ext.ops.selective_scan import backend_status, selective_scan

RESULTS = Path(__file__).parent / "results" / "selective_scan.csv"
# (batch, channels, length) of SegMamba's four stages at a patch of 128^3.
STAGES = [(1, 96, 64**3), (1, 192, 32**3), (1, 384, 16**3), (1, 768, 8**3)]
STATES = 16
GATE_LENGTH, GATE_TOLERANCE = 1000, 1e-5
# The reference's backward pass takes time and memory with the square of the length.
LONGEST_REFERENCE_BACKWARD = 4096


def arguments(batch: int, channels: int, length: int, device: str, dtype: torch.dtype = torch.float32):
    """Inputs distributed as in a freshly initialised SegMamba: step sizes of 0.001 to 0.1, rates 1 to 16."""
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g).to(device, dtype)  # noqa: E731
    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.arange(1, STATES + 1, device=device, dtype=torch.float32).repeat(channels, 1),
        "B": normal(batch, STATES, length),
        "C": normal(batch, STATES, length),
        "D": torch.ones(channels, device=device),
        "z": normal(batch, channels, length),
        "delta_bias": torch.empty(channels).uniform_(-6.9, -2.3, generator=g).to(device),
    }


def mambapy_scan(u, delta, A, B, C, D, z, delta_bias):
    """The same result by the parallel scan of the mambapy package, which keeps every state of every step."""
    from mambapy.pscan import pscan

    delta = torch.nn.functional.softplus(delta + delta_bias[:, None]).transpose(1, 2)  # (batch, length, channels)
    decay = torch.exp(delta[..., None] * A)
    states = pscan(decay, (delta * u.transpose(1, 2))[..., None] * B.transpose(1, 2)[:, :, None])
    y = (states @ C.transpose(1, 2)[..., None]).squeeze(-1) + D * u.transpose(1, 2)
    return y.transpose(1, 2) * torch.nn.functional.silu(z)


def function(backend: str, order: dict):
    if backend == "mambapy":
        return mambapy_scan
    return lambda **inputs: selective_scan(**inputs, delta_softplus=True, backend=backend, **order)


def gate(backend: str, device: str) -> float:
    """Largest relative error of output and gradients against the float64 reference; stops if it is too large."""
    inputs = arguments(1, 8, GATE_LENGTH, device)
    results = []
    for run, dtype in ((function(backend, {}), torch.float32), (function("reference", {}), torch.float64)):
        leaves = {k: v.to(dtype, copy=True).requires_grad_(True) for k, v in inputs.items()}
        out = run(**leaves)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves.values())])
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    if not error < GATE_TOLERANCE:
        raise SystemExit(
            f"{backend}: relative error {error:.2g} against the reference, above {GATE_TOLERANCE}; not timed"
        )
    return error


def measure(
    backend: str, shape: tuple[int, int, int], device: str, backward: bool, repeats: int, dtype: str, order: dict
):
    """Best seconds and peak memory of one backend at one shape."""
    error = gate(backend, device)
    inputs = arguments(*shape, device, getattr(torch, dtype))
    inputs = {k: v.requires_grad_(backward) for k, v in inputs.items()}
    run, outer = function(backend, order), torch.ones(shape, device=device, dtype=getattr(torch, dtype))
    run(**arguments(1, 16, 64, device, getattr(torch, dtype)))  # compiles, outside time and memory
    if backward:
        small = {k: v.requires_grad_(True) for k, v in arguments(1, 16, 64, device, getattr(torch, dtype)).items()}
        run(**small).sum().backward()

    before = _peak(device, reset=True)
    wall, cpu = [], []
    for _ in range(repeats):
        for x in inputs.values():
            x.grad = None
        started, started_cpu = time.perf_counter(), time.process_time()
        out = run(**inputs)
        if backward:
            out.backward(outer)
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
        del out
    return {"seconds": min(wall), "cpu_seconds": min(cpu), "peak_mb": _peak(device) - before, "relative_error": error}


def _peak(device: str, reset: bool = False) -> float:
    """Peak memory in MB since the last reset; at a reset, what is in use now."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return platform.processor()


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 32768, 262144], help="at (1, 96, length)")
    parser.add_argument("--stages", action="store_true", help="also SegMamba's four stages at 128^3")
    parser.add_argument("--backends", nargs="*", help="default: all that run here")
    parser.add_argument("--passes", nargs="*", choices=["forward", "both"], default=["forward", "both"])
    parser.add_argument("--orientation", choices=["forward", "reverse", "slices"], default="forward")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(measure(**json.loads(args.child))))
        return

    runs = dict(backend_status(args.device))
    runs["mambapy"] = None if importlib.util.find_spec("mambapy") else "not installed; pip install mambapy"
    shapes = [(1, 96, length) for length in args.lengths] + (STAGES if args.stages else [])
    common = {
        "device": args.device, "hardware": hardware(args.device), "threads": args.threads,
        "torch": torch.__version__, "numba": version("numba"),
        "triton": version("triton"), "mamba_ssm": version("mamba-ssm"),
    }  # fmt: skip
    for backend in args.backends or runs:
        if runs[backend] is not None:
            print(f"{backend}: {runs[backend]}", file=sys.stderr)
            continue
        for shape in shapes:
            for passes in args.passes:
                if backend == "reference" and passes == "both" and shape[2] > LONGEST_REFERENCE_BACKWARD:
                    continue
                # As many slices as SegMamba has at a cube of that many tokens.
                order = {"orientation": args.orientation, "num_slices": round(shape[2] ** (1 / 3))}
                order = {} if args.orientation == "forward" else order
                task = {
                    "backend": backend, "shape": shape, "device": args.device, "backward": passes == "both",
                    "repeats": args.repeats, "dtype": args.dtype, "order": order,
                }  # fmt: skip
                command = [sys.executable, __file__, "--threads", str(args.threads), "--child", json.dumps(task)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    print(f"{backend} {shape} {passes}: failed, see above", file=sys.stderr)
                    continue
                figures = {k: float(f"{v:.4g}") for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
                figures["load"] = round(os.getloadavg()[0], 1)
                row = {
                    "date": time.strftime("%Y-%m-%d"), "backend": backend, "passes": passes, "batch": shape[0],
                    "channels": shape[1], "states": STATES, "length": shape[2], "dtype": args.dtype,
                    "orientation": args.orientation, **figures, **common,
                }  # fmt: skip
                print(f"{backend:10} {passes:8} {shape}  {figures}", file=sys.stderr)
                append(args.out, row)


def append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
