"""CPU seconds and memory of the published UniverSeg against the plain concatenation, at support 1, 16 and 64.

    python benchmarks/universeg.py          # writes benchmarks/results/universeg.csv

Correctness first: a row is timed only if the network gives the published outputs (golden files of the tests) and those
of the plain network at the very size that is timed. Times are `time.process_time` of one thread on 128x128, the least
of `--repeats` rounds in which both take turns. Memory is what a forward pass adds to a fresh process that has built
the network and its inputs (Linux only).
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
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.universeg import UniverSeg
from nnunet_ext.architectures.universeg.plain import plain_forward
from nnunet_ext.checkpoints import build_from_official
from nnunet_ext.files import write_text
from nnunet_ext.trainers.run_record import describe_hardware, describe_software

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "universeg.csv"
GOLDEN = HERE.parent / "tests" / "golden"
ROWS = [(1, False), (16, False), (64, False), (16, True)]  # support size, with backward
COLUMNS = (
    "support", "backward", "cpu_seconds", "plain_cpu_seconds", "times_faster", "extra_mib", "plain_extra_mib",
    "times_less_memory", "largest_difference", "largest_difference_from_published", "date", "processor", "torch",
    "nnunet_ext",
)  # fmt: skip


def inputs(support: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target, images = (torch.rand(1, *shape, 128, 128, generator=generator) for shape in ((1,), (support, 1)))
    return target, images, (images > 0.5).float()


def network() -> UniverSeg:
    torch.manual_seed(0)
    return UniverSeg().eval()


def run(implementation: str, model: UniverSeg, support: int, backward: bool) -> Tensor:
    function = model if implementation == "fast" else lambda *x: plain_forward(model, *x)
    with torch.set_grad_enabled(backward):
        output = function(*inputs(support))
        if backward:
            model.zero_grad()
            output.square().mean().backward()
    return output.detach()


def published_gate() -> float:
    """Largest difference from the outputs of the published code, over both golden files."""
    sys.path.insert(0, str(GOLDEN.parent / "helpers"))
    from fill import fill_state_dict, make_input  # type: ignore[import-not-found]

    largest = 0.0
    for name in ("small", "asym"):
        golden = np.load(GOLDEN / f"universeg_{name}.npz")
        shapes = {key: tuple(shape) for key, shape in json.loads(str(golden["shapes"])).items()}
        weights = {key: torch.from_numpy(value) for key, value in fill_state_dict(shapes).items()}
        model = build_from_official("universeg", weights, **json.loads(str(golden["config"]))["kwargs"])
        x = [
            torch.from_numpy(make_input(d["make_input"], tuple(d["shape"])))
            for d in json.loads(str(golden["inputs"])).values()
        ]
        with torch.inference_mode():
            found = model(x[0], x[1], (x[2] > 0).float()).numpy()
        largest = max(largest, float(np.abs(found - golden["output"]).max()))
    if largest > 1e-5:
        raise SystemExit(f"not timed: {largest:.1e} from the published outputs")
    return largest


def measure(support: int, backward: bool, repeats: int, published: float) -> dict[str, object]:
    model = network()
    difference = float((run("fast", model, support, backward) - run("plain", model, support, backward)).abs().max())
    if difference > 1e-5:
        raise SystemExit(f"not timed: {difference:.1e} from the plain network at support {support}")
    seconds: dict[str, list[float]] = {"fast": [], "plain": []}
    for _ in range(repeats):  # the gate has warmed up
        for implementation, times in seconds.items():
            start = time.process_time()
            run(implementation, model, support, backward)
            times.append(time.process_time() - start)
    fast, plain = min(seconds["fast"]), min(seconds["plain"])
    memory = {implementation: extra_mib(implementation, support, backward) for implementation in seconds}
    software = describe_software()
    return {
        "support": support,
        "backward": int(backward),
        "cpu_seconds": round(fast, 3),
        "plain_cpu_seconds": round(plain, 3),
        "times_faster": round(plain / fast, 2),
        "extra_mib": memory["fast"],
        "plain_extra_mib": memory["plain"],
        "times_less_memory": round(memory["plain"] / memory["fast"], 2),
        "largest_difference": f"{difference:.1e}",
        "largest_difference_from_published": f"{published:.1e}",
        "date": datetime.date.today().isoformat(),
        "processor": f"{describe_hardware(torch.device('cpu'))['processor']}, one thread",
        **{package: software[package] for package in ("torch", "nnunet_ext")},
    }


def extra_mib(implementation: str, support: int, backward: bool) -> int:
    """Peak memory of one pass above that of the process before it, in a process of its own."""
    command = [sys.executable, __file__, "--child", implementation, str(support), str(int(backward))]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def child(implementation: str, support: int, backward: bool) -> int:
    model = network()
    before = resident("VmRSS")
    run(implementation, model, support, backward)
    return (resident("VmHWM") - before) // 1024


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # the command calling itself, see extra_mib
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        implementation, support, backward = arguments.child
        print(child(implementation, int(support), backward == "1"))
        return
    published = published_gate()
    rows = []
    for support, backward in ROWS:
        rows.append(measure(support, backward, arguments.repeats, published))
        print({key: rows[-1][key] for key in COLUMNS[:10]}, flush=True)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(RESULTS, buffer.getvalue())


if __name__ == "__main__":
    main()
