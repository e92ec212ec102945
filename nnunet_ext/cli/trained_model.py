"""Which trained model is meant: by nnU-Net's options, or by its folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunet_ext.datasets import find_dataset
from nnunet_ext.errors import UserError


def trained_model(arguments: argparse.Namespace) -> Path:
    """The folder of the trained model, which `open_model_folder` looks into.

    Args:
        arguments: -m, or -d, -tr, -p and -c, under these names.

    Raises:
        UserError: there is none.
    """
    if arguments.m is not None:
        return arguments.m
    if not os.environ.get("nnUNet_results"):
        raise UserError("nnUNet_results is not set; export it, or give the model's folder with -m")
    dataset = find_dataset(arguments.d, "nnUNet_results", remedy="train first, or give the model's folder with -m")
    folder = dataset / f"{arguments.tr}__{arguments.p}__{arguments.c}"
    if not folder.is_dir():
        there = "; ".join(_trained(dataset)) or "none"
        raise UserError(f"{folder} does not exist; the models of {dataset.name} that are trained: {there}")
    return folder


def _trained(dataset: Path) -> list[str]:
    """The options of every model with a checkpoint in a data set's results."""
    folders = sorted({path.parent.parent for path in dataset.glob("*__*__*/fold_*/checkpoint_*.pth")})
    parts = [folder.name.split("__") for folder in folders]
    return [f"-tr {own[0]} -p {own[1]} -c {own[2]}" for own in parts if len(own) == 3]
