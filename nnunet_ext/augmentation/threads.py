"""Things made ahead of time by threads of this process, given out in order.

nnU-Net makes batches in worker processes, each with its own Python, its own copy of torch's libraries and a share of
/dev/shm. Where the work is done without Python's lock, threads do the same; nothing is copied between processes, and
what fails raises where the batch is awaited.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody waits for the thing any more."""


class ThreadLoader(Generic[T]):
    """An endless iterator over make(first), make(first + 1) and so on, made by threads.

    Args:
        make: gives the thing of a number; called from any thread, several at once. Its second argument says whether
            anybody still waits for it; where not, it may raise `Abandoned`.
        threads: how many; 0 makes each thing when it is asked for, in the thread that asks.
        ahead: how many may be finished or in the making before they are asked for.
        first: number of the first.
        prepare: called once at the beginning of each thread.
    """

    def __init__(
        self,
        make: Callable[[int, Callable[[], bool]], T],
        threads: int,
        ahead: int,
        first: int = 0,
        prepare: Callable[[], None] = lambda: None,
    ):
        self._shop = _Shop(make, max(ahead, 1), first)
        self._threads: list[threading.Thread] = []
        if threads:
            ready = threading.Barrier(threads + 1)
            # Threads know the shop and not this object, so that they end when nobody holds it any more.
            arguments = (self._shop, ready, prepare)
            self._threads = [
                threading.Thread(target=_work, args=arguments, name=f"nnunet_ext_{n}", daemon=True)
                for n in range(threads)
            ]
            before = torch.get_num_threads()
            for thread in self._threads:
                thread.start()
            ready.wait()
            # What a thread sets for itself is torch's default for threads to come; that stays as it was.
            torch.set_num_threads(before)
        # At the end of the interpreter too: a thread inside torch must not outlive it.
        self._end = weakref.finalize(self, _end, self._shop, self._threads)

    def __iter__(self) -> ThreadLoader[T]:
        return self

    def __next__(self) -> T:
        """The next thing.

        Raises:
            whatever `make` raised for it; no more are made then.
            RuntimeError: the loader had threads and is closed.
        """
        return self._shop.take(alone=not self._threads)

    def close(self) -> None:
        """End the threads, each after the sample it is at, and let go of what is made."""
        self._end()


class _Shop:
    """What is wanted, in the making and ready."""

    def __init__(self, make: Callable[[int, Callable[[], bool]], Any], ahead: int, first: int):
        self._make, self._ahead = make, ahead
        self._wanted = self._begun = first
        self._ready: dict[int, tuple[Any, BaseException | None]] = {}
        self._changed = threading.Condition()
        self.open = True

    def take(self, alone: bool) -> Any:
        if alone:
            self._wanted += 1
            return self._make(self._wanted - 1, lambda: True)
        with self._changed:
            while self._wanted not in self._ready and self.open:
                self._changed.wait()
            if not self.open:
                raise RuntimeError("the loader is closed")
            result, error = self._ready.pop(self._wanted)
            self._wanted += 1
            self._changed.notify_all()
        if error is not None:
            self.close()
            raise error
        return result

    def work(self) -> None:
        """Make one thing after the other until the shop closes."""
        while True:
            with self._changed:
                while self.open and self._begun >= self._wanted + self._ahead:
                    self._changed.wait()
                if not self.open:
                    return
                number = self._begun
                self._begun += 1
            result, error = None, None
            try:
                result = self._make(number, lambda: self.open)
            except Abandoned:
                return
            except BaseException as raised:
                error = raised
            with self._changed:
                if not self.open:
                    return
                self._ready[number] = result, error
                self._changed.notify_all()
            if error is not None:
                return

    def close(self) -> None:
        with self._changed:
            self.open = False
            self._ready.clear()
            self._changed.notify_all()


def _work(shop: _Shop, ready: threading.Barrier, prepare: Callable[[], None]) -> None:
    torch.get_num_threads()  # which sets it, once in each thread, to the default
    torch.set_num_threads(1)
    ready.wait()
    prepare()
    shop.work()


def _end(shop: _Shop, threads: list[threading.Thread]) -> None:
    shop.close()
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()
