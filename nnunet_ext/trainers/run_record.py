"""`run.json`: what a training run was, kept beside its checkpoints for reports and for the methods section."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext import __version__
from nnunet_ext.files import read_json, write_json
from nnunet_ext.machine import available_cores, peak_resident_bytes, processor_name


def describe_software() -> dict[str, str | None]:
    """Versions of everything a result depends on, and the revision of a git checkout of this package."""
    packages = ("nnunetv2", "torch", "numpy", "batchgeneratorsv2")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"nnunet_ext": __version__, "git": git_revision(), "python": platform.python_version(), **versions}


def describe_environment() -> dict[str, str]:
    """This project's and nnU-Net's variables that are set: what else decides about a run."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(("NNUNET_EXT_", "nnUNet_"))}


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with `+changes` when its files differ; None without one."""
    folder = Path(__file__).parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # A site-packages folder inside somebody's repository is not a checkout of this package.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, and the GPU where one is used."""
    hardware: dict[str, Any] = {"processor": processor_name(), "cores": available_cores(), "device": device.type}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["gpus"] = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        hardware["cuda"] = torch.version.cuda
    return hardware


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak memory so far: allocated on the GPU where one is used, else resident in this process."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_resident_bytes()


def count_gmacs(network: nn.Module, in_channels: int, patch_size: Sequence[int], device: torch.device) -> float | None:
    """Multiply-adds of predicting one patch, in units of 1e9: those of convolutions and matrix products.

    The selective scan and everything elementwise are not counted, as in most papers. Nothing is computed: the network
    runs on tensors without data. None for a network whose work depends on its data.
    """
    training = network.training
    counter = FlopCounterMode(display=False)
    try:
        network.eval()
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
            network(torch.empty(1, in_channels, *patch_size, device=device))
    except Exception:  # whatever a network does, its training must not end here
        return None
    finally:
        network.train(training)
    return round(counter.get_total_flops() / 2e9, 3)


def add_validation(output_folder: str, seconds: float, cases: int) -> None:
    """Add to run.json how long the prediction of the fold's cases took, mirroring and export included."""
    file = Path(output_folder, "run.json")
    if file.is_file():
        write_json(file, {**read_json(file), "validation": {"seconds": round(seconds, 3), "cases": cases}})
