"""The environment variables of this project, in one table, and how they are read.

`docs/environment.md` explains them at length. They are read inside nnU-Net's own commands too, so a value that is not
allowed ends these with one line.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from nnunet_ext.errors import TrainingError

VARIABLES = {
    "NNUNET_EXT_AUTOLOAD": "0 switches the start-up hook off; nnU-Net then finds no class of this project",
    "NNUNET_EXT_SCAN": "selective-scan backend: auto or one of those doctor lists",
    "NNUNET_EXT_CONVOLUTION": "causal-convolution backend: auto or one of those doctor lists",
    "NNUNET_EXT_EPOCHS": "training epochs",
    "NNUNET_EXT_ITERATIONS": "training batches per epoch",
    "NNUNET_EXT_VAL_ITERATIONS": "validation batches per epoch",
    "NNUNET_EXT_PRECISION": "arithmetic of training: fp16, bf16 or fp32",
    "NNUNET_EXT_OPTIMIZER": "optimiser of training: sgd or adamw",
    "NNUNET_EXT_LEARNING_RATE": "highest learning rate",
    "NNUNET_EXT_SCHEDULE": "how the learning rate falls: poly, cosine or constant",
    "NNUNET_EXT_WARMUP_EPOCHS": "epochs over which the learning rate rises to the highest",
    "NNUNET_EXT_WEIGHT_DECAY": "weight decay of the optimiser",
    "NNUNET_EXT_GRADIENT_CLIP": "largest norm of the gradients",
    "NNUNET_EXT_PATIENCE": "epochs without a better EMA Dice after which training ends",
    "NNUNET_EXT_CHECKPOINT_EVERY": "epochs between two writes of checkpoint_latest",
    "NNUNET_EXT_LOADER": "who prepares batches: threads of the training, or nnU-Net's processes",
    "NNUNET_EXT_SEED": "seed of the training's batches, with the loader threads",
    "NNUNET_EXT_INTERACTIVE_OBJECTS": "interactive models: what a sample is about, labels or components",
    "NNUNET_EXT_INTERACTIVE_ROUNDS": "interactive models: most rounds of a training step",
    "NNUNET_EXT_INTERACTIVE_GRADIENTS": "interactive models: learn from the last round or from all",
    "NNUNET_EXT_INTERACTIVE_CHANNELS": "planning interactive models: one or all channels of the images",
    "NNUNET_EXT_LICENCE": "interactive models: the licence that viewers show",
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
    "NNUNET_EXT_TEST_SEEDS": "seeds of the random comparison with nnU-Net in the tests, such as 1000-1999",
}


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Name -> what to do, for every NNUNET_EXT_ variable that is set and none of `VARIABLES`: it has no effect."""
    unknown = sorted(name for name in environment if name.startswith("NNUNET_EXT_") and name not in VARIABLES)
    close = {name: difflib.get_close_matches(name, VARIABLES, n=1) for name in unknown}
    return {
        name: f"did you mean {near[0]}?" if near else "known: " + ", ".join(VARIABLES) for name, near in close.items()
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


def number(environment: Mapping[str, str], name: str, most: float = math.inf, *, zero: bool = False) -> float | None:
    """The value of an environment variable, None if it is not set.

    Args:
        environment: the variables.
        name: of the variable.
        most: the largest that is allowed.
        zero: 0 is allowed.

    Raises:
        TrainingError: it is no finite number above 0 and up to `most`.
    """
    text = environment.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value <= most or (zero and value == 0)) or math.isinf(value):
        upper = "" if math.isinf(most) else f" and up to {most:g}"
        raise TrainingError(f"{name}={text!r} must be a number {'from' if zero else 'above'} 0{upper}, such as 1e-4")
    return value


def choice(environment: Mapping[str, str], name: str, allowed: Sequence[str]) -> str | None:
    """The value of an environment variable, None if it is not set.

    Raises:
        TrainingError: it is none of those allowed.
    """
    text = environment.get(name, "").strip()
    if text and text not in allowed:
        raise TrainingError(f"{name}={text!r} must be one of {', '.join(allowed)}")
    return text or None
