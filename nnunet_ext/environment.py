"""The environment variables of this project, in one table, and how they are read.

`docs/environment.md` explains them at length. They are read inside nnU-Net's own commands too, so a value that is not
allowed ends these with one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nnunet_ext.errors import TrainingError

VARIABLES = {
    "NNUNET_EXT_AUTOLOAD": "0 switches the start-up hook off; nnU-Net then finds no class of this project",
    "NNUNET_EXT_SCAN": "selective-scan backend: auto or one of those doctor lists",
    "NNUNET_EXT_CONVOLUTION": "causal-convolution backend: auto or one of those doctor lists",
    "NNUNET_EXT_EPOCHS": "training epochs",
    "NNUNET_EXT_ITERATIONS": "training batches per epoch",
    "NNUNET_EXT_VAL_ITERATIONS": "validation batches per epoch",
    "NNUNET_EXT_PRECISION": "arithmetic of training: fp16, bf16 or fp32",
    "NNUNET_EXT_LEARNING_RATE": "learning rate at the first epoch",
    "NNUNET_EXT_CHECKPOINT_EVERY": "epochs between two writes of checkpoint_latest",
    "NNUNET_EXT_SUPPORT": "prediction with UniverSeg: file whose support set replaces the checkpoint's",
    "NNUNET_EXT_SUPPORT_SIZE": "UniverSeg: support entries per slice, in training the most",
    "NNUNET_EXT_SUPPORT_DRAWS": "prediction with UniverSeg: support sets per slice, averaged",
    "NNUNET_EXT_EPISODE_DATASETS": "UniverSeg: further preprocessed data sets to train on, such as 5 956",
    "NNUNET_EXT_SAMPLER": "MedSegDiff-V2: ddim, ddpm or dpm-solver++",
    "NNUNET_EXT_SAMPLING_STEPS": "MedSegDiff-V2: evaluations per sample, 0 for the condition model alone",
    "NNUNET_EXT_SAMPLES": "MedSegDiff-V2: samples per window",
    "NNUNET_EXT_FUSION": "MedSegDiff-V2: how samples are fused: mean, majority or staple",
    "NNUNET_EXT_SAMPLING_SEED": "MedSegDiff-V2: seed of the noise",
    "NNUNET_EXT_TEST_DATA": "folder of nnU-Net raw data sets for the tests on real data",
    "NNUNET_EXT_TEST_NOTHING_SKIPPED": "1: in the tests, a skip is a failure",
}


def decimal(text: str) -> int | None:
    """The whole number from 0 that a text of at most 15 digits says, None for any other text.

    Python refuses to convert thousands of digits, and no count, number or seed needs more than these.
    """
    return int(text) if text.isdecimal() and len(text) <= 15 else None


def whole_number(environment: Mapping[str, str], name: str) -> int | None:
    """The value of an environment variable, None if it is not set.

    Raises:
        TrainingError: it is no whole number of at least 1.
    """
    text = environment.get(name, "").strip()
    if not text:
        return None
    number = decimal(text)
    if not number:
        raise TrainingError(f"{name}={text!r} must be a whole number of at least 1")
    return number


def share(environment: Mapping[str, str], name: str) -> float | None:
    """The value of an environment variable, None if it is not set.

    Raises:
        TrainingError: it is no number above 0 and up to 1.
    """
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise TrainingError(f"{name}={text!r} must be a number above 0 and up to 1, such as 8e-5")
    return value
