"""What only the numba backend can get wrong: orders by index, strides, threads, forks, extreme numbers, its cache."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.scans import NAMES, assert_close, make, run

import nnunet_ext
from nnunet_ext.ops import compiled, order
from nnunet_ext.ops.order import reorder, restore
from nnunet_ext.ops.selective_scan import cpu, selective_scan

ORDERS = [("forward", 1), ("reverse", 1), ("slices", 4), ("slices", 1), ("slices", 60)]


@pytest.mark.parametrize(("orientation", "num_slices"), ORDERS)
def test_order_is_what_its_table_says(orientation, num_slices):
    length = 60
    token = {
        "forward": lambda t: t,
        "reverse": lambda t: length - 1 - t,
        "slices": lambda t: (t % num_slices) * (length // num_slices) + t // num_slices,
    }[orientation]
    origin, period, step_stride, run_stride = order.places_of(orientation, num_slices, length)
    for t in range(length):
        assert token(t) == origin + (t % period) * step_stride + (t // period) * run_stride
    x = torch.arange(length)
    assert reorder(x, orientation, num_slices).tolist() == [token(t) for t in range(length)]
    assert torch.equal(restore(reorder(x, orientation, num_slices), orientation, num_slices), x)


@pytest.mark.parametrize("block", [7, 16, 512])
@pytest.mark.parametrize(("orientation", "num_slices"), ORDERS)
def test_orders_by_index_equal_copies(orientation, num_slices, block, monkeypatch):
    monkeypatch.setattr(order, "_BLOCK", block)
    monkeypatch.setattr(order, "_LONGEST_BLOCK", max(block, 48))
    arguments = make(length=60, states=17, groups=2)
    options = {"orientation": orientation, "num_slices": num_slices, "delta_softplus": True}
    out, last, grads = run(arguments, "cpu", **options)
    expected_out, expected_last, expected_grads = run(arguments, "reference", **options)
    assert_close(out, expected_out, "out", 1e-12)
    assert_close(last, expected_last, "last state", 1e-12)
    for key in NAMES:
        assert_close(grads[key], expected_grads[key], f"grad_{key}", 1e-10)


def test_single_precision_is_accurate_over_a_long_sequence():
    arguments = make(batch=1, channels=2, states=16, length=20_000)
    arguments["delta_bias"] -= 3
    exact = selective_scan(**arguments, delta_softplus=True, backend="chunked")
    single = {k: v.float() for k, v in arguments.items()}
    out = selective_scan(**single, delta_softplus=True, backend="cpu")
    # Sixteen roundings of 2^-24: what the state remembers is a few hundred steps, whose roundings add up like the root.
    assert_close(out.double(), exact, "out", 1e-6)


def test_strided_inputs_need_no_copy():
    arguments = make(length=50)
    plain = run(arguments, "cpu", delta_softplus=True)
    u_and_z = torch.cat([arguments["u"], arguments["z"]], dim=1)
    arguments["u"], arguments["z"] = u_and_z.chunk(2, dim=1)
    arguments["delta"] = arguments["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    out = selective_scan(**arguments, delta_softplus=True, backend="cpu")
    assert torch.equal(out, plain[0])


@pytest.mark.parametrize("partial_bytes", [1, 2**20])
def test_threads_change_nothing_but_the_order_of_sums(partial_bytes, monkeypatch):
    arguments = make(channels=5, length=70)
    one = run(arguments, "cpu", delta_softplus=True)
    monkeypatch.setattr(compiled, "_LEAST_WORK", 1)
    monkeypatch.setattr(order, "_BLOCK", 16)
    monkeypatch.setattr(cpu, "_PARTIAL_BYTES", partial_bytes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = run(arguments, "cpu", delta_softplus=True)
    assert_close(three[0], one[0], "out", 1e-13)
    for key in NAMES:
        assert_close(three[2][key], one[2][key], f"grad_{key}", 1e-12)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_nan_is_never_swallowed(name):
    arguments = {k: v.float() for k, v in make(states=16).items()}
    arguments[name].flatten()[3] = float("nan")
    out = selective_scan(**arguments, delta_softplus=True, backend="cpu")
    expected = selective_scan(**arguments, delta_softplus=True, backend="reference")
    assert expected.isnan().any()
    assert torch.equal(out.isnan(), expected.isnan())
    # Backward from a finite forward: NaN in the incoming gradient reaches every gradient it should.
    leaves = {k: v.nan_to_num(0.5).requires_grad_(True) for k, v in arguments.items()}
    selective_scan(**leaves, delta_softplus=True, backend="cpu").backward(torch.full_like(out, float("nan")))
    assert all(x.grad.isnan().any() for x in leaves.values())


def test_extreme_step_sizes():
    arguments = {k: v.float() for k, v in make(states=16).items()}
    arguments["delta"][..., ::5] = 1e6
    arguments["delta"][..., 1::5] = -1e6
    arguments["delta"][..., 2::5] = float("-inf")
    arguments["u"][..., ::5] *= 1e-6
    out, last, grads = run(arguments, "cpu", delta_softplus=True)
    expected_out, expected_last, _ = run(arguments, "reference", delta_softplus=True)
    assert_close(out, expected_out, "out", 1e-5)
    assert_close(last, expected_last, "last state", 1e-5)
    assert all(grad.isfinite().all() for grad in grads.values())


def test_growing_states_overflow_to_infinity():
    ones = torch.ones(1, 1, 200)
    out = selective_scan(ones, ones, torch.ones(1, 1), ones, ones, backend="cpu")
    assert out.isinf().any() and not out.isnan().any()


def test_empty_sequence():
    out, last = selective_scan(**make(length=0), return_last_state=True, backend="cpu")
    assert out.shape == (2, 6, 0) and not last.any()


def _in_child(queue):
    queue.put(run(make(), "cpu", delta_softplus=True)[0].numpy())


def test_works_in_a_forked_child_and_in_many_threads(monkeypatch):
    monkeypatch.setattr(compiled, "_LEAST_WORK", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    expected = run(make(), "cpu", delta_softplus=True)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    assert torch.equal(torch.from_numpy(queue.get(timeout=60)), expected)
    child.join(60)
    assert child.exitcode == 0

    results = []
    workers = [
        threading.Thread(target=lambda: results.append(run(make(), "cpu", delta_softplus=True)[0])) for _ in "123"
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(results) == 3 and all(torch.equal(x, expected) for x in results)


def test_no_folder_to_cache_in_is_no_obstacle(tmp_path):
    """A package on a read-only disk, and no home: files where folders should be stop even root."""
    package = tmp_path / "package" / "nnunet_ext"
    shutil.copytree(Path(nnunet_ext.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "ops" / "selective_scan" / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    code = (
        "import torch; from nnunet_ext.ops.selective_scan import cpu, selective_scan as s;"
        "x = torch.ones(1, 1, 8); print(cpu.__file__, float(s(x, x, -x[0, :, :1], x, x, backend='cpu').sum()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {name: str(tmp_path / "home" / "x") for name in ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    file, total = done.stdout.split()
    assert Path(file).is_relative_to(package) and float(total) > 8


def test_compiles_without_graph_breaks():
    arguments = make(length=20)
    options = {"orientation": "slices", "num_slices": 4, "delta_softplus": True, "backend": "cpu"}
    plain = selective_scan(**arguments, **options) * 2
    traced = torch.compile(lambda **kw: selective_scan(**kw, **options) * 2, backend="aot_eager", fullgraph=True)
    leaves = {k: v.clone().requires_grad_(True) for k, v in arguments.items()}
    out = traced(**leaves)
    assert torch.equal(out, plain)
    (out / 2 * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    leaves_plain = {k: v.clone().requires_grad_(True) for k, v in arguments.items()}
    out = selective_scan(**leaves_plain, **options)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    for key in NAMES:
        assert_close(leaves[key].grad, leaves_plain[key].grad, f"grad_{key}", 1e-12)


def test_operator_contract():
    arguments = make(length=20)
    inputs = [
        v.requires_grad_(True)
        for v in {**arguments, "B": arguments["B"][:, None], "C": arguments["C"][:, None]}.values()
    ]
    torch.library.opcheck(
        torch.ops.nnunet_ext.selective_scan_cpu.default,
        (*inputs, True, "slices", 4, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
