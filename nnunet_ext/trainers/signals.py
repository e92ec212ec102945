"""Signals of a cluster, handled in the process that trains and in none of its children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


class handlers:
    """Install a handler for SIGUSR1 and SIGTERM in this process only, and put the old ones back."""

    def __init__(self, act: Callable[[int], None]):
        self._act = act
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        owner = os.getpid()

        def handle(number, frame):
            if os.getpid() == owner:
                self._act(number)
            elif number == signal.SIGTERM:
                # A forked augmentation worker inherits this handler, and is meant to end.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        for number in (signal.SIGUSR1, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, handle)
            except ValueError:  # not the main thread: whoever runs us there handles signals
                return

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
