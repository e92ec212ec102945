"""Write plans that name one of our networks at a chosen size, or any network by its dotted path.

The plans are derived from nnU-Net's own for the same data set: spacing, normalisation and folders stay, so data that
are preprocessed already are used as they are. With --memory nothing is written: a table shows which patch and batch
fit GPUs of several sizes; --gpu-memory-target takes one of them. Without a model, plans of any network are copied with
the fast preprocessor, whose output is nnU-Net's.

--network takes any torch.nn.Module that can be imported: how it is called, which sizes it takes and what it returns is
found out and written into the plans; --set gives arguments of its constructor, --dry-run shows what was found.

example:
  nnunet_ext plan -d 4 --model segmamba --memory
  nnunet_ext plan -d 4 --model segmamba --gpu-memory-target 24
  nnunet_ext plan -d 4 --model segmamba --size tiny
  nnUNetv2_train 4 3d_fullres 0 -p nnUNetPlansSegMambaTiny -tr nnUNetTrainerSegMamba
  nnunet_ext plan -d 4 --network monai.networks.nets.SegResNet --set init_filters=16 --dry-run
  nnunet_ext plan -d 4 --network monai.networks.nets.SegResNet --set init_filters=16
  nnUNetv2_train 4 3d_fullres 0 -p nnUNetPlansSegResNet -tr nnUNetTrainerNetwork
  nnunet_ext plan -d 4 --fast-preprocessing
  nnUNetv2_preprocess -d 4 -plans_name nnUNetPlansFast -c 3d_fullres
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext import models
from nnunet_ext.cli.numbers import at_least_one, gigabytes
from nnunet_ext.errors import UsageError, UserError

if TYPE_CHECKING:
    from nnunet_ext.plans.offer import Offer
    from nnunet_ext.plans.write import Planned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 4 or Dataset004_Hippocampus")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=sorted(models.planned()), help="which network")
    what.add_argument("--network", metavar="PATH", help="any network, such as monai.networks.nets.SegResNet")
    what.add_argument("--fast-preprocessing", action="store_true", help="keep the network; only preprocess faster")
    every_size = sorted({size for model in models.planned().values() for size in model.sizes})
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="NAME=VALUE",
        help="arguments of the network; @channels, @classes, @axes and @grid stand for the data set's",
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing; show what was found out")
    parser.add_argument("--size", choices=every_size, help="preset (default: base, the published network)")
    parser.add_argument("-c", "--configurations", nargs="+", metavar="NAME", help="such as 3d_fullres (default: all)")
    parser.add_argument("-p", "--base-plans", default="nnUNetPlans", help="existing plans to derive from (%(default)s)")
    parser.add_argument("--patch-size", nargs="+", type=int, metavar="N", help="voxels per axis, in the plan's order")
    parser.add_argument("--batch-size", type=at_least_one, metavar="N", help="samples per training step")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--memory",
        nargs="*",
        type=gigabytes,
        metavar="GB",
        help="write nothing; show what fits GPUs of these sizes (default: 8 11 16 24 40 80)",
    )
    memory.add_argument(
        "--gpu-memory-target", type=gigabytes, metavar="GB", help="patch and batch that fit a GPU of this size"
    )
    parser.add_argument("-o", "--plans-name", help="name of the new plans (default: base plans + model + size)")
    parser.add_argument("--json", action="store_true", help="print what was planned as JSON on stdout")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.plans.write import write_fast_preprocessing, write_plans

    for option, value in (("--set", arguments.set), ("--dry-run", arguments.dry_run)):
        if value and not arguments.network:
            raise UsageError(f"{option} belongs to --network")
    if arguments.fast_preprocessing:
        return _fast_preprocessing(arguments, write_fast_preprocessing)
    # A network may print when it is built, and stdout is for --json.
    with contextlib.redirect_stdout(sys.stderr):
        model, size = _model(arguments)
    if arguments.memory is not None:
        return _show_memory(arguments, model, size)
    with contextlib.redirect_stdout(sys.stderr):
        path, planned = write_plans(
            arguments.dataset,
            model,
            size,
            base_plans=arguments.base_plans,
            configurations=arguments.configurations,
            patch_size=arguments.patch_size,
            batch_size=arguments.batch_size,
            gpu_gigabytes=arguments.gpu_memory_target,
            plans_name=arguments.plans_name,
            progress=True,
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        print(json.dumps({"plans": str(path), "configurations": [vars(p) for p in planned]}, indent=2))
    if arguments.network:
        _show_findings(planned)
    print(f"{path}{' was not written' if arguments.dry_run else ''}\n", file=sys.stderr)
    heading = ("configuration", "patch", "batch", "parameters", "preprocessed", "GPU memory")
    rows = [
        (
            p.configuration,
            "x".join(map(str, p.patch_size)),
            str(p.batch_size),
            f"{p.parameters / 1e6:.2f} M",
            "yes, reused" if p.preprocessed else "no",
            f"{p.gigabytes:.1f} GB estimated",
        )
        for p in planned
    ]
    _print_table(heading, rows)
    if arguments.dry_run:
        return 0
    trainer = model.trainers[0].name
    # A network for volumes is shown at work on volumes.
    names = [p.configuration for p in planned]
    first = "3d_fullres" if "3d_fullres" in names else names[0]
    example = f"nnUNetv2_train {arguments.dataset} {first} 0 -p {path.stem} -tr {trainer}"
    print(f"\nnext: {example}", file=sys.stderr)
    return 0


def _model(arguments: argparse.Namespace) -> tuple[models.Model, str]:
    """The row to plan for, and one of its sizes."""
    if not arguments.network:
        return models.find(arguments.model), arguments.size or "base"
    from nnunet_ext.plans.adapted import row_of_network
    from nnunet_ext.plans.constructor import parse_settings

    if arguments.size:
        raise UsageError("--size belongs to --model; the size of a --network is given with --set")
    row, left_out = row_of_network(
        arguments.dataset,
        arguments.network,
        parse_settings(arguments.set or ()),
        base_plans=arguments.base_plans,
        configurations=arguments.configurations,
        patch_size=arguments.patch_size,
    )
    for name, why in left_out.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    return row, ""


def _show_findings(planned: Sequence[Planned]) -> None:
    """What was found out, per configuration, each fact that is the same for several once."""
    shown: dict[tuple[str, str], list[str]] = {}
    for configuration in planned:
        for fact, words in configuration.arguments["found"].items():
            shown.setdefault((fact, words), []).append(configuration.configuration)
    facts = sorted(shown.items(), key=lambda item: list(planned[0].arguments["found"]).index(item[0][0]))
    _print_table(("found", "for", ""), [(fact, ", ".join(names), words) for (fact, words), names in facts])
    print(file=sys.stderr)


def _show_memory(arguments: argparse.Namespace, model: models.Model, size: str) -> int:
    from tqdm import tqdm

    from nnunet_ext.plans.offer import MEMORY_SIZES_GB, offers
    from nnunet_ext.plans.write import data_of_plans

    written = [name for name in ("patch_size", "plans_name") if getattr(arguments, name) is not None]
    if written:
        raise UserError(f"--{written[0].replace('_', '-')} belongs to plans that are written; --memory writes none")
    configurations = data_of_plans(
        arguments.dataset, model, base_plans=arguments.base_plans, configurations=arguments.configurations
    )
    sizes = sorted(arguments.memory) or MEMORY_SIZES_GB
    total = len(sizes) * len(configurations)
    each = offers(model, size, configurations, sizes, arguments.batch_size)
    with contextlib.redirect_stdout(sys.stderr):
        found = list(tqdm(each, total=total, desc="estimate", unit="GPU", delay=2, leave=False))
    if arguments.json:
        rows = [{**vars(offer), "fit": offer.fit and vars(offer.fit)} for offer in found]
        print(json.dumps(rows, indent=2))
    which = f"--network {arguments.network}" if arguments.network else f"--model {model.name} --size {size}"
    settings = f" --set {shlex.join(arguments.set)}" if arguments.set else ""
    chosen = f"nnunet_ext plan -d {arguments.dataset} {which}{settings}"
    chosen += "" if arguments.batch_size is None else f" --batch-size {arguments.batch_size}"
    _print_table(("GPU", "configuration", "patch", "batch", "estimated", "limited by"), _collapsed(found))
    print(f"\nnothing written; next: {chosen} --gpu-memory-target {sizes[-1]:g}", file=sys.stderr)
    return 0 if any(offer.fit for offer in found) else 1


def _collapsed(offers: Sequence[Offer]) -> list[tuple[str, ...]]:
    """Rows of the table, one for GPUs that allow the same."""

    def same(offer: Offer) -> tuple[Any, ...]:
        return offer.configuration, offer.fit and (offer.fit.patch_size, offer.fit.batch_size)

    rows: list[tuple[str, ...]] = []
    for (configuration, _), group in itertools.groupby(offers, key=same):
        own = list(group)
        gpus = f"{own[0].gpu_gigabytes:g}" + (f" to {own[-1].gpu_gigabytes:g}" if len(own) > 1 else "")
        if (fit := own[0].fit) is None:
            rows.append((f"{gpus} GB", configuration, "nothing fits", "", "", "the memory"))
            continue
        patch = "x".join(map(str, fit.patch_size))
        limit = fit.limit or "the memory"
        rows.append((f"{gpus} GB", configuration, patch, str(fit.batch_size), f"{fit.gigabytes:.1f} GB", limit))
    return rows


def _print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), file=sys.stderr)


def _fast_preprocessing(arguments: argparse.Namespace, write: Callable[..., Path]) -> int:
    of_model = ("configurations", "patch_size", "batch_size", "memory", "gpu_memory_target")
    unused = [name for name in of_model if getattr(arguments, name) is not None]
    if unused:
        raise UserError(
            f"--{unused[0].replace('_', '-')} belongs to --model; --fast-preprocessing changes nothing else"
        )
    path = write(arguments.dataset, arguments.base_plans, arguments.plans_name)
    if arguments.json:
        print(json.dumps({"plans": str(path)}))
    print(f"{path}\n\nnext: nnUNetv2_preprocess -d {arguments.dataset} -plans_name {path.stem}", file=sys.stderr)
    return 0
