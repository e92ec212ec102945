"""`run.json`: what a training run was, kept beside its checkpoints for reports and for the methods section."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
from typing import Any

import torch

from nnunet_ext import __version__


def describe_software() -> dict[str, str]:
    """Versions of everything a result depends on."""
    packages = ("nnunetv2", "torch", "numpy", "batchgeneratorsv2")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"nnunet_ext": __version__, "python": platform.python_version(), **versions}


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, and the GPU where one is used."""
    hardware: dict[str, Any] = {"processor": _processor(), "cores": available_cores(), "device": device.type}
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return hardware


def available_cores() -> int:
    """Cores this process may run on: the allocation, not the node."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on the GPU where one is used, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts in kibibytes, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
