"""Work in spawned processes that survives a killed one."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Windows waits for no more than 63 processes at once, and Python keeps two for itself.
MOST_PROCESSES = 61 if sys.platform == "win32" else sys.maxsize


def in_workers(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[tuple[Item, Result | None]]:
    """Yield (item, work(item)) as they come; the result is None where the worker was killed.

    A killed worker (no memory left, a crash in a library) takes down Python's whole pool. What was left is then tried
    again with one worker, so that only the item that kills it even when alone is lost.

    Args:
        work: a picklable function that does not raise.
        items: picklable arguments; started in this order.
        processes: number of workers. They are spawned, because a fork of a process that has loaded torch or ITK may
            hang; scripts therefore need `if __name__ == "__main__":`.
    """
    left, done = list(range(len(items))), 0
    while left:
        killed = []
        size = min(processes, len(left), MOST_PROCESSES)
        pool = ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"))
        try:
            tasks = {pool.submit(work, items[i]): i for i in left}
            for task in as_completed(tasks):
                try:
                    result = task.result()
                except BrokenProcessPool:
                    killed.append(tasks[task])
                    continue
                done += 1
                yield items[tasks[task]], result
        except BrokenProcessPool:  # while submitting: no worker comes up
            killed = [i for i in left if i not in killed]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        left = sorted(killed)
        if left and (processes == 1 or not done):
            # One worker takes the items in order, so the first that is left killed it. If nothing ever worked, the
            # workers themselves are at fault and each further attempt would fail alike.
            lost = 1 if done else len(left)
            for i in left[:lost]:
                yield items[i], None
            left = left[lost:]
        processes = 1
