"""Threads for compiled kernels that release the interpreter's lock.

They live for one call. numba's own layers offer less: its OpenMP layer ends a process that uses it after a fork, its
workqueue layer ends a process that uses it from two threads, and nnU-Net does both (augmentation workers are forked,
predictions are exported from threads). Starting a thread takes some 50 microseconds, a hundredth of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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
