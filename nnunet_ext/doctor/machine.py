"""Findings about nnU-Net's folders, GPU, memory, disk, cores and shared memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from nnunet_ext.doctor.finding import Finding, Status
from nnunet_ext.environment import decimal
from nnunet_ext.machine import available_cores, available_memory_bytes

GIB = 1024**3

# What each folder is for, and whether training can do without it, or without writing to it.
FOLDERS: dict[str, tuple[str, Status, Status]] = {
    "nnUNet_raw": ("planning and preprocessing", "warning", "ok"),
    "nnUNet_preprocessed": ("training", "broken", "warning"),
    "nnUNet_results": ("training and prediction", "broken", "broken"),
}

# Proportional memory of nnU-Net's main process and of one worker before any data, measured with 2.8.1.
MAIN_PROCESS_GIB, WORKER_GIB = 2.0, 0.5
LITTLE_DISK_GIB = 5
LITTLE_SHARED_MEMORY_GIB = 1


def folders(environment: dict[str, str]) -> list[Finding]:
    """nnU-Net's three folders: set, existing, writable, and the free disk space under each."""
    return [_folder(name, environment.get(name)) for name in FOLDERS]


def _folder(name: str, value: str | None) -> Finding:
    purpose, if_unset, if_read_only = FOLDERS[name]
    if not value:
        remedy = f"needed for {purpose}: export {name}=/path/to/{name}"
        return Finding(name, "not set", if_unset, remedy)
    path = Path(value)
    if value.startswith("~"):
        remedy = f"nnU-Net takes ~ literally: export {name}={Path(value).expanduser()}"
        return Finding(name, value, if_unset, remedy)
    if path.exists() and not path.is_dir():
        return Finding(name, f"{path} is not a folder", if_unset, f"export {name}=/path/to/a/folder")
    if not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not _writable(parent):
            remedy = f"choose another: export {name}=/path/to/{name}"
            return Finding(name, f"{path} does not exist and cannot be created", if_unset, remedy)
        return Finding(name, f"{path} does not exist yet", "warning", f"mkdir -p {path}")
    free = shutil.disk_usage(path).free / GIB
    if not _writable(path):
        remedy = f"needs write permission for {purpose}: chmod u+w {path}, or choose another folder"
        if if_read_only == "ok":
            return Finding(name, f"{path} (read-only)")
        return Finding(name, f"{path} is not writable", if_read_only, remedy)
    if free < LITTLE_DISK_GIB and name != "nnUNet_raw":
        remedy = "one fold writes up to 3 GiB of checkpoints, preprocessing several times the raw data; free some space"
        return Finding(name, f"{path}, only {free:.1f} GiB free", "warning", remedy)
    return Finding(name, f"{path}, {free:,.0f} GiB free")


def _writable(folder: Path) -> bool:
    # Trying is the only answer that holds for root, network file systems and read-only mounts.
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def gpu(answer: dict[str, Any]) -> list[Finding]:
    """Findings from `probes.torch_here` about the GPU; without one everything runs on the CPU."""
    torch_error = answer.get("error") or answer["imports"]["torch"]
    if torch_error:
        remedy = "pip install --force-reinstall torch torchvision"
        return [Finding("torch", f"cannot be imported: {torch_error}", "broken", remedy)]
    findings = []
    for index, device in enumerate(answer["devices"]):
        if device["error"]:
            remedy = "torch was built for other GPUs or the GPU is taken; use -device cpu, or another torch build"
            findings.append(Finding(f"cuda:{index}", f"{device['name']}: {device['error']}", "warning", remedy))
        else:
            free, total = device["free"] / GIB, device["total"] / GIB
            findings.append(Finding(f"cuda:{index}", f"{device['name']}, {free:.1f} of {total:.1f} GiB free"))
    if findings:
        return findings
    cpu = "training and prediction run on the CPU: add -device cpu"
    if answer.get("mps"):
        return [Finding("gpu", "Apple MPS; add -device mps", "note")]
    if shutil.which("nvidia-smi") is None and not Path("/dev/nvidia0").exists():
        return [Finding("gpu", f"none; {cpu}", "note")]
    if answer["cuda_build"] is None:
        remedy = "pip install --force-reinstall torch torchvision brings the CUDA build"
        return [Finding("gpu", "present, but torch is built for the CPU only", "warning", remedy)]
    remedy = f"update the NVIDIA driver, or install a torch for an older CUDA; until then {cpu}"
    reason = answer.get("cuda_error", "torch sees no device; is CUDA_VISIBLE_DEVICES empty?")
    return [Finding("gpu", f"present, but torch {answer['cuda_build']} cannot use it ({reason})", "warning", remedy)]


def cores(environment: dict[str, str]) -> list[Finding]:
    """Cores this process may use against the threads or processes that would prepare batches."""
    available, machine = available_cores(), os.cpu_count() or 1
    share = f"{available} of {machine} available" if available < machine else str(machine)
    findings = [Finding("cores", share)]
    for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        value = environment.get(name)
        # 0 augmentation workers is legal for training, but planning passes the number on as a thread count.
        if value is not None and not decimal(value.strip()):
            remedy = f"a whole number from 1: export {name}={available}"
            legal = name == "nnUNet_n_proc_DA" and value.strip() == "0"
            what = f"{value}: planning needs at least 1" if legal else f"{value!r} is not a number of processes"
            findings.append(Finding(name, what, "warning" if legal else "broken", remedy))
    if environment.get("nnUNet_n_proc_DA") is None and augmentation_workers(environment) > available:
        kind = "processes" if batches_from_processes(environment) else "threads"
        value = f"unset: training starts {augmentation_workers(environment)} {kind} for batches on {available} cores"
        remedy = f"export nnUNet_n_proc_DA={max(1, available - 1)}"
        findings.append(Finding("nnUNet_n_proc_DA", value, "warning", remedy))
    return findings


def augmentation_workers(environment: dict[str, str]) -> int:
    """Augmentation workers nnU-Net 2.8.1 would start; it counts the machine's cores, not the allocation's."""
    asked = decimal(environment.get("nnUNet_n_proc_DA", "").strip())
    return min(12 if asked is None else asked, os.cpu_count() or 1)


def batches_from_processes(environment: dict[str, str]) -> bool:
    """Whether nnU-Net's worker processes prepare batches, each with memory of its own, instead of threads."""
    return environment.get("NNUNET_EXT_LOADER", "").strip() == "processes"


def memory(environment: dict[str, str]) -> list[Finding]:
    """Main memory against what nnU-Net's processes take before any data; shared memory."""
    available = available_memory_gib()
    findings = []
    if available is not None:
        # Threads share the training's memory; of processes validation has half as many again.
        workers = augmentation_workers(environment) * 3 // 2 if batches_from_processes(environment) else 0
        needed = MAIN_PROCESS_GIB + WORKER_GIB * workers
        if available < needed:
            whose = f"training and {workers} worker processes take" if workers else "training takes"
            value = f"{available:.1f} GiB available; {whose} about {needed:.1f} GiB before any data"
            remedy = "unset NNUNET_EXT_LOADER, or export nnUNet_n_proc_DA=2" if workers else "end other programs"
            findings.append(Finding("memory", value, "warning", remedy))
        else:
            findings.append(Finding("memory", f"{available:.1f} GiB available"))
    shared = Path("/dev/shm")
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        value = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
        if usage.free < LITTLE_SHARED_MEMORY_GIB * GIB:
            remedy = "workers pass data through it and die when it is full: docker run --shm-size=8g (or --ipc=host)"
            findings.append(Finding("/dev/shm", value, "warning", remedy))
        else:
            findings.append(Finding("/dev/shm", value))
    return findings


def available_memory_gib() -> float | None:
    """Memory new processes may take, in GiB."""
    available = available_memory_bytes()
    return None if available is None else available / GIB
