"""List the trainers: paper, nnU-Net configurations they accept, what they need, parameters, and how to train.

example:
  nnunet_ext models
  nnunet_ext models --json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import textwrap
from typing import Any

from nnunet_ext import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nnunet_ext models`."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the list; always 0."""
    found = [(model, trainer) for model in models.rows() for trainer in model.trainers]
    if arguments.json:
        print(json.dumps([facts(*pair) for pair in found], indent=2))
        return 0
    print("\n\n".join(model_text(*pair) for pair in found))
    print("\nDATASET is the number or name of a data set that `nnUNetv2_plan_and_preprocess -d DATASET` has prepared.")
    print("Without a GPU add `-device cpu`. Predict with `nnUNetv2_predict` and the same -d, -c and -tr.")
    return 0


def train_command(trainer: models.Trainer) -> str:
    """The command that trains fold 0, on 3d_fullres where the trainer accepts it."""
    configuration = "3d_fullres" if "3d_fullres" in trainer.inputs else trainer.inputs[0]
    return f"nnUNetv2_train DATASET {configuration} 0 -tr {trainer.name}"


def facts(model: models.Model, trainer: models.Trainer) -> dict[str, Any]:
    """A trainer with its model, for programs."""
    weights = None if model.weights is None else dataclasses.asdict(model.weights)
    of_model = {"model": model.name, "paper": dataclasses.asdict(model.paper), "planner": model.planner}
    more = {"sizes": list(model.sizes), "weights": weights, "command": train_command(trainer)}
    return {**dataclasses.asdict(trainer), **of_model, **more}


def model_text(model: models.Model, trainer: models.Trainer) -> str:
    """A trainer in a few lines."""
    parameters = trainer.parameters_of
    if trainer.parameters is not None:
        parameters = f"{trainer.parameters / 1e6:.1f} M ({trainer.parameters_of})"
    published = ""
    if model.weights is not None and model.weights.files:
        published = f"{', '.join(file.name for file in model.weights.files)} ({model.weights.licence}), "
        published += model.weights.source
    rows = {
        "network": trainer.network,
        "paper": model.paper.citation,
        "link": model.paper.link,
        "inputs": ", ".join(trainer.inputs),
        "needs": trainer.needs,
        "parameters": parameters,
        "sizes": ", ".join(model.sizes),
        "weights": published,
        "remarks": trainer.remarks,
        "train": train_command(trainer),
    }
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    lines = [trainer.name]
    for name, text in rows.items():
        if text:
            # A command must stay one line to be copied.
            lines += (
                [f"  {name:11s} {text}"]
                if name == "train"
                else textwrap.wrap(text, width, initial_indent=f"  {name:11s} ", subsequent_indent=" " * 14)
            )
    return "\n".join(lines)
