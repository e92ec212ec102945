"""Networks that run on nnU-Net's own plans of Hippocampus, here and in segforge, the other plugin with many networks.

    python benchmarks/stock_plans.py --preprocessed .../Dataset004_Hippocampus [--segforge /its/environment/bin/python]

Of the folder that nnU-Net planned, nnUNetPlans.json (3d_fullres of 40x56x40, 2d of 56x40) and dataset.json are used,
unchanged. A network runs if nnU-Net makes the trainer, the trainer keeps the patch of the plans and builds its network,
and one forward and backward pass on a batch of two such patches gives logits of that patch. Ours are those of
benchmarks/networks.py with its settings, each after `nnunet_ext plan --network`. segforge's trainers run in an
environment of their own, found by nnU-Net as its documentation says; one per architecture, the smallest that has no
patch of its own in its name. Writes results/stock_plans.csv; rows that are not run again are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "stock_plans.csv"
DATASET, BATCH, CONFIGURATIONS = "Dataset004_Hippocampus", 2, ("3d_fullres", "2d")
SEGFORGE = (
    "AttentionUnetTrainer", "BasicUNetTrainer", "BasicUNetPlusPlusTrainer", "DynUNetTrainer", "SegResNetTrainer",
    "UNetTrainer", "STUNetTrainer_S", "DSCNetTrainer", "MedNeXtTrainer_S_kernel3", "MedNeXtV2Trainer_B_kernel3",
    "SwinUNETRTrainer", "UNETRTrainer", "VNetTrainer", "UNETRPlusPlusTrainer", "SegFormer3DTrainer", "nnFormerTrainer",
    "UXNetTrainer", "LIUNetTrainer", "SegMambaTrainer", "UMambaBotTrainer", "LightMUNetTrainer", "LKMUNetTrainer",
    "nnMambaTrainer",
)  # fmt: skip
COLUMNS = ("plugin", "network", "configuration", "patch", "runs", "why_not", "date", "cpu", "python", "versions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preprocessed", type=Path, required=True, help=f"the preprocessed folder {DATASET}")
    parser.add_argument("--segforge", type=Path, help="the Python that has segforge; without it, ours alone")
    parser.add_argument("--only", nargs="+", help="networks of ours and trainers of segforge; default: all")
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--tries", help=argparse.SUPPRESS)  # what to try, in a process of its own
    arguments = parser.parse_args()
    if arguments.tries:
        for one in json.loads(arguments.tries):
            print(json.dumps({**one, **tried(one["trainer"], one["plans"], one["configuration"])}), flush=True)
        return
    from shared import write_rows

    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    if RESULTS.is_file():
        with open(RESULTS, newline="", encoding="utf-8") as file:
            rows = {(r["plugin"], r["network"], r["configuration"]): r for r in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as base:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(base, name))
        folder = Path(base, "preprocessed", DATASET)
        folder.mkdir(parents=True)
        for name in ("nnUNetPlans.json", "dataset.json"):
            shutil.copy(arguments.preprocessed / name, folder / name)
        for configuration in CONFIGURATIONS:  # tells nnU-Net how cases are stored; never read
            (folder / f"nnUNetPlans_{configuration}").mkdir()
            (folder / f"nnUNetPlans_{configuration}" / "case.b2nd").write_bytes(b"")
        plugins = [ours(arguments, base)] + ([segforge(arguments)] if arguments.segforge else [])
        for row in (row for plugin in plugins for row in plugin):
            print(f"{row['plugin']:10} {row['network']:36} {row['configuration']:10} {row['runs']} {row['why_not']}")
            rows[row["plugin"], row["network"], row["configuration"]] = row
            write_rows(RESULTS, COLUMNS, list(rows.values()), ("nnunetv2", "torch", "monai"))
    for plugin in dict.fromkeys(key[0] for key in rows):
        for configuration in CONFIGURATIONS:
            own = [r["runs"] for k, r in rows.items() if k[0] == plugin and k[2] == configuration]
            print(f"{plugin}, {configuration}: {own.count('yes')} of {len(own)}")


def ours(arguments: argparse.Namespace, base: str) -> Iterator[dict[str, Any]]:
    """Each network of benchmarks/networks.py that has a form for the configuration."""
    import networks

    from nnunet_ext.errors import UserError

    for name, network in networks.NETWORKS.items():
        for configuration in arguments.configurations:
            axes = 3 if configuration == "3d_fullres" else 2
            if axes not in network.axes or (arguments.only and name not in arguments.only):
                continue
            row = {"plugin": "nnunet_ext", "network": name, "configuration": configuration, "runs": "no"}
            stock = json.loads(Path(base, "preprocessed", DATASET, "nnUNetPlans.json").read_text())
            patch = tuple(stock["configurations"][configuration]["patch_size"])
            place = networks.Place(DATASET, configuration, patch, (), (), {})
            kept = ("--patch-size", *map(str, patch), "--batch-size", str(BATCH))
            try:
                planned = networks.plan(network, place, *kept)
            except UserError as error:
                yield row | {"patch": "x".join(map(str, patch)), "why_not": str(error)}
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                result = tried("nnUNetTrainerNetwork", Path(planned["plans"]).stem, configuration)
            yield row | result


def segforge(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """segforge's trainers, on the plans as they are."""
    find = "import segforge, importlib.metadata as m; print(segforge.__path__[0]); print(m.version('segforge'))"
    found = subprocess.run([arguments.segforge, "-c", find], check=True, stdout=subprocess.PIPE, text=True)
    package, version = found.stdout.split()
    os.environ["nnUNet_extTrainer"] = f"{package}/training/nnUNetTrainer"
    tries = [
        {"trainer": trainer, "plans": "nnUNetPlans", "configuration": configuration}
        for configuration in arguments.configurations
        for trainer in SEGFORGE
        if not arguments.only or trainer in arguments.only
    ]
    for result in in_its_environment(arguments.segforge, tries):
        yield {
            "plugin": f"segforge {version}", "network": result["trainer"], "configuration": result["configuration"],
            "patch": result["patch"], "runs": result["runs"], "why_not": result["why_not"],
        }  # fmt: skip


def in_its_environment(python: Path, tries: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """The results of tries, one after the other as they come."""
    command = [str(python), __file__, "--preprocessed", "/", "--tries", json.dumps(tries)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith('{"trainer"'):
                yield json.loads(line)
    if child.returncode:
        raise SystemExit(f"{' '.join(command[:2])} ended with {child.returncode}")


def tried(trainer_name: str, plans: str, configuration: str) -> dict[str, str]:
    """Whether one trainer trains on a batch of the plans' patch."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args
    from torch.utils._pytree import tree_leaves

    torch.set_num_threads(1)
    torch.manual_seed(0)
    planned = json.loads(Path(os.environ["nnUNet_preprocessed"], DATASET, f"{plans}.json").read_text())
    patch = planned["configurations"][configuration]["patch_size"]
    told = {"patch": "x".join(map(str, patch)), "runs": "no"}
    try:
        trainer = get_trainer_from_args("4", configuration, 0, trainer_name, plans, device=torch.device("cpu"))
        trainer.initialize()
        own = list(trainer.configuration_manager.patch_size)
        if own != list(patch):
            return told | {"why_not": f"replaces the patch by {'x'.join(map(str, own))}"}
        outputs = trainer.network.train()(torch.randn(BATCH, trainer.num_input_channels, *patch))
        logits = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        if all(list(one.shape[-len(patch) :]) != list(patch) for one in logits):
            return told | {"why_not": f"returns {[tuple(one.shape) for one in logits][:2]}"}
        sum(one.float().mean() for one in logits).backward()
    except (Exception, SystemExit) as error:  # somebody else's code
        words = " ".join(str(error).split()) or "no reason given"
        return told | {"why_not": f"{type(error).__name__}: {words}"[:200]}
    return told | {"runs": "yes", "why_not": ""}


if __name__ == "__main__":
    main()
