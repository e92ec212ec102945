"""Memory of a training step: the planners' estimate against what a step really takes.

    python benchmarks/memory.py                     # on the CPU, single precision, one thread
    python benchmarks/memory.py --device cuda       # on a GPU, half precision, as nnU-Net trains
    python benchmarks/memory.py --only segmamba     # these rows alone

Every row runs in a fresh process. On the CPU the real figure is the growth of the largest resident size (VmHWM, set
back by clear_refs; Linux only) over what was resident before the network was built, during two steps with the
trainer's kind of optimiser: in the second its state exists. A step of a tiny network of the same kind comes first, so
that libraries, compiled kernels and scratch memory are there already. glibc is told to give freed memory back at once
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_); otherwise its peak is of memory held, not of memory used. On a GPU it
is torch.cuda.max_memory_allocated, and beside it what the driver says is taken, context and cached blocks included.
Both run the step of the trainer.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from selective_scan import append, hardware, version
from torch import Tensor, nn

from nnunet_ext import models
from nnunet_ext.plans.adapted import Adapter, Planned
from nnunet_ext.plans.constructor import parse_settings
from nnunet_ext.plans.estimate import dice_ce, estimate
from nnunet_ext.plans.memory import StepMemory, on_gpu, training_step_memory
from nnunet_ext.plans.network import arguments_for_patch

RESULTS = Path(__file__).parent / "results" / "memory.csv"
CHANNELS, CLASSES = 1, 3
PLAIN = "nnunet"
# Preset, image with batch (tiny and two real ones) on the CPU, and on a GPU.
ROWS: dict[str, tuple[str, Sequence[Sequence[int]], Sequence[Sequence[int]]]] = {
    PLAIN: ("", [(1, 16, 16, 16), (2, 32, 64, 64), (2, 64, 96, 96)], [(1, 32, 32, 32), (2, 128, 128, 128)]),
    "medsegdiff": ("tiny", [(1, 16, 16, 16), (2, 32, 64, 64), (2, 64, 96, 64)], [(1, 32, 32, 32), (2, 96, 96, 96)]),
    "sam_med3d": ("tiny", [(1, 16, 16, 16), (2, 64, 64, 64), (4, 96, 96, 96)], [(1, 32, 32, 32), (2, 128, 128, 128)]),
    "segmamba": ("tiny", [(1, 32, 32, 32), (2, 32, 64, 64), (1, 64, 96, 96)], [(1, 32, 32, 32), (2, 96, 96, 96)]),
    "unetrpp": ("tiny", [(1, 16, 16, 16), (2, 32, 64, 64), (2, 64, 96, 96)], [(1, 32, 32, 32), (2, 128, 128, 128)]),
    "universeg": ("tiny", [(1, 64, 64), (4, 64, 64), (8, 64, 64)], [(1, 64, 64), (8, 128, 128)]),
}  # fmt: skip
# Networks by their paths, with what is set besides: `nnunet_ext plan --network`.
MONAI = "monai.networks.nets."
ADAPTED = {
    MONAI + "BasicUNet": "features=[8,16,32,64,64,8]",
    MONAI + "SegResNet": "",
    MONAI + "MedNeXt": "init_filters=8 deep_supervision=True",
    MONAI + "SwinUNETR": "feature_size=12",
    MONAI + "UNETR": "feature_size=8 hidden_size=192 mlp_dim=384 num_heads=6",
    MONAI + "DynUNet": "filters=[8,16,32,64] deep_supervision=True",
}
ROWS |= {
    path: (settings, [(1, 32, 32, 32), (2, 32, 64, 64), (2, 40, 96, 80)], [(1, 32, 32, 32), (2, 96, 96, 96)])
    for path, settings in ADAPTED.items()
}


def row(model: str) -> models.Model:
    """Of a model, or of a network by its path, which may have several heads."""
    return models.find("adapted" if model in ADAPTED else model)


def arguments_of(model: str, size: str, patch: Sequence[int]) -> dict[str, Any]:
    stages = max(2, int(math.log2(min(patch) / 4)) + 1)
    strides = [[1] * len(patch)] + [[2] * len(patch)] * (stages - 1)
    if model in ADAPTED:
        strides = strides[:4]
        unet = {"features_per_stage": [8, 16, 32, 64], "strides": strides, "kernel_sizes": [[3] * len(patch)] * 4}
        planned = Planned(tuple(patch), (1.0,) * len(patch), {"arch_kwargs": unet})
        settings = parse_settings(ADAPTED[model].split())
        return Adapter(model, settings, CHANNELS, CLASSES, [planned]).arguments(patch, strides)
    if model != PLAIN:
        return arguments_for_patch(model, size, list(patch), strides)
    return {
        "n_stages": stages, "features_per_stage": [16, 32, 64, 128, 160, 160][:stages],
        "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": [[3, 3, 3]] * stages, "strides": strides,
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip


def build(model: str, arguments: dict[str, Any]) -> nn.Module:
    if model == PLAIN:
        path, loaded = (
            "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            ("conv_op", "norm_op", "nonlin"),
        )
        return get_network_from_plans(path, arguments, loaded, CHANNELS, CLASSES, False, True)
    return row(model).build(CHANNELS, CLASSES, model in ADAPTED or row(model).deep_supervision, arguments)


def step(model: str, network: nn.Module, image: Tensor) -> Tensor:
    """The loss of the step that the trainer runs."""
    if model == PLAIN:
        return dice_ce(outputs := network(image), [o.new_zeros(len(o), 1, *o.shape[2:]) for o in outputs])
    training = models.load(row(model).step)
    loss = dice_ce if row(model).loss is None else models.load(row(model).loss)
    return training.step(network, training.example(network, image, CLASSES), loss)


def estimated(model: str, arguments: dict[str, Any], shape: Sequence[int], half: bool) -> StepMemory:
    batch, *patch = shape
    if model != PLAIN:
        model = dataclasses.replace(row(model), deep_supervision=model in ADAPTED or row(model).deep_supervision)
        return estimate(model, arguments, CHANNELS, CLASSES, patch, batch, half=half)
    shape = (batch, CHANNELS, *patch)
    one = functools.partial(step, model)
    return training_step_memory(lambda: build(model, arguments), shape, one, optimiser_slots=1, half=half)


def steps(model: str, arguments: dict[str, Any], shape: Sequence[int], device: str) -> None:
    """Build a network and train it for two steps."""
    slots = 1 if model == PLAIN else row(model).optimiser_slots
    with torch.device(device):  # where the step makes its targets too
        network = build(model, arguments).train().to(device)
        image = torch.zeros(shape[0], CHANNELS, *shape[1:])
        kind = torch.optim.AdamW if slots == 2 else torch.optim.SGD
        options = {} if kind is torch.optim.AdamW else {"momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
        optimiser = kind([p for p in network.parameters() if p.requires_grad], lr=1e-3, **options)
        for _ in range(2):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.float16) if device == "cuda" else nullcontext():
                loss = step(model, network, image)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
            optimiser.step()


def status(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def measure(model: str, shape: Sequence[int], device: str) -> dict[str, Any]:
    """Estimate and real figure of one row, in this process."""
    size, on_cpu, on_cuda = ROWS[model]
    size = "base" if device == "cuda" and size and model not in ADAPTED else size
    tiny = (on_cuda if device == "cuda" else on_cpu)[0]
    steps(model, arguments_of(model, size, tiny[1:]), tiny, device)
    arguments = arguments_of(model, size, shape[1:])
    start = time.process_time()
    memory = estimated(model, arguments, shape, device == "cuda")
    seconds = time.process_time() - start
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps(model, arguments, shape, device)
        free, total = torch.cuda.mem_get_info()
        real, taken = torch.cuda.max_memory_allocated() - before, total - free
    else:
        before, taken = status("VmRSS"), 0
        Path("/proc/self/clear_refs").write_text("5")
        steps(model, arguments, shape, device)
        real = status("VmHWM") - before
    return {
        "model": model, "preset": size, "batch": shape[0], "patch": "x".join(map(str, shape[1:])),
        "precision": "fp16" if device == "cuda" else "fp32", "estimated_mb": round(memory.total / 1e6, 1),
        "measured_mb": round(real / 1e6, 1), "ratio": round(memory.total / real, 3),
        "estimated_on_gpu_mb": round(on_gpu(memory.total) / 1e6) if device == "cuda" else "",
        "taken_on_gpu_mb": round(taken / 1e6) if device == "cuda" else "", "estimate_cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # one row, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        model, shape = json.loads(args.child)
        print(json.dumps(measure(model, shape, args.device)))
        return
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    for model in args.only:
        for shape in ROWS[model][2 if args.device == "cuda" else 1][1:]:
            command = [sys.executable, __file__, "--device", args.device, "--child", json.dumps([model, shape])]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            row = {
                "date": time.strftime("%Y-%m-%d"), **json.loads(done.stdout.splitlines()[-1]),
                "hardware": hardware(args.device), "torch": version("torch"), "nnunetv2": version("nnunetv2"),
            }  # fmt: skip
            print(row, flush=True)
            append(args.out, row)


if __name__ == "__main__":
    main()
