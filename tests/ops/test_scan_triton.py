"""The Triton kernels of the scan, in Triton's interpreter."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.interpreter import inside, linux_only, outside, passed
from helpers.scans import NAMES, assert_close, make, run

from nnunet_ext.ops.selective_scan import backend_status, gpu, selective_scan

pytestmark = linux_only


@outside
def test_in_the_interpreter():
    assert passed(__file__) == 11


@outside
def test_needs_a_gpu():
    assert backend_status("cpu")["triton"] == "needs a CUDA device"


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several chunks, several carries and several blocks of channels even at tiny sizes."""
    monkeypatch.setattr(gpu, "_STEPS", 8)
    monkeypatch.setattr(gpu, "_CHANNELS", 4)
    monkeypatch.setattr(gpu, "_CHUNKS", 2)


@inside
@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ({"length": 37, "states": 3, "batch": 2, "channels": 6}, {}),
        ({"length": 20, "states": 2, "batch": 1, "channels": 6, "groups": 3}, {"orientation": "reverse"}),
        ({"length": 20, "states": 1, "batch": 2, "channels": 5}, {"orientation": "slices", "num_slices": 5}),
        ({"length": 1, "states": 2, "batch": 1, "channels": 2}, {}),
    ],
    ids=lambda x: ",".join(f"{k}={v}" for k, v in x.items()),
)
def test_equals_reference(sizes, order):
    arguments = make(**sizes)
    out, last, grads = run(arguments, "triton", delta_softplus=True, **order)
    expected_out, expected_last, expected_grads = run(arguments, "reference", delta_softplus=True, **order)
    assert_close(out, expected_out, "out", 1e-12)
    assert_close(last, expected_last, "last state", 1e-12)
    for key in NAMES:
        assert_close(grads[key], expected_grads[key], f"grad_{key}", 1e-10)


@inside
@pytest.mark.parametrize("keep", [(), ("D",), ("z",), ("delta_bias",)], ids=str)
def test_every_optional_argument(keep):
    optional = ("D", "z", "delta_bias")
    sizes = {"length": 9, "states": 1, "batch": 1, "channels": 2}
    arguments = {k: v for k, v in make(**sizes).items() if k not in optional or k in keep}
    arguments["delta"] = arguments["delta"].abs() * 0.1
    out, last, grads = run(arguments, "triton")
    expected_out, expected_last, expected_grads = run(arguments, "reference")
    assert_close(out, expected_out, "out", 1e-12)
    assert_close(last, expected_last, "last state", 1e-12)
    for key in arguments:
        assert_close(grads[key], expected_grads[key], f"grad_{key}", 1e-10)


@inside
def test_half_precision_inputs_and_strided_memory():
    arguments = make(length=12, states=2, batch=2, channels=4, dtype=torch.float32)
    halved = {k: v.bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in arguments.items()}
    expected = selective_scan(**{k: v.float() for k, v in halved.items()}, delta_softplus=True, backend="reference")
    # Channels last, u and z the halves of one tensor, as a projection leaves them.
    joined = torch.cat([halved["u"], halved["z"]], 1).transpose(1, 2).contiguous().transpose(1, 2)
    halved["u"], halved["z"] = joined.chunk(2, dim=1)
    out, last = selective_scan(**halved, delta_softplus=True, backend="triton", return_last_state=True)
    assert out.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert_close(out.float(), expected, "out", 1e-2)


@inside
def test_nan_is_never_swallowed():
    arguments = make(length=12, states=2, batch=1, channels=4, dtype=torch.float32)
    arguments["delta"][0, 1, 3] = float("nan")
    out = selective_scan(**arguments, delta_softplus=True, backend="triton")
    assert torch.equal(out.isnan(), selective_scan(**arguments, delta_softplus=True, backend="reference").isnan())


@inside
def test_empty_sequence():
    leaves = {k: v.requires_grad_(True) for k, v in make(length=0).items()}
    out, last = selective_scan(**leaves, return_last_state=True, backend="triton")
    assert out.shape == (2, 6, 0) and not last.any()


@outside
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiles_for_a_gpu_that_is_not_there(architecture):
    """To machine code, by the assembler that comes with Triton: what the interpreter takes, the compiler may refuse."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nnunet_ext.ops.selective_scan import triton_kernels as kernels

    constants = {"STATES": 16, "SOFTPLUS": True, "GATED": True, "ORDER": 2, "STEPS": 64, "CHANNELS": 32, "CHUNKS": 64}
    constants["COMPUTE"] = triton.language.float32
    for name in ("chunk_ends", "carry", "outputs", "gradients"):
        kernel = getattr(kernels, name)
        for backward in (False, True):
            signature, constexprs = {}, {}
            for parameter in inspect.signature(kernel.fn).parameters:
                if parameter.isupper() and len(parameter) > 1:
                    signature[parameter] = "constexpr"
                    constexprs[parameter] = {**constants, "BACKWARD": backward}[parameter]
                elif parameter.endswith("_row") or parameter in (
                    "length", "channels", "group_channels", "num_slices", "chunks",
                ):  # fmt: skip
                    signature[parameter] = "i32"
                else:
                    signature[parameter] = "*fp32"
            target = GPUTarget("cuda", architecture, 32)
            source = ASTSource(kernel, signature, constexprs)
            compiled = triton.compile(source, target=target, options={"num_warps": 8})
            assert compiled.asm["cubin"]
            if "BACKWARD" not in constexprs:
                break
