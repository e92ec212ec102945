"""Start training from published weights of another patch size, class count or channel count.

Reads the weights (nothing in the file is executed), fits them to the network that the plans of your data set describe,
and writes a file for `nnUNetv2_train -pretrained_weights`. What is copied, resized or left as initialised is printed.

examples:
  nnunet_ext import-weights --model unetrpp -i model_final_checkpoint.model --weights-patch 64 128 128 -d 4 -o start.pth
  nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerUNETRPP -pretrained_weights start.pth
  nnunet_ext import-weights --model sam_med3d -i sam_med3d_turbo.pth -d 4 -p nnUNetSAMMed3DPlans -o start.pth
  nnunet_ext import-weights --model universeg -i universeg_v1_nf64_ss64_STA.pt -d 4 -o start.pth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunet_ext import models
from nnunet_ext.errors import UserError, reason_of


def _importable() -> dict[str, models.Model]:
    return {model.name: model for model in models.rows() if model.weights and model.weights.transfer}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, choices=_importable(), help="which network the weights are of")
    parser.add_argument("-i", "--input", required=True, type=Path, metavar="FILE", help=".model, .pth or .pt")
    parser.add_argument(
        "--weights-patch", nargs=3, type=int, metavar="N", help="unetrpp: patch the weights were trained on"
    )
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 4 or Dataset004_Hippocampus")
    parser.add_argument("-c", "--configuration", help="default: 3d_fullres, for universeg 2d")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="default: %(default)s")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="file to write")


def run(arguments: argparse.Namespace) -> int:
    model = _importable()[arguments.model]
    assert model.weights is not None and model.weights.transfer is not None
    if model.weights.belongs_to_patch != (arguments.weights_patch is not None):
        need = [name for name, other in _importable().items() if other.weights and other.weights.belongs_to_patch]
        print(
            "nnunet_ext import-weights: --weights-patch goes with --model "
            f"{' or '.join(need)}, which needs it; see --help",
            file=sys.stderr,
        )
        return 2
    arguments.configuration = arguments.configuration or ("3d_fullres" if 3 in model.axes else "2d")
    from nnunet_ext.checkpoints import read_checkpoint
    from nnunet_ext.plans.write import preprocessed_folder

    weights = read_checkpoint(arguments.input)
    folder = preprocessed_folder(arguments.dataset)
    if not (folder / f"{arguments.plans}.json").is_file():
        raise UserError(f"{folder / arguments.plans}.json does not exist; see -p")
    import torch

    from nnunet_ext.files import atomic_path

    network = _planned_network(model, folder, arguments.plans, arguments.configuration)
    options = {"patch_size": arguments.weights_patch} if model.weights.belongs_to_patch else {}
    try:
        report = models.load(model.weights.transfer)(network, weights, **options)
    except ValueError as error:
        raise UserError(f"{arguments.input}: {error}") from None
    with atomic_path(arguments.output) as temporary:
        torch.save({"network_weights": network.state_dict()}, temporary)
    for word, names in (("resized", report.resized), ("left as initialised", report.initial)):
        for name in names:
            print(f"{word}: {name}", file=sys.stderr)
    print(
        f"{len(report.copied)} tensors copied, {len(report.resized)} resized, {len(report.initial)} left as "
        f"initialised; wrote {arguments.output}\n\nnext: nnUNetv2_train {arguments.dataset} "
        f"{arguments.configuration} 0 -p {arguments.plans} -tr {model.trainers[0].name} "
        f"-pretrained_weights {arguments.output}",
        file=sys.stderr,
    )
    return 0


def _planned_network(model: models.Model, folder: Path, plans: str, configuration: str) -> Any:
    """The network the model's trainer would train on this data set."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.plans.files import check_network, check_patch, inherited, num_outputs, read_dataset_json, read_plans
    from nnunet_ext.plans.network import check_configuration

    file, remedy = folder / f"{plans}.json", "restore it, or plan again"
    dataset_json = read_dataset_json(folder / "dataset.json", remedy)
    heads = num_outputs(folder / "dataset.json", dataset_json)
    about = read_plans(file, remedy)
    known = about.object("configurations").names()
    if configuration not in known:
        raise UserError(f"-c {configuration} is not in {plans}.json: {', '.join(known)}")
    for name in known:  # which of them the model takes is part of a refusal
        check_patch(inherited(about, name))
    check_network(inherited(about, configuration))
    trainer = model.trainers[0]
    try:
        manager = PlansManager(about.content)
        check_configuration(model.name, manager, configuration)
        planned = manager.get_configuration(configuration)
        channels = determine_num_input_channels(manager, planned, dataset_json)
        build = models.load(f"{trainer.module}:{trainer.name}").build_network_architecture
        return build(manager, planned, channels, heads, False)
    except UserError:
        raise
    except Exception as error:  # of nnU-Net, and of a network given odd arguments
        raise UserError(f"{file}: {configuration} describes no network ({reason_of(error)[:300]}); {remedy}") from None
