"""Build a network from an official state_dict, strictly, and read checkpoint files without running code in them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ext import models
from nnunet_ext.errors import UserError

# Where published files keep the weights, in the order they are looked for.
_WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model", "module")


@dataclass(frozen=True)
class Transfer:
    """What became of each tensor of a network: names, in the network's order."""

    copied: tuple[str, ...]
    resized: tuple[str, ...]
    initial: tuple[str, ...]  # left as the network was initialised


def build_from_official(name: str, state_dict: Mapping[str, Tensor], **config: Any) -> nn.Module:
    """Build a published network and load weights of its official code, strictly.

    Args:
        name: which network: see the error message for the list.
        state_dict: official parameter names to tensors.
        **config: the network's sizes; they are documented at its builder in `nnunet_ext.checkpoints`.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: unknown name, or keys or shapes do not match; the message lists what is missing, what is
            unexpected and which shapes differ.
    """
    builders = {model.name: model.weights.build for model in models.rows() if model.weights}
    if name not in builders:
        raise ValueError(f"no official network {name!r}; known: {', '.join(sorted(builders))}")
    model = models.load(builders[name])(**config)
    load_strict(model, state_dict)
    return model.eval()


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], shown: int = 5) -> None:
    """Load weights where every key and shape must match; otherwise change nothing and say what differs.

    Raises:
        ValueError: the report, with at most `shown` names of each kind.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state_dict]
    unexpected = [key for key in state_dict if key not in own]
    differing = [
        f"{key} (file {tuple(state_dict[key].shape)}, network {tuple(tensor.shape)})"
        for key, tensor in own.items()
        if key in state_dict and state_dict[key].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:shown])}{', …' if len(names) > shown else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", differing))
        if names
    ]
    if problems:
        raise ValueError(
            f"weights do not fit {type(model).__name__} ({len(own)} tensors): {'; '.join(problems)}. "
            "Check the sizes the network is built with."
        )
    model.load_state_dict(state_dict)


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """A convolution's kernel (outputs, channels, *size) for another number of input channels.

    Each becomes the mean of the old ones, scaled so that all together sum to what they did: one scan given as every
    channel is what it was.
    """
    return kernel.mean(1, keepdim=True).expand(-1, channels, *kernel.shape[2:]) * (kernel.shape[1] / channels)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a `.pth`, `.pt` or `.model` file without executing anything in it.

    Wrappers such as `{"state_dict": …}` and the prefix `module.` of data-parallel training are removed. Beside
    tensors and plain values, numpy numbers are accepted (nnU-Net v1 files, `.model`, hold their loss curves so), and
    `argparse.Namespace` and `Counter`, which only hold values (SAM-Med3D's files have them).

    Raises:
        UserError: the file is missing, damaged, holds code, or holds no weights.
    """
    path = Path(path)
    content = read_without_code(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} holds no state_dict: expected parameter names and tensors")
    prefix = "module."
    if all(key.startswith(prefix) for key in content):
        return {key[len(prefix) :]: value for key, value in content.items()}
    return dict(content)


def read_without_code(path: str | os.PathLike[str], otherwise: str = "get weights that hold nothing else") -> Any:
    """What `torch.save` wrote, on the CPU: tensors, containers and plain values, nothing that runs.

    Args:
        path: the file.
        otherwise: what to do about a file that holds more than that, for the message.

    Raises:
        UserError: the file is missing, damaged, or names functions or classes to be called.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a downloaded checkpoint")
    try:
        with _plain_values_accepted():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader, given bytes that are none of its own, raises anything
        # Torch's words, which are paragraphs, advise to turn this protection off.
        named = re.search(r"\bGLOBAL ([\w.]+)", str(error))
        if named or (isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error)):
            what = f" (it names {named[1]})" if named else ", or is damaged,"
            raise UserError(
                f"{path} holds more than tensors and plain values{what} and was not loaded; {otherwise}"
            ) from None
        raise UserError(f"{path} cannot be read ({_first_line(error)}); restore it or download it again") from None


def read_trusted(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote, on the CPU, as nnU-Net reads it: whatever the file says is run.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # as above, and what the code in the file raises
        raise UserError(f"{path} cannot be read ({_first_line(error)}); restore it or download it again") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _plain_values_accepted() -> Iterator[None]:
    """Let `weights_only` reading make numpy numbers, under the names numpy 1 and 2 write them with, and two holders."""
    before = torch.serialization.get_safe_globals()
    makers = []
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):

        def scalar(dtype: np.dtype, data: bytes) -> Any:
            return np.frombuffer(data, dtype)[0]

        scalar.__module__ = module
        scalar.__qualname__ = "scalar"
        makers.append(scalar)
    types = {type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "b1")}
    torch.serialization.add_safe_globals([*makers, np.dtype, *types, argparse.Namespace, Counter])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
