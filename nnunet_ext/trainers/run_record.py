"""`run.json`: what a training run was, kept beside its checkpoints for reports and for the methods section."""

from __future__ import annotations

import datetime
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
from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, write_json
from nnunet_ext.machine import available_cores, peak_resident_bytes, processor_name

# Settings whose change in the middle of a training makes it another one.
_DECISIVE = ("epochs", "iterations", "batch_size", "patch_size", "precision", "learning_rate")


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


def continued(
    record: dict[str, Any], before: dict[str, Any] | None, epoch: int, rates: Sequence[float]
) -> tuple[dict[str, Any], str | None]:
    """The record with `history`, an entry for every start and resume; and what must be said about a resume.

    Args:
        record: of this run, with `settings` and `software`.
        before: what run.json said when a checkpoint was continued; None for a training that begins.
        epoch: the first of this run.
        rates: the learning rates of the epoch before, where there was one, and of the first one now.
    """
    now = {"event": "resume" if before else "start", "epoch": epoch, "date": _now(), **_conditions(record)}
    if before is None:
        return {**record, "history": [now]}, None
    # A record from before there was a history still says how the run began.
    earlier = before.get("history") or [{"event": "start", "epoch": 0, **_conditions(before)}]
    history = [*earlier, now]
    epochs = record["settings"]["epochs"]
    if epoch >= epochs:
        # Nothing is trained any more: the settings stay those the network was trained with.
        now["settings"] = before.get("settings", {})
        more = f"the checkpoint has {epoch} epochs, more than {epochs}: none follows" if epoch > epochs else None
        return {**record, **before, "history": history}, more
    changes = _changes(before.get("settings", {}), record["settings"])
    if not changes:
        return {**record, "history": history}, None
    return {**record, "history": history}, (
        f"epoch {epoch} continues a run of other settings: {'; '.join(changes)}. The learning rate "
        f"goes from {' to '.join(f'{rate:.3g}' for rate in rates)}; run.json keeps both"
    )


def read_record(output_folder: str) -> dict[str, Any] | None:
    """The run.json of a fold; None where there is none that can be read, which is no reason to stop a training."""
    try:
        content = read_json(Path(output_folder, "run.json"))
    except UserError:
        return None
    sound = isinstance(content, dict) and all(isinstance(content.get(k, {}), dict) for k in ("settings", "software"))
    return content if sound and isinstance(content.get("history", []), list) else None


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What decides about the training and differs, as `epochs 8, now 12`."""
    pairs = [(name, before.get(name), now.get(name)) for name in _DECISIVE]
    return [
        f"{name.replace('_', ' ')} {old}, now {new}"
        for name, old, new in pairs
        if None not in (old, new) and old != new
    ]


def _conditions(record: dict[str, Any]) -> dict[str, Any]:
    return {"settings": record.get("settings", {}), "software": record.get("software", {})}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def add_validation(output_folder: str, seconds: float, cases: int) -> None:
    """Add to run.json how long the prediction of the fold's cases took, mirroring and export included."""
    file = Path(output_folder, "run.json")
    if file.is_file():
        write_json(file, {**read_json(file), "validation": {"seconds": round(seconds, 3), "cases": cases}})
