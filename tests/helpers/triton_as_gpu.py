"""A CPU that takes its backends as a GPU does: Triton's kernels if a probe of them works, else plain PyTorch.

The kernels run in Triton's interpreter (TRITON_INTERPRET=1 before anything is imported). The probes are the real ones
at small sizes. What a network computes with the chosen kernels would take the interpreter minutes: it is noted in
`used`, and done by plain PyTorch.
"""

from __future__ import annotations

import functools

from nnunet_ext.ops import causal_conv1d, selective_scan, triton_probe
from nnunet_ext.ops.backends import probed
from nnunet_ext.ops.causal_conv1d import gpu as convolution_gpu
from nnunet_ext.ops.selective_scan import gpu as scan_gpu

OPERATORS = {"scan": selective_scan, "convolution": causal_conv1d}

# (operator, backend) of every call.
used: set[tuple[str, str]] = set()


def install() -> None:
    """Do so in this process, for good."""
    triton_probe.why_not = lambda device, probe: probe(device)
    for operator, gpu, length in (("scan", scan_gpu, 5), ("convolution", convolution_gpu, 6)):
        module = OPERATORS[operator]
        gpu._probe = probed(functools.partial(gpu._probe.__wrapped__, channels=1, length=length))
        module._BACKENDS = tuple(backend for backend in module._BACKENDS if backend.name != "cpu")
        plain = module._TABLE["chunked" if operator == "scan" else "plain"].function
        for backend in module._BACKENDS:
            fields = {"function": functools.partial(_noted, operator, backend.name, plain), "follows_order": False}
            module._TABLE[backend.name] = backend._replace(**fields)


def forget() -> None:
    """Probe again at the next choice."""
    for gpu in (scan_gpu, convolution_gpu):
        gpu._probe.cache_clear()
    used.clear()


def chosen() -> dict[str, str]:
    """What is chosen here and now."""
    import torch

    return {name: module.choose_backend(torch.device("cpu")) for name, module in OPERATORS.items()}


def chosen_after_install() -> dict[str, str]:
    """For a process that starts from nothing."""
    install()
    return chosen()


def _noted(operator, name, function, *arguments):
    used.add((operator, name))
    return function(*arguments)
