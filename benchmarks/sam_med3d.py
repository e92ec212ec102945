"""SAM-Med3D at its published size on a 128x128x128 volume: CPU seconds and peak memory of the encoder, time per click.

    python benchmarks/sam_med3d.py          # writes benchmarks/results/sam_med3d.csv

Correctness first: the small network gives the published outputs (golden file of the tests), and at the published size
the encoder's short way (padding tokens as one key) gives what the padded windows of the official code give. Times are
`time.process_time` of one thread, the least of `--repeats`; peak memory is that of a fresh process each (Linux only).
Weights are random: neither times nor memory depend on them. "click" is one further click with the embedding kept,
from the click to logits on the volume; "first click" includes the encoder.
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

from nnunet_ext.architectures.sam_med3d.promptable import PromptableSAMMed3D
from nnunet_ext.checkpoints import build_from_official
from nnunet_ext.clicks.prompted_object import PreparedVolume, PromptedObject
from nnunet_ext.files import write_text
from nnunet_ext.trainers.run_record import describe_hardware, describe_software

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "sam_med3d.csv"
GOLDEN = HERE.parent / "tests" / "golden"
SIZE = 128
COLUMNS = (
    "what", "implementation", "cpu_seconds", "ratio", "peak_mib", "gate", "date", "processor", "torch", "nnunet_ext",
)  # fmt: skip


def network(padded: bool) -> PromptableSAMMed3D:
    """The published size with weights of which every part matters."""
    generator = torch.Generator().manual_seed(0)
    model = PromptableSAMMed3D(1, 2).eval()
    for name, parameter in model.named_parameters():
        spread = 0.02 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        centre = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "neck.1.weight", "neck.3.weight")) else 0.0
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + centre
    for block in model.sam.image_encoder.blocks:
        grid = block.attn.window
        block.cuts_windows = padded and grid > SIZE // 16
    return model


def image() -> torch.Tensor:
    return torch.randn(1, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def golden_gate() -> str:
    sys.path.insert(0, str(GOLDEN.parent / "helpers"))
    from fill import fill_state_dict, make_input  # type: ignore[import-not-found]

    golden = np.load(GOLDEN / "sammed3d_small.npz")
    config = json.loads(str(golden["meta_json"]))["config"]
    model = build_from_official(
        "sam_med3d",
        {k: torch.from_numpy(v) for k, v in fill_state_dict(json.loads(str(golden["state_dict_json"]))).items()},
        **{key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "window_size")},
        out_channels=config["out_chans"], global_attention=config["global_attn_indexes"],
        iou_hidden=config["iou_head_hidden_dim"],
    )  # fmt: skip
    with torch.no_grad():
        found = model.image_encoder(torch.from_numpy(make_input("sammed3d-small-a", (1, 1, 64, 64, 64)))).numpy()
    difference = float(np.abs(found - golden["image_embedding"]).max())
    if difference > 1e-5:
        raise SystemExit(f"not timed: {difference:.1e} from the published image embedding")
    return f"small network {difference:.1e} from the published embedding"


@torch.inference_mode()
def encoder(padded: bool, repeats: int) -> float:
    """Least CPU seconds of one volume; the first call warms up."""
    model, x = network(padded).sam.image_encoder, image()
    return least(lambda: model(x), repeats)


def least(function, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


@torch.inference_mode()
def peak(padded: bool) -> int:
    """Peak resident MiB of building the network and encoding one volume; imports and weights included."""
    network(padded).sam.image_encoder(image())
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


@torch.inference_mode()
def same() -> str:
    """The short way against the padded one, at the size that is timed."""
    short, padded = (network(flag).sam.image_encoder(image()) for flag in (False, True))
    difference = float((short - padded).abs().max() / padded.abs().max())
    if difference > 1e-4:
        raise SystemExit(f"not timed: {difference:.1e} of the largest value from the padded windows")
    return f"{difference:.1e} of the largest value from padded windows"


def clicks(repeats: int) -> dict[str, float]:
    """CPU seconds of the first click and, each the least, of a further one up to logits on the volume."""
    found = PromptedObject(network(False), PreparedVolume(image()[0], (SIZE,) * 3, (1.5,) * 3))

    def click() -> None:
        found.click((64, 60, 70), positive=True)
        found.logits()

    start = time.process_time()
    click()
    first = time.process_time() - start
    return {"first click": first, "click": least(click, repeats)}


def in_process(name: str, *arguments: object):
    command = [sys.executable, __file__, "--child", json.dumps([name, *arguments])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the command calling itself, see in_process
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        name, *values = json.loads(arguments.child)
        print(json.dumps({"encoder": encoder, "peak": peak, "same": same, "clicks": clicks}[name](*values)))
        return
    gate = f"{golden_gate()}; {in_process('same')}"
    print(gate, flush=True)
    records: list[dict[str, object]] = []
    seconds = {padded: in_process("encoder", padded, arguments.repeats) for padded in (False, True)}
    for padded, name in ((False, "nnunet_ext"), (True, "padded windows")):
        records.append(
            {
                "what": "image encoder", "implementation": name, "cpu_seconds": round(seconds[padded], 3),
                "ratio": round(seconds[padded] / seconds[True], 3), "peak_mib": in_process("peak", padded),
                "gate": gate,
            }
        )  # fmt: skip
        print(records[-1], flush=True)
    for what, value in in_process("clicks", arguments.repeats).items():
        records.append({"what": what, "implementation": "nnunet_ext", "cpu_seconds": round(value, 3)})
        print(records[-1], flush=True)
    common = {
        "date": datetime.date.today().isoformat(),
        "processor": f"{describe_hardware(torch.device('cpu'))['processor']}, one thread",
        **{package: describe_software()[package] for package in ("torch", "nnunet_ext")},
    }
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**record, **common} for record in records)
    write_text(RESULTS, buffer.getvalue())


if __name__ == "__main__":
    main()
