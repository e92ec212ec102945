"""Numbers on the command line, refused with the value and what was expected."""

from __future__ import annotations

import argparse
import math

from nnunet_ext.environment import decimal


def at_least_one(text: str) -> int:
    """A whole number of at least 1, for argparse's `type`."""
    number = decimal(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return number


def gigabytes(text: str) -> float:
    """A size of memory above 0, for argparse's `type`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of gigabytes above 0, such as 24")
    return value
