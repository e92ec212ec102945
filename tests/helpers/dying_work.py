"""Work that kills its process, in a module that a spawned worker can import by its own name."""

from __future__ import annotations

import os


def half_unless_seven(number: int) -> float:
    if number == 7:
        os._exit(9)  # as the kernel does when memory runs out
    return number / 2
