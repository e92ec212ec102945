"""Running other commands as a user would type them: printed, logged in full, shown in brief, never left behind."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_ext.errors import UserError
from nnunet_ext.processes import kill_group, known_signals, own_group, terminate_group

_LAST_LINES = 15
# How Python and our own commands name an error. The first is the cause; nnU-Net's last is often a worker's complaint.
_ERROR = re.compile(r"(?:[\w.]+(?:Error|Exception)|nnunet_ext[\w ]*): .+")
_SECONDS_TO_STOP = 10.0


def find_executable(name: str) -> Path:
    """The command `name` of the environment this Python belongs to, activated or not; else the one on PATH.

    Raises:
        UserError: there is none.
    """
    beside = Path(sys.executable).parent / name
    if beside.is_file():
        return beside
    # On Windows both have an ending, such as .exe.
    found = shutil.which(name, path=str(beside.parent)) or shutil.which(name)
    if found is None:
        raise UserError(f"{name} is neither beside {sys.executable} nor on PATH; install nnunetv2 and nnunet-ext there")
    return Path(found)


def run_logged(
    command: Sequence[str],
    log: Path,
    folder: Path,
    variables: Mapping[str, str],
    show: Callable[[str], str | None],
) -> None:
    """Print and run one command in `folder`; write all it says to `log`, print what `show` makes of each line.

    The command and all its workers form a group of their own, and the whole group is stopped when this function is
    left early, by Ctrl-C or otherwise.

    Args:
        command: name and arguments, as a user would type them.
        log: file that gets every line.
        folder: where it runs.
        variables: added to the environment.
        show: gets each line of the output and returns what to print, or None.

    Raises:
        UserError: the command does not exist or fails; its last lines have been printed to stderr.
    """
    print(f"\n$ {shlex.join(command)}", flush=True)
    executable = find_executable(command[0])
    # Commands started by this one must come from the same environment, as in an activated one.
    path = os.pathsep.join([str(executable.parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, **variables}
    last: deque[str] = deque(maxlen=_LAST_LINES)
    cause = ""
    with (
        open(log, "w", encoding="utf-8") as file,
        _started([str(executable), *command[1:]], folder, environment) as run,
    ):
        assert run.stdout is not None
        for line in run.stdout:  # universal newlines: each state of a progress bar is a line
            file.write(line)
            file.flush()
            if line.strip():
                last.append(line.rstrip())
            if not cause and _ERROR.match(line):
                cause = f" ({line.strip()})"
            shown = show(line.rstrip())
            if shown is not None:
                print(shown, end="" if shown.endswith("\r") else "\n", flush=True)
        status = run.wait()
    if status:
        print("\n".join(f"  | {line}" for line in last), file=sys.stderr, flush=True)
        how = f"was killed by signal {-status}" if status < 0 else f"failed with exit status {status}"
        raise UserError(f"{command[0]} {how}{cause}; its last lines are above, all of them in {log}")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within the block SIGTERM and a closed terminal end the program like Ctrl-C, so that nothing stays behind."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in known_signals("SIGTERM", "SIGHUP", "SIGBREAK")}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        **own_group(),
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            terminate_group(run)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.wait(timeout=_SECONDS_TO_STOP)
        # Workers may outlive the process that started them; when the group is empty this does nothing.
        kill_group(run)
        run.wait()
        if run.stdout is not None:
            run.stdout.close()
