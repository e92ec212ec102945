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

from nnunet_ext.discovery.table import Entry, of_kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `nnunet_ext models`."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the list; always 0."""
    trainers = of_kind("trainer")
    if arguments.json:
        rows = [{**dataclasses.asdict(entry), "command": train_command(entry)} for entry in trainers]
        print(json.dumps(rows, indent=2))
        return 0
    print("\n\n".join(describe(entry) for entry in trainers))
    print("\nDATASET is the number or name of a data set that `nnUNetv2_plan_and_preprocess -d DATASET` has prepared.")
    print("Without a GPU add `-device cpu`. Predict with `nnUNetv2_predict` and the same -d, -c and -tr.")
    return 0


def train_command(entry: Entry) -> str:
    """The command that trains fold 0, on 3d_fullres where the trainer accepts it."""
    inputs = entry.model.inputs if entry.model else ()
    configuration = "3d_fullres" if "3d_fullres" in inputs or not inputs else inputs[0]
    return f"nnUNetv2_train DATASET {configuration} 0 -tr {entry.name}"


def describe(entry: Entry) -> str:
    """A trainer in a few lines."""
    rows = {}
    if entry.model is not None:
        model = entry.model
        rows = {
            "network": model.network,
            "paper": model.paper,
            "link": model.link,
            "inputs": ", ".join(model.inputs),
            "needs": model.needs,
            "parameters": model.parameters_of,
            "remarks": model.remarks,
        }
        if model.parameters is not None:
            rows["parameters"] = f"{model.parameters / 1e6:.1f} M ({model.parameters_of})"
    rows["train"] = train_command(entry)
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    lines = [entry.name]
    for name, text in rows.items():
        if text:
            # A command must stay one line to be copied.
            lines += (
                [f"  {name:11s} {text}"]
                if name == "train"
                else textwrap.wrap(text, width, initial_indent=f"  {name:11s} ", subsequent_indent=" " * 14)
            )
    return "\n".join(lines)
