"""A data set of bright balls, planned and trained for a few steps by nnU-Net's own commands, as viewers open it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from helpers import nnunet_dataset

NAME, NUMBER = "Dataset992_Balls", "992"
PLANS, TINY = "nnUNetInteractivePlans", "nnUNetInteractivePlansTiny"
# Slices, rows and columns differ, and so do their distances: nothing may be turned or resampled.
SHAPE, SPACING_MM = (18, 30, 26), (2.0, 1.0, 1.5)


def ball(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (z, y, x) that is zero in its border, and two labels in it."""
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    labels = np.zeros(SHAPE, np.uint8)
    for value, place in ((1, 0.33), (2, 0.67)):
        middle = np.array([n * (place if axis == 1 else 0.5) for axis, n in enumerate(SHAPE)]).reshape(3, 1, 1, 1)
        radius = np.array([4.5, 5.5, 6.0]).reshape(3, 1, 1, 1) * rng.uniform(0.8, 1.1)
        labels[(((at - middle) / radius) ** 2).sum(0) < 1] = value
    image = 100 + 80.0 * (labels == 1) + 140 * (labels == 2) + rng.normal(0, 8, SHAPE)
    image[:2] = image[:, :3] = image[:, :, -2:] = 0
    return image.astype(np.float32), labels


def make_raw(base: Path, cases: int = 5, channels: int = 1, **description: object) -> Path:
    """The raw data set in nnU-Net's folder below `base`."""
    for name in nnunet_dataset.FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    folder = base / "nnUNet_raw" / NAME
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for case in range(cases):
        image, labels = ball(case)
        files = {f"imagesTr/b{case}_{channel:04d}": image for channel in range(channels)}
        for name, array in {**files, f"labelsTr/b{case}": labels}.items():
            stored = sitk.GetImageFromArray(array)
            stored.SetSpacing(SPACING_MM[::-1])
            sitk.WriteImage(stored, str(folder / f"{name}.nii.gz"))
    text = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "licence": "CC0 1.0",
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(text))
    return folder


def plan(base: Path) -> Path:
    """By the command of the documentation; the preprocessed folder."""
    flags = ("-np", "1", "-npfp", "1")
    nnunet_dataset.run(base, "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-pl", "nnUNetPlannerInteractive", *flags)
    return base / "nnUNet_preprocessed" / NAME


def shrink(folder: Path, plans: str = TINY) -> None:
    """The same plans with a network of a few thousand parameters, a batch of 2 and a patch that cuts the image."""
    content = json.loads((folder / f"{PLANS}.json").read_text())
    content["plans_name"] = plans
    own = content["configurations"]["3d_fullres"]
    strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    own |= {"patch_size": [16, 24, 24], "batch_size": 2}
    own["architecture"]["arch_kwargs"] |= {"features": 4, "blocks": [1, 1, 1], "strides": strides}
    (folder / f"{plans}.json").write_text(json.dumps(content))


def with_patch(trained: Path, folder: Path, patch: list[int]) -> Path:
    """A copy of a model folder whose plans have another patch; the network takes any."""
    shutil.copytree(trained, folder)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = patch
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def train(base: Path, plans: str = TINY, **variables: str) -> Path:
    """By nnU-Net's command, a few steps; the model folder."""
    short = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "8", "NNUNET_EXT_VAL_ITERATIONS": "1"}
    words = ("-p", plans, "-tr", "nnUNetTrainerInteractive", "-device", "cpu")
    nnunet_dataset.run(base, "nnUNetv2_train", NUMBER, "3d_fullres", "0", *words, **{**short, **variables})
    return base / "nnUNet_results" / NAME / f"nnUNetTrainerInteractive__{plans}__3d_fullres"
