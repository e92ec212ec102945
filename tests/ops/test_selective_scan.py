"""The scan against its golden file and every backend against the reference, gradients included."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fill import make_input
from helpers.scans import NAMES, assert_close, make, run

from nnunet_ext.ops import selective_scan as selective_scan_module
from nnunet_ext.ops.selective_scan import backend_status, choose_backend, selective_scan

GOLDEN = Path(__file__).parent.parent / "golden"

# Written out: a backend that cannot run here must fail, not vanish.
PLAIN = ["cpu", "chunked", "reference"]


@pytest.mark.parametrize("backend", PLAIN)
def test_golden_values_and_all_gradients(backend):
    golden = np.load(GOLDEN / "segmamba_scan.npz")
    batch, channels, states, length = 2, 6, 16, 777
    shapes = {"u": (batch, channels, length), "B": (batch, states, length), "C": (batch, states, length)}
    shapes["z"] = shapes["delta"] = shapes["gy"] = shapes["u"]
    values = {k: torch.from_numpy(make_input(f"segmamba-scan-{k}", s)) for k, s in shapes.items()}
    values["delta"] = 0.5 * values["delta"]
    for key in ("A", "D", "delta_bias"):
        values[key] = torch.from_numpy(golden[key])
    gy = values.pop("gy")
    leaves = {k: v.clone().requires_grad_(True) for k, v in values.items()}
    out = selective_scan(**leaves, delta_softplus=True, backend=backend)
    (out * gy).sum().backward()
    assert_close(out.detach(), torch.from_numpy(golden["out"]), "out", 1e-5)
    for key, leaf in leaves.items():
        assert_close(leaf.grad, torch.from_numpy(golden[f"grad_{key}"]), f"grad_{key}", 1e-5)


@pytest.mark.parametrize("backend", [name for name in PLAIN if name != "reference"])
@pytest.mark.parametrize("length", [1, 2, 37, 64, 131])
@pytest.mark.parametrize("groups", [None, 3])
def test_backend_equals_reference(backend, length, groups):
    arguments = make(length=length, groups=groups)
    out, last, grads = run(arguments, backend, delta_softplus=True)
    expected_out, expected_last, expected_grads = run(arguments, "reference", delta_softplus=True)
    assert_close(out, expected_out, "out", 1e-12)
    assert_close(last, expected_last, "last state", 1e-12)
    for key in NAMES:
        assert_close(grads[key], expected_grads[key], f"grad_{key}", 1e-10)


@pytest.mark.parametrize("backend", [name for name in PLAIN if name != "reference"])
def test_every_optional_argument(backend):
    optional = ("D", "z", "delta_bias")
    for keep in itertools.chain.from_iterable(itertools.combinations(optional, n) for n in range(3)):
        arguments = {k: v for k, v in make(length=19).items() if k not in optional or k in keep}
        # Without softplus step sizes must be positive for the state to decay.
        arguments["delta"] = arguments["delta"].abs() * 0.1
        if "delta_bias" in arguments:
            arguments["delta_bias"] = arguments["delta_bias"].abs() * 0.1
        out, last, grads = run(arguments, backend)
        expected_out, expected_last, expected_grads = run(arguments, "reference")
        assert_close(out, expected_out, f"out with {keep}", 1e-12)
        assert_close(last, expected_last, f"last state with {keep}", 1e-12)
        for key in arguments:
            assert_close(grads[key], expected_grads[key], f"grad_{key} with {keep}", 1e-10)


def test_backward_in_chunk_groups(monkeypatch):
    from nnunet_ext.ops.selective_scan import chunked

    arguments = make(length=300)
    whole = run(arguments, "chunked", delta_softplus=True)[2]
    monkeypatch.setattr(chunked, "_BACKWARD_BYTES", 1)
    for key, grad in run(arguments, "chunked", delta_softplus=True)[2].items():
        assert_close(grad, whole[key], f"grad_{key}", 1e-12)


def test_constant_weights_equal_repeated_ones():
    arguments = make()
    constant = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    repeated = constant[None, :, :, None].repeat(2, 1, 1, 37)
    a = selective_scan(**{**arguments, "B": constant}, delta_softplus=True)
    b = selective_scan(**{**arguments, "B": repeated}, delta_softplus=True)
    assert_close(a, b, "out", 1e-14)


@pytest.mark.parametrize("backend", PLAIN)
def test_float32_arithmetic_under_autocast(backend):
    arguments = {k: v.float() for k, v in make(length=200).items()}
    expected = selective_scan(**arguments, delta_softplus=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = selective_scan(**arguments, delta_softplus=True, backend=backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
    halved = {k: v.bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in arguments.items()}
    out, last = selective_scan(**halved, delta_softplus=True, return_last_state=True, backend=backend)
    assert out.dtype == torch.bfloat16 and last.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 6)}, "u must be"),
        ({"delta": torch.zeros(2, 6, 36)}, "delta must have the shape of u"),
        ({"A": torch.zeros(5, 4)}, "A must be"),
        ({"A": torch.zeros(6, 4, dtype=torch.complex64)}, "real"),
        ({"B": torch.zeros(2, 4, 36)}, "B must be"),
        ({"C": torch.zeros(2, 4, 4, 37)}, "C must be"),
        ({"D": torch.zeros(7)}, "D must be"),
        ({"backend": "cuda"}, "backend='cuda' is no backend; use auto or one of mamba_ssm, cpu"),
        ({"backend": "mamba_ssm"}, "does not run on cpu: needs a CUDA device"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**make(dtype=torch.float32), **change})


def test_environment_variable_chooses(monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_SCAN", "reference")
    assert choose_backend(torch.device("cpu")) == "reference"
    assert choose_backend(torch.device("cpu"), "chunked") == "chunked"
    monkeypatch.setenv("NNUNET_EXT_SCAN", "fastest")
    with pytest.raises(ValueError, match="NNUNET_EXT_SCAN='fastest'"):
        choose_backend(torch.device("cpu"))


def test_a_backend_that_does_not_take_the_numbers_is_not_chosen(monkeypatch):
    works = [backend._replace(why_not=lambda device: None) for backend in selective_scan_module._BACKENDS]
    monkeypatch.setattr(selective_scan_module, "_BACKENDS", works)
    cpu = torch.device("cpu")
    assert choose_backend(cpu) == choose_backend(cpu, dtype=torch.float16) == "mamba_ssm"
    assert choose_backend(cpu, dtype=torch.float64) == "cpu"
    with pytest.raises(ValueError, match="backend='mamba_ssm' does not run on cpu: takes float32, not float64"):
        choose_backend(cpu, "mamba_ssm", torch.float64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["chunked", "mamba_ssm"])
def test_backends_on_cuda_equal_reference(backend):
    device = torch.device("cuda")
    reason = backend_status(device)[backend]
    if reason is not None:
        pytest.skip(reason)
    arguments = {k: v.float().to(device) for k, v in make(length=777, states=16).items()}
    out, last, grads = run(arguments, backend, delta_softplus=True)
    expected_out, expected_last, expected_grads = run(arguments, "reference", delta_softplus=True)
    assert_close(out, expected_out, "out", 1e-5)
    assert_close(last, expected_last, "last state", 1e-5)
    for key in NAMES:
        assert_close(grads[key], expected_grads[key], f"grad_{key}", 1e-4)
