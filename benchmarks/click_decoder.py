"""How soon a decoder learns to use clicks: a trained image encoder is kept, everything else begins anew.

    python benchmarks/click_decoder.py --preprocessed .../Dataset004_Hippocampus --encoder checkpoint_final.pth

The encoder comes from a run of nnUNetTrainerSAMMed3D (`tiny`) on the same data set. On its embeddings of 64 training
cases the prompt encoder and decoder are trained for 300 steps of batch 4, without augmentation, and 12 validation
cases are clicked through by the uniform user after them: minutes on one thread. The result goes to
benchmarks/results/click_decoder.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import blosc2
import numpy as np
import torch
from torch import Tensor

from nnunet_ext.architectures.sam_med3d.promptable import ACCUMULATE, PromptableSAMMed3D, mask_only_rounds
from nnunet_ext.files import read_json, write_text
from nnunet_ext.losses import binary_dice_ce
from nnunet_ext.models.sam_med3d import SIZES
from nnunet_ext.prompts.rounds import interact
from nnunet_ext.prompts.simulate import uniform_clicks
from nnunet_ext.prompts.types import Points
from nnunet_ext.trainers.run_record import describe_hardware, describe_software

CLICKS = (1, 3, 5, 10)
PATCH = torch.Size((40, 56, 40))
RESULTS = Path(__file__).parent / "results" / "click_decoder.csv"


def load(folder: Path, case: str) -> Tensor:
    """Image and labels (2, *PATCH) of a preprocessed case, cropped or padded around its centre."""
    image, labels = (blosc2.open(str(folder / f"{case}{end}.b2nd"), mode="r")[:][0] for end in ("", "_seg"))
    out = np.zeros((2, *PATCH), np.float32)
    source = tuple(
        slice(max((n - m) // 2, 0), max((n - m) // 2, 0) + min(n, m)) for n, m in zip(image.shape, PATCH, strict=True)
    )
    target = tuple(
        slice(max((m - n) // 2, 0), max((m - n) // 2, 0) + min(n, m)) for n, m in zip(image.shape, PATCH, strict=True)
    )
    out[(0, *target)], out[(1, *target)] = image[source], np.maximum(labels[source], 0)
    return torch.from_numpy(out)


def click(network: PromptableSAMMed3D, embedding: Tensor, objects: Tensor, rounds: int, training: bool):
    """The interaction of a training step, or of clicks alone."""
    low_res = network.no_mask(len(embedding), embedding.device)
    without = mask_only_rounds(rounds) if training else frozenset()
    accumulate = not training or float(torch.rand(())) < ACCUMULATE

    def step(points: Points, number: int) -> Tensor:
        nonlocal low_res
        shown = None if number in without else points if accumulate else points.newest()
        low_res = network.segment(embedding, shown, low_res, PATCH)
        return network.upscale(low_res, PATCH)[:, 0]

    return interact(objects, uniform_clicks, step, rounds, mask_only=without)


@torch.no_grad()
def curve(network: PromptableSAMMed3D, embedding: Tensor, objects: Tensor) -> list[float]:
    """Mean Dice after each number of clicks."""
    dice = []
    for logits in click(network, embedding, objects, CLICKS[-1], False):
        marked = logits > 0
        both = (marked & objects).flatten(1).sum(1)
        dice.append(float((2 * both / (marked.flatten(1).sum(1) + objects.flatten(1).sum(1))).mean()))
    return [dice[n - 1] for n in CLICKS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preprocessed", type=Path, required=True, help="folder of the preprocessed data set")
    parser.add_argument("--encoder", type=Path, required=True, help="checkpoint whose image encoder is kept")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    split = read_json(arguments.preprocessed / "splits_final.json")[0]
    data = arguments.preprocessed / "nnUNetPlans_3d_fullres"
    training, validation = (
        torch.stack([load(data, case) for case in sorted(split[part])[:n]]) for part, n in (("train", 64), ("val", 12))
    )
    network = PromptableSAMMed3D(1, 3, sizes=SIZES["tiny"]["sizes"])
    norm = network.sam.image_encoder.neck[3]
    scale = norm.weight.detach().clone()  # begins small, and the trained one is brought to that scale
    weights = torch.load(arguments.encoder, map_location="cpu", weights_only=False)["network_weights"]
    name = "sam.image_encoder."
    network.sam.image_encoder.load_state_dict({k[len(name) :]: v for k, v in weights.items() if k.startswith(name)})
    norm.weight.data *= scale
    norm.bias.data *= scale
    with torch.no_grad():
        seen, held_out = (torch.cat([network.embed(x[None, :1]) for x in part]) for part in (training, validation))
    trained = [p for k, p in network.named_parameters() if p.requires_grad and not k.startswith(name)]
    optimizer = torch.optim.AdamW(trained, arguments.learning_rate, weight_decay=0.1)
    start = time.process_time()
    for step in range(arguments.steps):
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * (1 - step / arguments.steps) ** 0.9
        chosen, label = torch.randint(len(training), (4,)), torch.randint(1, 3, (4,))
        objects = training[chosen, 1] == label[:, None, None, None]
        rounds = click(network, seen[chosen], objects, 5, True)
        loss = sum(binary_dice_ce(logits[:, None], objects[:, None].float()) for logits in rounds) / 5
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 20 == 19:
            print(f"step {step + 1}, loss {loss.item():.3f}, {time.process_time() - start:.0f} CPU s", flush=True)
    seconds = round(time.process_time() - start, 1)
    records = []
    for value, label_name in ((1, "Anterior"), (2, "Posterior")):
        dice = curve(network.eval(), held_out, validation[:, 1] == value)
        records.append([label_name, len(validation), *(round(d, 4) for d in dice), arguments.steps, seconds])
        print(records[-1], flush=True)
    hardware, software = describe_hardware(torch.device("cpu")), describe_software()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        [
            "class",
            "cases",
            *(f"dice_{n}" for n in CLICKS),
            "steps",
            "training_cpu_seconds",
            "date",
            "processor",
            "torch",
        ]
    )
    for record in records:
        writer.writerow([*record, datetime.date.today().isoformat(), hardware["processor"], software["torch"]])
    write_text(RESULTS, buffer.getvalue())


if __name__ == "__main__":
    main()
