"""Commands with workers of their own, and signals, on systems with and without POSIX's process groups and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any


def own_group() -> dict[str, Any]:
    """Arguments of `subprocess.Popen` that put a command and all its workers into a group of their own."""
    if hasattr(os, "killpg"):
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}  # Windows


def terminate_group(process: subprocess.Popen[Any]) -> None:
    """Ask a command started with `own_group()`, and its workers, to end: SIGTERM, on Windows Ctrl-Break."""
    if hasattr(os, "killpg"):
        _signal_group(process.pid, signal.SIGTERM)
    else:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


def kill_group(process: subprocess.Popen[Any]) -> None:
    """End a command started with `own_group()` and the workers it left; without process groups the command alone."""
    if hasattr(os, "killpg"):
        _signal_group(process.pid, signal.SIGKILL)
    else:
        process.kill()


def known_signals(*names: str) -> list[signal.Signals]:
    """Those of the signals with these names that this system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _signal_group(group: int, number: int) -> None:
    # An empty group does not exist; on macOS one of processes that have ended may not be signalled.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
