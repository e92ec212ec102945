"""Time of every kernel of the causal convolution; each must agree with the written-out sum before it is timed.

    python benchmarks/causal_conv1d.py --device cuda
    python benchmarks/causal_conv1d.py --stages 2 3 --orientations forward

At SegMamba's stages (128^3, width 4, bias and SiLU), in the memory its layer passes: half of a projection's output.
Seconds are the best of the repeats, on CUDA means of ten calls. Results are appended to a CSV file, one row per
measurement, with versions and hardware; a kernel that does not run here gets a line that says why.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from selective_scan import STAGES, append, hardware, version

from nnunet_ext.ops.causal_conv1d import backend_status, causal_conv1d
from nnunet_ext.ops.causal_conv1d.reference import reference
from nnunet_ext.ops.order import ORIENTATIONS, reorder, restore

RESULTS = Path(__file__).parent / "results" / "causal_conv1d.csv"
WIDTH = 4
GATE_LENGTH, GATE_SLICES, GATE_TOLERANCE = 1000, 10, 1e-5


def arguments(batch: int, channels: int, length: int, device: str, dtype: torch.dtype = torch.float32):
    """x, weight and bias; x is the first half of a tensor of twice the channels."""
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=g).to(device, dtype)  # noqa: E731
    return normal(batch, 2 * channels, length)[:, :channels], normal(channels, WIDTH), normal(channels)


def run(function, inputs, outer):
    """Output and gradients; only the output where `outer` is None."""
    leaves = [x.detach().requires_grad_(outer is not None) for x in inputs]
    out = function(*leaves)
    return [out] if outer is None else [out.detach(), *torch.autograd.grad(out, leaves, outer)]


def of(backend: str, orientation: str, slices: int):
    """The convolution of x, weight and bias by one backend."""
    return lambda *x: causal_conv1d(*x, True, orientation=orientation, num_slices=slices, backend=backend)


def gate(kernel: str, orientation: str, device: str) -> float:
    """Largest relative error of output and gradients against the float64 sum; stops if it is too large."""

    def written_out(x, weight, bias):
        y = reference(reorder(x, orientation, GATE_SLICES), weight, bias, True)
        return restore(y, orientation, GATE_SLICES)

    inputs = arguments(2, 8, GATE_LENGTH, device)
    outer = torch.linspace(-1, 1, inputs[0].numel(), device=device).reshape(inputs[0].shape)
    results = run(of(kernel, orientation, GATE_SLICES), inputs, outer)
    expected = run(written_out, [x.double() for x in inputs], outer.double())
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(results, expected, strict=True))
    if not error < GATE_TOLERANCE:
        raise SystemExit(f"{kernel}: relative error {error:.2g}, above {GATE_TOLERANCE}; not timed")
    return error


def measure(kernel: str, shape, orientation: str, backward: bool, device: str, dtype: torch.dtype, repeats: int):
    """Best seconds of one call, forward or forward and backward."""
    slices, calls = round(shape[2] ** (1 / 3)), 10 if device == "cuda" else 1
    inputs = arguments(*shape, device, dtype)
    outer = torch.ones(shape, device=device, dtype=dtype) if backward else None
    wall, cpu = [], []
    for _ in range(repeats + 1):  # the first compiles
        started, started_cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            run(of(kernel, orientation, slices), inputs, outer)
        if device == "cuda":
            torch.cuda.synchronize()
        wall.append((time.perf_counter() - started) / calls)
        cpu.append((time.process_time() - started_cpu) / calls)
    return {"seconds": min(wall[1:]), "cpu_seconds": min(cpu[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--stages", type=int, nargs="*", default=[0, 1, 2, 3], help="of SegMamba at 128^3")
    parser.add_argument("--orientations", nargs="*", choices=ORIENTATIONS, default=ORIENTATIONS)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # The gate is float32's: PyTorch's convolution would fail it in TF32.
    torch.backends.cudnn.allow_tf32 = False
    common = {
        "device": args.device, "hardware": hardware(args.device), "threads": args.threads, "torch": torch.__version__,
        "triton": version("triton"), "numba": version("numba"), "causal_conv1d": version("causal-conv1d"),
    }  # fmt: skip
    for kernel, reason in backend_status(args.device).items():
        if reason is not None:
            print(f"{kernel}: {reason}", file=sys.stderr)
            continue
        for orientation in args.orientations:
            error = gate(kernel, orientation, args.device)
            for shape in (STAGES[stage] for stage in args.stages):
                for passes in ("forward", "both"):
                    figures = measure(
                        kernel,
                        shape,
                        orientation,
                        passes == "both",
                        args.device,
                        getattr(torch, args.dtype),
                        args.repeats,
                    )
                    row = {
                        "date": time.strftime("%Y-%m-%d"), "kernel": kernel, "passes": passes, "batch": shape[0],
                        "channels": shape[1], "length": shape[2], "width": WIDTH, "dtype": args.dtype,
                        "orientation": orientation, **{k: float(f"{v:.4g}") for k, v in figures.items()},
                        "relative_error": float(f"{error:.2g}"), "load": round(os.getloadavg()[0], 1), **common,
                    }  # fmt: skip
                    print(f"{kernel:14} {passes:8} {orientation:8} {shape}  {figures}", file=sys.stderr)
                    append(args.out, row)


if __name__ == "__main__":
    main()
