"""Questions to a fresh interpreter: nnU-Net's own look-up of our classes, and what torch can do here.

A fresh interpreter answers as `nnUNetv2_train` would. And a broken CUDA extension may kill the interpreter that tries
it, which must not be the one that reports it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from nnunet_ext.discovery.table import KINDS, Entry

TIMEOUT_SECONDS = 300

# `-c` puts the current folder first on sys.path, which nnU-Net's commands do not: a checkout there would be found.
_START = """
import json, sys
sys.path[:] = [folder for folder in sys.path if folder]
def one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())
"""

_LOOK_UP = """
import os, nnunetv2
from nnunetv2.utilities import find_class_by_name as search
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find_trainer
answer = {
    "attached": getattr(search.recursive_find_python_class, "answers_for", None) == "nnunet_ext",
    "nnunetv2": list(nnunetv2.__path__)[0],
    "classes": {},
}
for name, kind, place in json.loads(sys.argv[1]):
    try:
        if kind == "trainer":
            found = find_trainer(name)
        else:
            folder = os.path.join(answer["nnunetv2"], place.partition(".")[2])
            found = search.recursive_find_python_class(folder, name, current_module=place)
        answer["classes"][name] = {"module": getattr(found, "__module__", None), "error": None}
    except Exception as error:
        answer["classes"][name] = {"module": None, "error": one_line(error)}
print(json.dumps(answer))
"""

_TORCH = """
answer = {"imports": {}, "devices": [], "backends": {}}
for name in ("torch", "torchvision", "timm"):
    try:
        __import__(name)
        answer["imports"][name] = None
    except Exception as error:
        answer["imports"][name] = one_line(error)
if answer["imports"]["torch"] is None:
    import torch
    answer["cuda_build"] = torch.version.cuda or torch.version.hip
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = {"name": torch.cuda.get_device_name(index), "error": None}
            try:
                torch.ones(8, device=f"cuda:{index}").sum().item()
                device["free"], device["total"] = torch.cuda.mem_get_info(index)
            except Exception as error:
                device["error"] = one_line(error)
            answer["devices"].append(device)
    elif answer["cuda_build"]:
        try:
            torch.cuda.init()
        except Exception as error:
            answer["cuda_error"] = one_line(error)
    answer["mps"] = torch.backends.mps.is_available()
    try:
        from nnunet_ext.ops import causal_conv1d, selective_scan
        operators = {"scan": selective_scan, "convolution": causal_conv1d}
        kinds = ["cpu"] + ["cuda"] * any(device["error"] is None for device in answer["devices"])
        for kind in kinds:
            answer["backends"][kind] = {}
            for name, operator in operators.items():
                found = {"status": operator.backend_status(kind), "variable": operator.ENVIRONMENT_VARIABLE}
                try:
                    found["chosen"], found["error"] = operator.choose_backend(torch.device(kind)), None
                except Exception as wrong:
                    found["chosen"], found["error"] = None, one_line(wrong)
                answer["backends"][kind][name] = found
    except Exception as error:
        answer["backend_error"] = one_line(error)
print(json.dumps(answer))
"""


def look_up(entries: Sequence[Entry]) -> dict[str, Any]:
    """Let nnU-Net look up every entry. Returns attached, nnunetv2, classes, messages; or only error."""
    wanted = [(entry.name, entry.kind, KINDS[entry.kind]) for entry in entries]
    return _ask(_LOOK_UP, json.dumps(wanted))


def torch_here() -> dict[str, Any]:
    """Import torch, torchvision and timm, use every GPU, try every backend of scan and convolution; or only error."""
    # The import path of this process: here the question is about the machine, not about how we are found.
    return _ask(f"sys.path[:0] = {[folder for folder in sys.path if folder]!r}\n" + _TORCH)


def _ask(code: str, *arguments: str) -> dict[str, Any]:
    """Run `code`, whose last line on stdout is JSON; add our own lines on stderr as `messages`."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START + code, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {TIMEOUT_SECONDS} seconds"}
    if done.returncode < 0:
        return {"error": f"the interpreter was killed by signal {-done.returncode}"}
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"error": last[0].strip()}
    # A worker may repeat a message; each is worth one line.
    lines = [line for line in done.stderr.splitlines() if line.startswith("nnunet_ext: ")]
    answer["messages"] = list(dict.fromkeys(lines))
    return answer
