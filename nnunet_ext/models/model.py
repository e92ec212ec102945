"""The form of a row: everything said about a model outside its layers and its training.

Standard library only. Whatever computes is named by its path, `module:function` for functions and dotted, as in plans,
for the network, and imported by `load` when it is needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ALL_INPUTS = ("2d", "3d_fullres", "3d_lowres", "cascade")


@dataclass(frozen=True)
class Paper:
    """Authors, title, venue and year in one line, and the arXiv or DOI identifier."""

    citation: str
    link: str


@dataclass(frozen=True)
class Trainer:
    """A trainer nnU-Net may ask for, with what a user wants to know before training.

    Attributes:
        name: exact name of the class, after `-tr`.
        module: defines it.
        network: what it trains, in words.
        inputs: nnU-Net configurations it accepts; "cascade" stands for `3d_cascade_fullres`.
        parameters: learnable parameters at the published size, or None where the plans decide.
        parameters_of: the configuration that number belongs to, or what decides it.
        needs: what it needs beyond nnU-Net, or what makes it faster.
        remarks: differences from the paper worth knowing.
        automatic: whether what it trains segments by itself; else somebody has to interact.
    """

    name: str
    module: str
    network: str
    inputs: tuple[str, ...] = ALL_INPUTS
    parameters: int | None = None
    parameters_of: str = "the plans decide"
    needs: str = "nothing beyond nnU-Net"
    remarks: str = ""
    automatic: bool = True


@dataclass(frozen=True)
class WeightsFile:
    """A published file: its name, what it was trained on, and its SHA-256 where that is known."""

    name: str
    trained_on: str
    sha256: str | None = None


@dataclass(frozen=True)
class Weights:
    """Weights of the official implementation, under their own parameter names, so that no map of keys is needed.

    Attributes:
        source: where the authors publish code and weights.
        licence: of the weights.
        build: `module:function`, called with sizes, builds the network with the official parameter names.
        files: those known.
        transfer: `module:function` of (network as nnU-Net builds it, state_dict), and of the patch of the trained
            network where `belongs_to_patch`; fills the network and says what became of each tensor. None where
            nothing has been published to start from.
        belongs_to_patch: whether trained weights belong to one patch size.
    """

    source: str
    licence: str
    build: str
    files: tuple[WeightsFile, ...] = ()
    transfer: str | None = None
    belongs_to_patch: bool = False


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes:
        name: in commands, such as `--model segmamba`.
        title: as its paper writes it.
        suffix: in the names of trainer, planner and plans: nnUNetTrainerSegMamba, nnUNetPlannerSegMamba.
        paper: to cite.
        axes: numbers of image axes it has a form for.
        trainers: the first trains the model as this project recommends.
        network: dotted path of the class that plans name, a file format; None for nnU-Net's own networks.
        sizes: size -> keyword arguments of the network, smallest first; `base` is the published network.
        training: size -> what plans of that size say about training: epochs, iterations, and parts of the recipe by
            their names in `nnunet_ext.trainers.recipe`. Environment variables win.
        from_patch: `module:function` of (patch_size, strides as nnU-Net plans them), the keyword arguments that follow
            from a configuration; None if nothing does. A row that is made and not written has the function itself.
        step: module with the training step, see `nnunet_ext.steps`.
        loss: `module:function` of (output, target) where that is not nnU-Net's Dice + cross-entropy.
        on_gpu: `module:function` of the network that makes a CPU take the path of a GPU where these differ in memory,
            for the estimate.
        optimiser_slots: tensors per parameter that the optimiser keeps: 1 for SGD with momentum, 2 for Adam.
        deep_supervision: whether it is trained with it.
        batch_size: samples per step where nnU-Net's own number means nothing to the network.
        poolings: how many of nnU-Net's poolings it has, which its patches must allow; None for all of them.
        resized_to: size -> edge of the cube that every patch is resized to, where there is one.
        spacing_mm: of its planner, per axis; None for nnU-Net's choice.
        patch_size: of its planner, per axis; None for what fits.
        configurations: those its planner makes; None for nnU-Net's.
        planner_class: dotted path of its planner's class where that does more than choose patch and batch.
        preprocessor: name of the only one whose data it is trained on, which its planner chooses; None for any.
        hint: what to know when a configuration is refused.
        accelerators: optional packages that make it faster.
        weights: published ones.
        training_images: of a checkpoint's weights, the one that holds images of the training data; None if none does.
        no_onnx: why its networks cannot be written as ONNX; empty where they can, or where it is tried.
    """

    name: str
    title: str
    suffix: str
    paper: Paper
    axes: tuple[int, ...]
    trainers: tuple[Trainer, ...]
    network: str | None = None
    sizes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    from_patch: str | Callable[[Any, Any], dict[str, Any]] | None = None
    step: str = "nnunet_ext.steps.supervised"
    loss: str | None = None
    on_gpu: str | None = None
    optimiser_slots: int = 1
    deep_supervision: bool = False
    batch_size: int | None = None
    poolings: int | None = None
    resized_to: Mapping[str, int] = field(default_factory=dict)
    spacing_mm: tuple[float, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    configurations: tuple[str, ...] | None = None
    planner_class: str | None = None
    preprocessor: str | None = None
    hint: str = ""
    accelerators: tuple[str, ...] = ()
    weights: Weights | None = None
    training_images: str | None = None
    no_onnx: str = ""

    def build(self, input_channels: int, num_classes: int, deep_supervision: bool, arguments: Mapping[str, Any]) -> Any:
        """The network, with keyword arguments as plans carry them.

        Raises:
            ValueError: nnU-Net builds its own networks, or the network refuses the arguments.
        """
        if self.network is None:
            raise ValueError(f"{self.title} has no network of this project")
        return load(self.network)(input_channels, num_classes, deep_supervision, **arguments)

    def size_of(self, arguments: Mapping[str, Any]) -> str | None:
        """The size that these keyword arguments of the network have; None for one of somebody's own."""
        for size, own in self.sizes.items():
            if all(name in arguments and arguments[name] == value for name, value in own.items()):
                return size
        return None

    @property
    def planner(self) -> str | None:
        """Name of its planner, after `-pl`; None for networks without sizes: nnU-Net's own, which have its planners."""
        return f"nnUNetPlanner{self.suffix}" if self.network and self.sizes else None


def load(path: str | Callable[..., Any]) -> Any:
    """The object at `module:name`, at `module.Class`, or a module; a function is returned as it is.

    Raises:
        ImportError, AttributeError: there is no such module or name.
    """
    if not isinstance(path, str):
        return path
    module, _, name = path.partition(":")
    if name:
        return getattr(importlib.import_module(module), name)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        package, _, name = path.rpartition(".")
        if error.name != path or not package:
            raise
        return getattr(importlib.import_module(package), name)
