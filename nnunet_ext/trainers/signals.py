"""Signals of a cluster, handled in the process that trains and in none of its children."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from nnunet_ext.processes import known_signals


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

        for number in known_signals("SIGUSR1", "SIGTERM"):  # Windows has no SIGUSR1
            try:
                self._old[number] = signal.signal(number, handle)
            except ValueError:  # not the main thread: whoever runs us there handles signals
                return

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)
