"""Start training from weights that were trained on other data: published ones, or a finished training's.

Reads the weights (nothing in the file is executed), fits them to the network that the plans of your data set describe,
and writes a file for `nnUNetv2_train -pretrained_weights`. What is copied, adapted or left as initialised is printed.

A checkpoint of any trainer, nnU-Net's own included, says itself what it is: other channels, classes and patches are
adapted. Its architecture must be that of your plans; --write-plans writes plans that have it. Published weights need
--model.

examples:
  nnunet_ext import-weights -i RESULTS/Dataset004_Hippocampus/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/\
checkpoint_final.pth -d 905 --write-plans nnUNetPlansFrom004 -o start.pth
  nnUNetv2_train 905 3d_fullres 0 -p nnUNetPlansFrom004 -pretrained_weights start.pth
  nnunet_ext import-weights --model unetrpp -i model_final_checkpoint.model --weights-patch 64 128 128 -d 4 -o start.pth
  nnUNetv2_train 4 3d_fullres 0 -tr nnUNetTrainerUNETRPP -pretrained_weights start.pth
  nnunet_ext import-weights --model sam_med3d -i sam_med3d_turbo.pth -d 4 -p nnUNetSAMMed3DPlans -o start.pth
  nnunet_ext import-weights --model sam_med3d -i sam_med3d_turbo.pth -d 4 -p nnUNetSAMMed3DPlans -o start.pth \
--model-folder published
  nninteractive-server --model-dir published --fold 0
  nnunet_ext import-weights --model universeg -i universeg_v1_nf64_ss64_STA.pt -d 4 -o start.pth
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext import models
from nnunet_ext.errors import UsageError, UserError, reason_of

if TYPE_CHECKING:
    from torch import nn

    from nnunet_ext.checkpoints.load import Transfer

_REMEDY = "restore it, or plan again"


def _importable() -> dict[str, models.Model]:
    return {model.name: model for model in models.rows() if model.weights and model.weights.transfer}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", "--input", required=True, type=Path, metavar="FILE", help="checkpoint_final.pth, .model, .pth or .pt"
    )
    parser.add_argument("--model", choices=_importable(), help="published weights: which network they are of")
    parser.add_argument(
        "--weights-patch", nargs=3, type=int, metavar="N", help="unetrpp: patch the weights were trained on"
    )
    parser.add_argument("-d", "--dataset", required=True, help="number or name, such as 4 or Dataset004_Hippocampus")
    parser.add_argument("-c", "--configuration", help="default: 3d_fullres, for universeg 2d, else the checkpoint's")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="default: %(default)s")
    parser.add_argument("-tr", "--trainer", help="that will go on; default: the checkpoint's")
    parser.add_argument(
        "--write-plans", metavar="NAME", help="write plans of this name: those of -p with the checkpoint's architecture"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="file to write")
    parser.add_argument(
        "--model-folder",
        type=Path,
        metavar="FOLDER",
        help="sam_med3d: also a model folder of the untrained weights, for viewers and predict-prompts",
    )
    parser.add_argument(
        "--trust", action="store_true", help="load a checkpoint as nnU-Net does, which runs whatever code it holds"
    )


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if arguments.model_folder is not None and arguments.model_folder.exists():
        raise UserError(f"{arguments.model_folder} exists already; choose another folder or remove it")
    from nnunet_ext.plans.write import preprocessed_folder

    folder = preprocessed_folder(arguments.dataset)
    if not (folder / f"{arguments.plans}.json").is_file():
        raise UserError(f"{folder / arguments.plans}.json does not exist; see -p")
    network, report, trainer = (_published if arguments.model else _finished)(arguments, folder)
    _write(arguments, network, report, trainer)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    model = _importable().get(arguments.model)
    if arguments.model_folder is not None and arguments.model != "sam_med3d":
        raise UsageError("--model-folder goes with --model sam_med3d, whose published weights take clicks as they are")
    if model is None:
        if arguments.weights_patch is not None:
            raise UsageError("--weights-patch goes with --model; a checkpoint says itself what it was trained on")
        return
    assert model.weights is not None
    for option, given in (
        ("--write-plans", arguments.write_plans),
        ("-tr", arguments.trainer),
        ("--trust", arguments.trust or None),
    ):
        if given is not None:
            raise UsageError(f"{option} goes with a checkpoint of a training, without --model")
    if model.weights.belongs_to_patch != (arguments.weights_patch is not None):
        need = [name for name, other in _importable().items() if other.weights and other.weights.belongs_to_patch]
        raise UsageError(f"--weights-patch goes with --model {' or '.join(need)}, which needs it; see --help")


def _published(arguments: argparse.Namespace, folder: Path) -> tuple[nn.Module, Transfer, str]:
    """The network of the model's trainer, started from published weights."""
    from nnunet_ext.checkpoints import read_checkpoint

    model = _importable()[arguments.model]
    assert model.weights is not None and model.weights.transfer is not None
    weights = read_checkpoint(arguments.input)
    arguments.configuration = arguments.configuration or ("3d_fullres" if 3 in model.axes else "2d")
    trainer = model.trainers[0]
    new = _NewData(folder, arguments, models.load(f"{trainer.module}:{trainer.name}"))
    network = new.build(new.channels, new.outputs)
    options = {"patch_size": arguments.weights_patch} if model.weights.belongs_to_patch else {}
    try:
        report = models.load(model.weights.transfer)(network, weights, **options)
    except ValueError as error:
        raise UserError(f"{arguments.input}: {error}") from None
    if arguments.model_folder is not None:
        new.write_published_folder(arguments.model_folder, network)
    return network, report, trainer.name


def _finished(arguments: argparse.Namespace, folder: Path) -> tuple[nn.Module, Transfer, str]:
    """The network of a trainer, started from the checkpoint of a training on other data."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.checkpoints.fine_tuning import fit
    from nnunet_ext.inference.model_folder import find_trainer, read_training_checkpoint
    from nnunet_ext.plans.inherit import inherit_architecture

    checkpoint = read_training_checkpoint(arguments.input, arguments.trust)
    started = checkpoint["init_args"]
    arguments.configuration = arguments.configuration or started["configuration"]
    name = arguments.trainer or checkpoint["trainer_name"]
    try:
        trained = PlansManager(started["plans"]).get_configuration(started["configuration"])
        trained_labels = dict(started["dataset_json"]["labels"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(
            f"{arguments.input} does not say what it was trained on (init_args); name its network with --model"
        ) from None
    trainer = find_trainer(name, str(arguments.input))
    if arguments.write_plans:
        inherit_architecture(folder, arguments.plans, arguments.configuration, trained, arguments.write_plans)
        arguments.plans = arguments.write_plans
    new = _NewData(folder, arguments, trainer)
    network, weights = new.build(new.channels, new.outputs), checkpoint["network_weights"]
    row = next((row for row in models.rows() if row.network == trained.network_arch_class_name), None)
    try:
        if row and row.weights and row.weights.transfer and row.weights.belongs_to_patch:
            known = trained.network_arch_init_kwargs
            options = {"patch_size": trained.patch_size, "strides": known.get("strides")}
            report = models.load(row.weights.transfer)(network, weights, **options)
        else:
            same = list(trained_labels.items()) == list(new.labels.items())
            report = fit(network, weights, new.build, new.channels, new.outputs, same_labels=same)
    except ValueError as error:
        remedy = "" if arguments.write_plans else "; --write-plans NAME writes plans with the checkpoint's architecture"
        raise UserError(f"{arguments.input}: {error}{remedy}") from None
    return network, report, name


class _NewData:
    """The data set to train on, and the network its plans describe.

    Raises:
        UserError: a file is damaged, or the plans have no such configuration.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace, trainer: Any):
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        from nnunet_ext.plans.files import (
            check_network,
            check_patch,
            inherited,
            num_outputs,
            read_dataset_json,
            read_plans,
        )
        from nnunet_ext.plans.network import check_configuration, network_builder

        self._file, configuration = folder / f"{arguments.plans}.json", arguments.configuration
        dataset_json = read_dataset_json(folder / "dataset.json", _REMEDY)
        self.labels: dict[str, Any] = dataset_json["labels"]
        self._dataset_json = dataset_json
        self.outputs = num_outputs(folder / "dataset.json", dataset_json)
        about = read_plans(self._file, _REMEDY)
        known = about.object("configurations").names()
        if configuration not in known:
            raise UserError(f"-c {configuration} is not in {arguments.plans}.json: {', '.join(known)}")
        for name in known:  # which of them the model takes is part of a refusal
            check_patch(inherited(about, name))
        check_network(inherited(about, configuration))
        self._configuration, self._plans = configuration, about.content
        with self._described():
            manager = PlansManager(about.content)
            if arguments.model:
                check_configuration(arguments.model, manager, configuration)
            settings = manager.get_configuration(configuration)
            self.channels: int = determine_num_input_channels(manager, settings, dataset_json)
            self._build = network_builder(trainer, manager, settings)

    def build(self, channels: int, outputs: int) -> nn.Module:
        with self._described():
            return self._build(channels, outputs, enable_deep_supervision=False)

    def write_published_folder(self, folder: Path, network: nn.Module) -> None:
        from nnunet_ext.plans.published_folder import write_published_folder

        write_published_folder(folder, network.state_dict(), self._plans, self._configuration, self._dataset_json)

    @contextlib.contextmanager
    def _described(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of nnU-Net, and of a network given odd arguments
            why = reason_of(error)[:300]
            raise UserError(f"{self._file}: {self._configuration} describes no network ({why}); {_REMEDY}") from None


def _write(arguments: argparse.Namespace, network: nn.Module, report: Transfer, trainer: str) -> None:
    import torch

    from nnunet_ext.files import atomic_path

    with atomic_path(arguments.output) as temporary:
        torch.save({"network_weights": network.state_dict()}, temporary)
    for word, names in (("adapted", report.resized), ("left as initialised", report.initial)):
        for name in names:
            print(f"{word}: {name}", file=sys.stderr)
    print(
        f"{len(report.copied)} tensors copied, {len(report.resized)} adapted, {len(report.initial)} left as "
        f"initialised; wrote {arguments.output}\n\nnext: nnUNetv2_train {arguments.dataset} "
        f"{arguments.configuration} 0 -p {arguments.plans} -tr {trainer} -pretrained_weights {arguments.output}",
        file=sys.stderr,
    )
