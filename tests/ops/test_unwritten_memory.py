"""The guard of `conftest.py` itself: a kernel that leaves out its last rows is seen, whichever way it is computed."""

from __future__ import annotations

import torch
from helpers.scans import make, run

from nnunet_ext.ops.causal_conv1d import causal_conv1d
from nnunet_ext.ops.causal_conv1d import cpu as convolution_cpu
from nnunet_ext.ops.selective_scan import chunked
from nnunet_ext.ops.selective_scan import cpu as scan_cpu


def all_but_the_last(rows, threads, function):
    function(0, 0, rows - 1)


def test_numba_scan(monkeypatch):
    monkeypatch.setattr(scan_cpu, "share_rows", all_but_the_last)
    out, _, grads = run(make(), "cpu", delta_softplus=True)
    for written in (out, *(grads[key] for key in ("u", "delta", "z"))):
        assert written[-1, -1].isnan().all() and not written[0].isnan().any()


def test_numba_convolution(monkeypatch):
    monkeypatch.setattr(convolution_cpu, "share_rows", all_but_the_last)
    x = torch.ones(2, 3, 9, requires_grad=True)
    out = causal_conv1d(x, torch.ones(3, 4))
    out.sum().backward()
    for written in (out, x.grad):
        assert written[-1, -1].isnan().all() and not written[0].isnan().any()


def test_chunked_scan(monkeypatch):
    """Every loop ends one round early."""
    monkeypatch.setattr(chunked, "range", lambda *bounds: range(*bounds)[:-1], raising=False)
    out, _, grads = run(make(length=36), "chunked", delta_softplus=True)
    for written in (out, grads["u"]):
        assert written[..., 5].isnan().all()  # the last step of the first of six chunks
    assert not out[..., :5].isnan().any()


def test_triton_kernels():
    """They ask torch for their memory, which gives no whole numbers but those it is asked for."""
    for made in (torch.empty(3), torch.empty_like(torch.ones(3)), torch.ones(3).new_empty(3)):
        assert made.isnan().all()
    assert torch.empty(3, dtype=torch.int64).dtype == torch.int64
