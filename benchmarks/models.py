"""Parameters, multiply-adds, CPU seconds and peak memory of each network at its published sizes.

    python benchmarks/models.py                          # all rows; writes benchmarks/results/models.csv
    python benchmarks/models.py --only unetrpp-synapse   # measures these rows again, keeps the others

Correctness first: a row is timed only if its network gives the published outputs (golden files of the tests) or, where
there is a step-by-step reference, that reference's outputs (at the very size that is timed) and gradients, dropout
off. Times are `time.process_time` of one thread, the least of `--repeats` rounds in which network and reference take
turns; training mode, dropout on, batch 1. Forward and training are timed in a fresh process each, as is peak memory
(Linux only). Multiply-adds are half of what `torch.utils.flop_counter` counts: convolutions and matrix products, so
not scans, norms and activations.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.architectures.medsegdiff.sampled import DirectControl, SampledMedSegDiffV2
from nnunet_ext.architectures.segmamba import OFFICIAL_NUM_SLICES, SegMamba
from nnunet_ext.architectures.unetrpp import UNETRPP
from nnunet_ext.architectures.unetrpp.epa import EPA
from nnunet_ext.architectures.unetrpp.plain import plain_forward
from nnunet_ext.diffusion.samplers import sample
from nnunet_ext.diffusion.sampling import draw_noise
from nnunet_ext.files import write_text
from nnunet_ext.plans.network import arguments_for_patch, count_parameters
from nnunet_ext.trainers.medsegdiff import PAPER
from nnunet_ext.trainers.run_record import describe_hardware, describe_software

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "models.csv"
GOLDEN = HERE.parent / "tests" / "golden"
COLUMNS = (
    "model", "implementation", "channels", "classes", "patch_size", "parameters", "gmacs", "forward_cpu_seconds",
    "training_cpu_seconds", "forward_ratio", "training_ratio", "forward_peak_mib", "training_peak_mib", "gate",
    "date", "processor", "torch", "nnunet_ext",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network at one size."""

    channels: int
    classes: int
    patch_size: tuple[int, ...]
    build: Callable[[Row], nn.Module]
    gate: Callable[[nn.Module, Row], str]  # what was compared and how well; raises SystemExit where it differs
    plain: Callable[[nn.Module, Tensor], list[Tensor]] | None = None
    trained: bool = True  # False where a training step takes more memory than most machines have


def unetrpp(variant: str) -> Callable[[Row], nn.Module]:
    def build(row: Row) -> nn.Module:
        model = UNETRPP(row.channels, row.classes, True, patch_size=row.patch_size, variant=variant)
        for block in model.modules():
            if hasattr(block, "gamma"):  # 1e-6 at first, which would hide a wrong attention from the gate
                nn.init.constant_(block.gamma, 0.5)
        return model

    return build


def segmamba(row: Row) -> nn.Module:
    return SegMamba(row.channels, row.classes, num_slices=OFFICIAL_NUM_SLICES)


def same_as_plain(model: nn.Module, row: Row) -> str:
    """Against the reference: outputs at the row's size; outputs and gradients in double precision at half of it.

    In single precision the gradients of either are a percent from the true ones (kinks of the activation).
    """
    half = replace(row, patch_size=tuple(size // 2 for size in row.patch_size))
    small = half.build(half).double().train()
    with no_dropout(model), no_dropout(small), torch.no_grad():
        single = compare(model(image(row)), plain_forward(model, image(row)))  # type: ignore[arg-type]
    with no_dropout(small):
        x = image(half).double()
        found, expected = small(x), plain_forward(small, x)  # type: ignore[arg-type]
        weights = [torch.randn_like(output) for output in expected]
        ours, theirs = (torch.autograd.grad(o, tuple(small.parameters()), weights) for o in (found, expected))
    double = max(compare(found, expected), compare(ours, theirs))
    text = f"{single:.1e} of the largest output from plain; with gradients, in double precision, {double:.1e}"
    if single > 1e-4 or double > 1e-9:
        raise SystemExit(f"not timed: {text}")
    return text


def compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference in units of each tensor's largest entry; gradients zero up to rounding are left out."""
    scale = max(float(tensor.abs().max()) for tensor in expected)
    return max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in zip(found, expected, strict=True)
        if b.abs().max() > 1e-6 * scale
    )


@contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """Switch the dropout of UNETR++'s attention and convolutions off for a while."""
    switched = [(module, "p") for module in model.modules() if isinstance(module, nn.Dropout3d)]
    switched += [(module, "dropout") for module in model.modules() if isinstance(module, EPA)]
    rates = [getattr(*pair) for pair in switched]
    for module, name in switched:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for (module, name), rate in zip(switched, rates, strict=True):
            setattr(module, name, rate)


def segmamba_golden(model: nn.Module, row: Row) -> str:
    from nnunet_ext.checkpoints import build_from_official

    sys.path.insert(0, str(GOLDEN.parent / "helpers"))
    from fill import fill_state_dict, make_input  # type: ignore[import-not-found]

    golden = np.load(GOLDEN / "segmamba_a.npz")
    config = json.loads(str(golden["config"]))
    shapes = {key: tuple(shape) for key, shape in json.loads(str(golden["shapes"])).items()}
    small = build_from_official(
        "segmamba",
        {key: torch.from_numpy(value) for key, value in fill_state_dict(shapes).items()},
        in_channels=config["in_chans"], num_classes=config["out_chans"], depths=config["depths"],
        dims=config["feat_size"], hidden_size=config["hidden_size"],
    )  # fmt: skip
    with torch.no_grad():
        found = small(torch.from_numpy(make_input(str(golden["input_name"]), tuple(golden["input_shape"])))).numpy()
    difference = float(np.abs(found - golden["output"]).max() / golden["absmax"])
    if difference > 1e-4:
        raise SystemExit(f"not timed: {difference:.1e} of the largest output from the published one")
    return f"outputs {difference:.1e} of the largest from the published ones, at the small size of the golden file"


def medsegdiff(kind: str) -> Callable[[Row], nn.Module]:
    """MedSegDiff-V2 as its trainers build it: "default", "paper", or the "direct" control."""

    def build(row: Row) -> nn.Module:
        strides = [[1] * len(row.patch_size), *[[2] * len(row.patch_size)] * 4]
        sizes = arguments_for_patch("medsegdiff", "base", list(row.patch_size), strides)
        if kind == "direct":
            return DirectControl(row.channels, row.classes, **sizes)
        published = {**PAPER, "denoiser_width": sizes["width"]} if kind == "paper" else {}
        model = SampledMedSegDiffV2(row.channels, row.classes, **{**sizes, **published})
        for parameter in (*model.trained.parameters(), *model.average.parameters()):
            if not parameter.detach().any():  # zero at first, which would hide a wrong part from the gate
                nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
        return model

    return build


def same_as_one_by_one(model: nn.Module, row: Row) -> str:
    """Against samples drawn one by one, the image looked at anew in each step; for the control nothing is compared."""
    if isinstance(model, DirectControl):
        return "the condition model of medsegdiff, compared there"
    model.eval()
    few = replace(model.sampling, samples=min(model.sampling.samples, 2), steps=2)
    model.sampling, full = few, model.sampling
    with torch.no_grad():
        found = model(image(row))
        drawn = []
        for number in range(few.samples):

            def noise(step: int, number: int = number) -> Tensor:
                return draw_noise((few.seed, number, step), row.classes, row.patch_size)[None]

            def denoise(x_t: Tensor, t: Tensor) -> Tensor:
                with torch.enable_grad():  # filters are kept without
                    y = model.average.denoise(x_t, t, model.average.condition(image(row))).detach()
                return 2 * y.softmax(1) - 1 if model.prediction == "x0" else y

            x0 = sample(
                denoise, noise(len(model.schedule)), model.schedule, steps=2, sampler=few.sampler,
                prediction=model.prediction, noise=noise,
            )  # fmt: skip
            drawn.append((x0 + 1) / 2)
        expected = model.fuse(torch.cat(drawn))
    model.sampling = full
    difference = compare([found], [expected])
    if difference > 1e-3:
        raise SystemExit(f"not timed: {difference:.1e} of the largest output from samples drawn one by one")
    return f"{difference:.1e} of the largest output from samples drawn one by one (two steps, up to two samples)"


ROWS = {
    "unetrpp-synapse": Row(1, 14, (64, 128, 128), unetrpp("synapse"), same_as_plain, plain_forward),
    "unetrpp-acdc": Row(1, 4, (16, 160, 160), unetrpp("acdc"), same_as_plain, plain_forward),
    "unetrpp-lung": Row(1, 2, (32, 192, 192), unetrpp("lung"), same_as_plain, plain_forward),
    "unetrpp-tumor": Row(4, 4, (128, 128, 128), unetrpp("tumor"), same_as_plain, plain_forward),
    "segmamba-brats": Row(4, 4, (128, 128, 128), segmamba, segmamba_golden, trained=False),
    # Evaluations of the diffusion model per window: none, 2, and 100 steps times 10 samples.
    "medsegdiff-2d-direct": Row(1, 3, (64, 64), medsegdiff("direct"), same_as_one_by_one, trained=False),
    "medsegdiff-2d": Row(1, 3, (64, 64), medsegdiff("default"), same_as_one_by_one, trained=False),
    "medsegdiff-2d-paper": Row(1, 3, (64, 64), medsegdiff("paper"), same_as_one_by_one, trained=False),
    "medsegdiff-3d-direct": Row(1, 3, (64, 64, 64), medsegdiff("direct"), same_as_one_by_one, trained=False),
    "medsegdiff-3d": Row(1, 3, (64, 64, 64), medsegdiff("default"), same_as_one_by_one, trained=False),
}


def image(row: Row) -> Tensor:
    return torch.randn(1, row.channels, *row.patch_size, generator=torch.Generator().manual_seed(0))


def outputs(network: Callable[[Tensor], Tensor | Sequence[Tensor]], x: Tensor) -> Sequence[Tensor]:
    found = network(x)
    return [found] if isinstance(found, Tensor) else found


def step(network: Callable, model: nn.Module, x: Tensor, backward: bool) -> None:
    """One pass as in inference, or one with backward as in training."""
    model.train(backward)
    with torch.set_grad_enabled(backward):
        found = outputs(network, x)
        if backward:
            model.zero_grad()
            sum(output.square().mean() for output in found).backward()  # type: ignore[union-attr]


def measure(name: str, repeats: int) -> list[dict[str, object]]:
    """All figures of one row, for the network and its reference."""
    row = ROWS[name]
    torch.manual_seed(0)
    model = row.build(row)
    gate = row.gate(model.train(), row)
    print(f"{name}: {gate}", flush=True)
    implementations = list(networks(row, model))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        # Fused attention is not counted, its plain form is.
        networks(row, model.eval())[implementations[-1]](image(row))
    records: dict[str, dict[str, object]] = {key: {} for key in implementations}
    for backward, what in ((False, "forward"), (True, "training"))[: 1 + row.trained]:
        seconds = in_process(timed, name, repeats, backward)
        for key, record in records.items():
            record[f"{what}_cpu_seconds"] = round(seconds[key], 3)
            record[f"{what}_peak_mib"] = in_process(peak, name, key, backward)
            if row.plain is not None:
                record[f"{what}_ratio"] = round(seconds[key] / seconds["plain"], 3)
    return [
        {
            "model": name,
            "implementation": key,
            "channels": row.channels,
            "classes": row.classes,
            "patch_size": "x".join(map(str, row.patch_size)),
            "parameters": count_parameters(model),
            "gmacs": round(counter.get_total_flops() / 2e9, 2),
            **record,
            "gate": gate,
            "date": datetime.date.today().isoformat(),
            "processor": f"{describe_hardware(torch.device('cpu'))['processor']}, one thread",
            **{package: describe_software()[package] for package in ("torch", "nnunet_ext")},
        }
        for key, record in records.items()
    ]


def networks(row: Row, model: nn.Module) -> dict[str, Callable]:
    """The network and, last, its reference if there is one."""
    plain = {} if row.plain is None else {"plain": lambda x: row.plain(model, x)}  # type: ignore[misc]
    return {"nnunet_ext": model, **plain}


def in_process(function: Callable, *arguments: object):
    """Call one of the functions below in a process of its own: neither heap nor peak of an earlier step is left."""
    command = [sys.executable, __file__, "--child", json.dumps([function.__name__, *arguments])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def timed(name: str, repeats: int, backward: bool) -> dict[str, float]:
    """Least CPU seconds of each implementation, taking turns; the first round warms up and is dropped."""
    row = ROWS[name]
    model = row.build(row)
    times: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for key, network in networks(row, model).items():
            start = time.process_time()
            step(network, model, image(row), backward)
            times.setdefault(key, []).append(time.process_time() - start)
    return {key: min(values[1:]) for key, values in times.items()}


def peak(name: str, implementation: str, backward: bool) -> int:
    """Peak resident MiB of building the network and one step; imports and weights included."""
    row = ROWS[name]
    model = row.build(row)
    step(networks(row, model)[implementation], model, image(row), backward)
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the command calling itself, see in_process
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        function, *values = json.loads(arguments.child)
        print(json.dumps({"timed": timed, "peak": peak}[function](*values)))
        return
    for name in arguments.only:
        measured = measure(name, arguments.repeats)
        for record in measured:
            print({key: record.get(key) for key in COLUMNS[1:-5]}, flush=True)
        kept = []
        if RESULTS.is_file():
            with RESULTS.open(newline="") as file:
                kept = [record for record in csv.DictReader(file) if record["model"] != name]
        records = sorted([*kept, *measured], key=lambda record: list(ROWS).index(str(record["model"])))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        RESULTS.parent.mkdir(exist_ok=True)
        write_text(RESULTS, buffer.getvalue())


if __name__ == "__main__":
    main()
