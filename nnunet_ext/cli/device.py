"""The device of a prediction: the one asked for, else a GPU where there is one, else the CPU, which is said."""

from __future__ import annotations

import sys

from nnunet_ext.errors import UserError


def chosen_device(asked: str | None, command: str) -> str:
    """`cpu`, `cuda` or `mps`.

    Args:
        asked: what the user gave; None leaves it to the machine.
        command: whose line it is, such as predict.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    import torch

    if torch.cuda.is_available():
        return asked or "cuda"
    if asked == "cuda":
        raise UserError("-device cuda: no usable GPU here; leave it out, or give -device cpu")
    if asked is None:
        print(f"nnunet_ext {command}: no usable GPU here, so on the CPU", file=sys.stderr)
    return asked or "cpu"
