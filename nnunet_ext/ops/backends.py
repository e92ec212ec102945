"""Backends of an operator: what one is, which is taken, and how it is found out whether it works on a device."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import nn

HALVES = (torch.float16, torch.bfloat16)
SINGLE_AND_DOUBLE = (torch.float32, torch.float64)

WhyNot = Callable[[torch.device], str | None]


class Backend(NamedTuple):
    """One way to compute an operator.

    Attributes:
        name: as `backend=` and the environment variable take it.
        function: computes the operator; its last arguments are orientation and num_slices if it follows the order.
        why_not: None if it runs on the device, else the reason in one line.
        dtypes: numbers it computes with; of half precision, what it reads without a copy in single precision.
        follows_order: reads by index in every order of `nnunet_ext.ops.order`; for the others sequences are copied.
        widths: widths of a filter it takes; None where there is no filter or it takes any.
    """

    name: str
    function: Callable[..., Any]
    why_not: WhyNot
    dtypes: tuple[torch.dtype, ...]
    follows_order: bool = False
    widths: range | None = None

    def why_not_for(self, device: torch.device, dtype: torch.dtype, width: int | None = None) -> str | None:
        """None if it runs on the device and takes such numbers and filters, else the reason in one line."""
        # Asked before the device, whose answer may take seconds.
        if dtype not in self.dtypes:
            return f"takes {', '.join(map(_plain, self.dtypes))}, not {_plain(dtype)}"
        if width is not None and self.widths is not None and width not in self.widths:
            return f"takes filters of {self.widths[0]} to {self.widths[-1]} steps, not {width}"
        return self.why_not(device)


def choose(
    backends: Sequence[Backend],
    variable: str,
    device: torch.device,
    dtype: torch.dtype,
    width: int | None = None,
    *,
    asked: str | None = None,
) -> str:
    """The name of the backend that the argument asks for, else the variable, else of the first that takes the input.

    Args:
        backends: in the order of the automatic choice; the last takes everything.
        variable: name of the environment variable.
        device, dtype, width: of the input; width is that of a filter, where there is one.
        asked: the argument `backend=` of the operator: a name, auto or None.

    Raises:
        ValueError: the name is unknown, or that backend does not run on the device or does not take the input.
    """
    name = asked or os.environ.get(variable, "").strip() or "auto"
    if name == "auto":
        return next(backend.name for backend in backends if backend.why_not_for(device, dtype, width) is None)
    source = "backend" if asked else variable
    found = {backend.name: backend for backend in backends}.get(name)
    if found is None:
        names = ", ".join(backend.name for backend in backends)
        raise ValueError(f"{source}={name!r} is no backend; use auto or one of {names}")
    reason = found.why_not_for(device, dtype, width)
    if reason is not None:
        raise ValueError(f"{source}={name!r} does not run on {device}: {reason}")
    return name


def status(backends: Sequence[Backend], device: torch.device | str) -> dict[str, str | None]:
    """For every backend, None if it runs on `device`, else one line that says why it does not."""
    return {backend.name: backend.why_not(torch.device(device)) for backend in backends}


def taken_by(network: nn.Module, device: torch.device) -> dict[str, str]:
    """Name of the backend each operator of a network gets on a device, such as {"scan": "triton"}.

    Networks with operators that have backends answer by a method `backends(device)`; the others have none.

    Raises:
        ValueError: as `choose`.
    """
    ask = getattr(network, "backends", None)
    return {} if ask is None else ask(device)


def probed(probe: WhyNot) -> WhyNot:
    """Run a probe once per device, in a thread of its own, and remember its answer.

    The first call of an operator may come from within `no_grad`, inference mode, autocast, fake tensors, a counter of
    operations or a default device. All of these hold for their thread only, and what they would make of the probe says
    nothing about the device.
    """

    @functools.cache
    def answer(device: torch.device) -> str | None:
        with ThreadPoolExecutor(1, thread_name_prefix="nnunet_ext_probe") as thread:
            return thread.submit(probe, device).result()

    return functools.wraps(probe)(answer)


def on_cuda(device: torch.device, probe: WhyNot) -> str | None:
    """A probe's answer for a CUDA device, which it gets with its index; any other device is refused."""
    if device.type != "cuda":
        return "needs a CUDA device"
    return probe(device if device.index is not None else torch.device("cuda", torch.cuda.current_device()))


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
