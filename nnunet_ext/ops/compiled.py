"""Compiling numba kernels and running them on several threads.

Threads live for one call. numba's own layers offer less: its OpenMP layer ends a process that uses it after a fork, its
workqueue layer ends a process that uses it from two threads, and nnU-Net does both (augmentation workers are forked,
predictions are exported from threads). Starting a thread takes some 50 microseconds, a hundredth of a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

# Below this many elementary operations per thread another thread does not pay.
_LEAST_WORK = 1_000_000


def thread_count(rows: int, work: int) -> int:
    """How many threads to use: at most torch's, one per row, and enough work for each."""
    return max(1, min(torch.get_num_threads(), rows, work // _LEAST_WORK))


def share_rows(rows: int, threads: int, function: Callable[[int, int, int], None]) -> None:
    """Call function(thread, first, last) for `threads` nearly equal parts of the rows, all at once."""
    bounds = [rows * k // threads for k in range(threads + 1)]
    if threads == 1:
        function(0, 0, rows)
        return
    with ThreadPoolExecutor(threads - 1, thread_name_prefix="nnunet_ext") as pool:
        others = [pool.submit(function, k, bounds[k], bounds[k + 1]) for k in range(1, threads)]
        function(0, bounds[0], bounds[1])
        for other in others:
            other.result()


@functools.cache
def why_no_numba() -> str | None:
    """None if kernels can be compiled, else the reason in one line."""
    # numba refuses numpy versions it does not know with ImportError, and broken LLVM bindings raise OSError.
    try:
        import numba
    except (ImportError, OSError) as error:
        return f"numba cannot be imported ({(str(error).splitlines() or ['no reason given'])[0]})"
    return "NUMBA_DISABLE_JIT is set" if getattr(numba.config, "DISABLE_JIT", 0) else None


def empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the type of `like`, its values not set, in memory the system hands out in large pages.

    numpy asks for such pages and torch does not; clearing a fresh output of 100 MB page by page takes a quarter of the
    time of the scan that fills it.
    """
    return torch.from_numpy(np.empty(shape, str(like.dtype).removeprefix("torch.")))


def array(dimensions: int, dtype: torch.dtype, strided: bool = False) -> Any:
    """numba's type of an array: contiguous, or of any strides."""
    import numba

    kind = numba.from_dtype(np.dtype(str(dtype).removeprefix("torch.")))
    return numba.types.Array(kind, dimensions, "A" if strided else "C")


def compile_kernel(function: Callable[..., None], signature: list[Any]) -> Any:
    """Compile for one signature, without Python's lock, from numba's cache on disk where that can be written.

    The cache lies in NUMBA_CACHE_DIR, else beside the source, else in the user's cache folder. It notices changes of
    the kernel's own file only: whoever changes a function that kernels import removes `__pycache__/*.nbi`.
    """
    import numba

    try:
        return numba.njit(numba.void(*signature), nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # no folder to cache in, or no room in it
        return numba.njit(numba.void(*signature), nogil=True)(function)
