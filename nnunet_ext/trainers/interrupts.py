"""Ctrl-C and SIGTERM end nnU-Net's training command with one line and its exit status instead of a traceback."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from nnunet_ext.processes import known_signals

# What shells report for a command that died of the signal.
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

Method = TypeVar("Method", bound=Callable[..., Any])


class Stopped(SystemExit):
    """Raised by handlers of signals, which cannot print themselves: the line they interrupt may be printing."""


def ends_in_one_line(method: Method) -> Method:
    """For methods of a trainer that take long: Ctrl-C exits with status 130, SIGTERM with 143, each with one line.

    A handler that the method installs itself goes before this one; it may raise `Stopped` with another status.
    """

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        try:
            with _raising():
                return method(self, *args, **options)
        except KeyboardInterrupt:
            status: Any
            why, status = "interrupted", EXIT_INTERRUPTED
        except Stopped as stopped:
            why, status = "terminated", stopped.code
        if self.local_rank == 0:
            remedy = "continue with --c" if os.path.isdir(self.output_folder or "") else "start again"
            print(f"nnunet_ext: {why} with exit status {status}; {remedy}", file=sys.stderr)
        raise SystemExit(status)

    return wrapped  # type: ignore[return-value]


@contextlib.contextmanager
def _raising() -> Iterator[None]:
    """Let SIGTERM raise where it would kill, and SIGINT spare workers, which end with their parent; then as before."""
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if os.getpid() == owner:
                raise KeyboardInterrupt
        elif os.getpid() == owner:
            raise Stopped(EXIT_TERMINATED)
        else:
            # A forked worker inherits this handler, and is meant to end.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    old: dict[int, Any] = {}
    try:
        for number in known_signals("SIGTERM", "SIGINT"):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                old[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        pass
    try:
        yield
    finally:
        for changed, before in old.items():
            signal.signal(changed, before)
