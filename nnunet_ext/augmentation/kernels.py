"""Kernels are compiled once, whichever of many threads asks first."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

_compiling = threading.Lock()


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """`functools.cache`, where other threads wait for the first instead of compiling the same beside it."""
    cached = functools.cache(make)

    @functools.wraps(make)
    def wrapper(*args: Any) -> Any:
        with _compiling:
            return cached(*args)

    return wrapper
