"""Findings about packages, environment variables, the look-up of trainers and the scan backends."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext import __version__, models
from nnunet_ext.discovery import SHIMS
from nnunet_ext.discovery.table import Entry, entries
from nnunet_ext.doctor.finding import Finding
from nnunet_ext.environment import unknown_variables
from nnunet_ext.errors import UserError

OLDEST_NNUNET = "2.8.1"
NEWEST_TESTED_NNUNET = "2.8.1"
TESTED_PYTHON = ((3, 10), (3, 13))
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "SimpleITK", "nibabel")
NNUNET_PACKAGES = ("batchgenerators", "batchgeneratorsv2", "dynamic-network-architectures", "acvl-utils")
OPTIONAL_PACKAGES = (*(package for model in models.OWN for package in model.accelerators), "tensorboard")


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> list[Finding]:
    """Python, this package, nnU-Net with the tested range, and what they need."""
    oldest, newest = (".".join(map(str, version)) for version in TESTED_PYTHON)
    findings = [Finding("python", f"{platform.python_version()} at {sys.executable}")]
    if not TESTED_PYTHON[0] <= sys.version_info[:2] <= TESTED_PYTHON[1]:
        remedy = f"tested with Python {oldest} to {newest}; prefer one of them"
        findings = [Finding("python", findings[0].value, "warning", remedy)]
    metadata = installed_version("nnunet-ext")
    where = "" if metadata else f", not installed, imported from {Path(__file__).parents[2]}"
    findings += [Finding("nnunet_ext", __version__ + where), nnunet_version(installed_version("nnunetv2"))]
    for package in PACKAGES + NNUNET_PACKAGES:
        version = installed_version(package)
        if version is None:
            remedy = f"pip install {package}"
            findings.append(Finding(package, "not installed", "broken" if package == "torch" else "warning", remedy))
        else:
            findings.append(Finding(package, version))
    for package in OPTIONAL_PACKAGES:
        findings.append(Finding(package, installed_version(package) or "not installed (optional)", "note"))
    findings += unmet_requirements("nnunetv2") + unmet_requirements("nnunet-ext") + [bytecode()]
    return findings


def nnunet_version(version: str | None) -> Finding:
    """Judge a version of nnunetv2 by the tested range."""
    if version is None:
        return Finding("nnunetv2", "not installed", "broken", "pip install 'nnunetv2>=2.8.1' into this environment")
    tested = OLDEST_NNUNET if OLDEST_NNUNET == NEWEST_TESTED_NNUNET else f"{OLDEST_NNUNET} to {NEWEST_TESTED_NNUNET}"
    if _numbers(version) < _numbers(OLDEST_NNUNET):
        remedy = f"needs at least {OLDEST_NNUNET}: pip install -U nnunetv2"
        return Finding("nnunetv2", version, "broken", remedy)
    if _numbers(version) > _numbers(NEWEST_TESTED_NNUNET):
        remedy = f"tested with {tested}; if something fails, pip install nnunetv2=={NEWEST_TESTED_NNUNET}"
        return Finding("nnunetv2", version, "warning", remedy)
    return Finding("nnunetv2", f"{version} (tested: {tested})")


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:3]
    return tuple(int("".join(c for c in part if c.isdecimal()) or 0) for part in parts)


def unmet_requirements(package: str) -> list[Finding]:
    """Requirements of an installed distribution that this environment does not meet; extras are left out."""
    from packaging.requirements import Requirement  # matplotlib, a dependency, brings it

    findings = []
    for line in importlib.metadata.requires(package) or [] if installed_version(package) else []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        value = f"{package} needs {wanted}, found {version or 'none'}"
        findings.append(Finding("requirement", value, "warning", f"pip install '{wanted}'"))
    return findings


def bytecode() -> Finding:
    """Without compiled bytecode every process, spawned workers included, compiles torch again."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.cached is None or spec.origin is None or Path(spec.cached).exists():
        return Finding("bytecode", "compiled")
    if not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK):
        return Finding("bytecode", "compiled at first use")
    value = "torch has no compiled bytecode and none can be written: every process and worker starts seconds later"
    remedy = f"once: python -m compileall -q {Path(spec.origin).parents[1]}; or unset PYTHONDONTWRITEBYTECODE"
    return Finding("bytecode", value, "warning", remedy)


def torchvision(imports: dict[str, str | None], cuda_build: str | None) -> list[Finding]:
    """Explain why torchvision or timm cannot be imported.

    Args:
        imports: for torchvision and timm, None or the error.
        cuda_build: CUDA or ROCm version torch was built for, None for a CPU build.
    """
    if imports.get("torchvision") is None and imports.get("timm") is None:
        return [Finding("torchvision, timm", "can be imported")]
    error = imports.get("torchvision") or imports.get("timm") or ""
    if "No module named" in error:
        return []  # reported with the versions
    builds = f"torch {installed_version('torch')}, torchvision {installed_version('torchvision')}"
    why = "they were built for different torch versions"
    if cuda_build is None:
        why = "torch is built for the CPU only, torchvision probably is not"
    value = f"{builds}: {why} ({error})"
    remedy = (
        "nnU-Net imports timm, hence torchvision, when it searches for most trainers; install torch and torchvision "
        "together from one index: pip install --force-reinstall torch torchvision (runs on the CPU as well)"
    )
    return [Finding("torchvision, timm", value, "warning", remedy)]


def variables(environment: dict[str, str]) -> list[Finding]:
    """This project's environment variables: those set, misspelt names, values nobody understands."""
    findings = []
    unknown = unknown_variables(environment)
    for name in sorted(name for name in environment if name.startswith("NNUNET_EXT_")):
        value = environment[name]
        if name in unknown:
            findings.append(Finding(name, f"{value!r} has no effect: unknown variable", "warning", unknown[name]))
        elif name == "NNUNET_EXT_AUTOLOAD" and value not in ("", "0", "1"):
            findings.append(Finding(name, f"{value!r} has no effect", "warning", "set it to 0 (off), or unset it"))
        else:
            findings.append(_setting(name, value))
    return findings


def _setting(name: str, value: str) -> Finding:
    from nnunet_ext.trainers.settings import TrainingSettings

    try:
        TrainingSettings.from_environment({name: value})
    except UserError as error:
        return Finding(name, str(error), "broken", f"correct it, or unset {name}")
    return Finding(name, value, "note")


def commands() -> Finding:
    """Whether the `nnUNetv2_train` a shell would start belongs to this environment."""
    ours = Path(sysconfig.get_path("scripts"))
    found = shutil.which("nnUNetv2_train")
    here = shutil.which("nnUNetv2_train", path=str(ours)) is not None  # on Windows it ends in .exe
    if found is None:
        if here:
            return Finding("nnUNetv2_train", f"in {ours}, not on PATH", "warning", f'export PATH="{ours}:$PATH"')
        remedy = "pip install nnunetv2 into this environment"
        return Finding("nnUNetv2_train", "not found", "warning", remedy)
    if Path(found).parent.resolve() == ours.resolve() or not here:
        return Finding("nnUNetv2_train", found)
    remedy = f"activate this environment ({ours.parent}) or install nnunet-ext into the other one"
    return Finding("nnUNetv2_train", f"{found} belongs to another environment", "warning", remedy)


def look_up(answer: dict[str, Any], wanted: Sequence[Entry] | None = None) -> list[Finding]:
    """Findings from `probes.look_up`: by which way nnU-Net finds our classes, and the proof for each."""
    if "error" in answer:
        remedy = 'start with: python -c "import nnunetv2.run.run_training"'
        return [Finding("look-up", f"nnU-Net's search cannot run: {answer['error']}", "broken", remedy)]
    findings = []
    way = "start-up hook" if answer["attached"] else "nnUNet_extTrainer"
    findings.append(_way(answer))
    wanted = entries() if wanted is None else wanted
    for entry in wanted:
        result = answer["classes"][entry.name]
        if result["module"] == entry.module:
            findings.append(Finding(entry.name, f"found in {entry.module}"))
            continue
        said = [line for line in answer["messages"] if entry.name in line]
        value = result["error"] or f"nnU-Net found {result['module']} instead"
        remedy = f"the {way} is active but the class does not load; reinstall nnunet-ext" if said else ""
        if entry.kind != "trainer" and not answer["attached"]:
            remedy = "planners and preprocessors are found by the start-up hook only: install nnunet-ext with pip"
        # nnU-Net's own error repeats its manual; our line, where there is one, has the reason.
        value = said[0].removeprefix(f"nnunet_ext: {entry.name} ") if said else value.partition(" in nnunetv2")[0]
        findings.append(Finding(entry.name, value, "broken", remedy))
    return findings + shadowed(Path(answer["nnunetv2"]), wanted)


def _way(answer: dict[str, Any]) -> Finding:
    shims = f"export nnUNet_extTrainer={SHIMS}"
    if answer["attached"]:
        return Finding("found through", "the start-up hook, no environment variable needed")
    if os.environ.get("NNUNET_EXT_AUTOLOAD") == "0":
        why = "the start-up hook is switched off by NNUNET_EXT_AUTOLOAD=0"
        remedy = f"unset NNUNET_EXT_AUTOLOAD, or {shims}"
    elif answer["messages"]:
        why, remedy = answer["messages"][0].removeprefix("nnunet_ext: "), f"reinstall nnunet-ext, or {shims}"
    elif importlib.util.find_spec("_nnunet_ext_hook") is None:
        why = "no start-up hook: nnunet-ext is not installed in this environment"
        remedy = f"pip install nnunet-ext, or {shims}"
    else:
        why = "the start-up hook does not run: Python reads start-up files in site-packages only, not on PYTHONPATH"
        remedy = f"pip install nnunet-ext into the environment, or {shims}"
    folders = [folder for folder in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if folder]
    if any(Path(folder).resolve() == SHIMS.resolve() for folder in folders):
        return Finding("found through", f"nnUNet_extTrainer ({why})", "note")
    return Finding("found through", f"nothing: {why}", "broken", remedy)


def shadowed(nnunetv2: Path, wanted: Sequence[Entry]) -> list[Finding]:
    """Classes of our names that somebody copied into nnU-Net's own folders; ours are taken."""
    findings = []
    sources = {path: path.read_text("utf-8", "replace") for path in sorted((nnunetv2 / "training").rglob("*.py"))}
    for entry in wanted:
        for path, text in sources.items():
            if f"class {entry.name}(" in text:
                remedy = "remove that file, or set NNUNET_EXT_AUTOLOAD=0 to use it instead of nnunet_ext's"
                findings.append(Finding(entry.name, f"also defined in {path}", "warning", remedy))
    return findings


def backends(answer: dict[str, Any]) -> list[Finding]:
    """Findings from `probes.torch_here` about the scan and its convolution: what runs, and why the rest does not."""
    if "error" in answer or "backend_error" in answer or not answer["backends"]:
        reason = answer.get("error") or answer.get("backend_error") or answer["imports"]["torch"]
        return [Finding("selective scan", f"cannot run: {reason}", "broken", "reinstall torch, then nnunet-ext")]
    findings = []
    for device, operators in answer["backends"].items():
        for operator, result in operators.items():
            for name, reason in result["status"].items():
                findings.append(
                    Finding(f"{operator} by {name} on {device}", reason or "works", "note" if reason else "ok")
                )
            if result["error"] is None:
                findings.append(Finding(f"{operator} taken on {device}", result["chosen"]))
                continue
            value = result["error"].partition(": ")[2] or result["error"]
            # A backend for the GPU only is a fair request; without a GPU nothing could run.
            status: Any = "broken" if device == list(answer["backends"])[-1] else "note"
            remedy = f"unset {result['variable']}" if status == "broken" else ""
            findings.append(Finding(f"{operator} taken on {device}", value, status, remedy))
    return findings
