"""The command line run within this process under watch: what it writes, starts and prints, its time and memory."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.cli.main import main

SECONDS = 20.0  # of processor time, where a run takes a tenth of a second
MEMORY = 2 << 30  # of addresses, beyond what the process has
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1,
    "os.chmod": 1, "os.mkfifo": 1,
}  # fmt: skip
_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn", "socket.connect")
# What only a programmer can do something about, unless it is the reason, in parentheses, why a file is refused.
_INTERNAL = re.compile(
    r"Traceback|(?<!\()\b(?:Attribute|Key|Type|Index|Name|Assertion|UnboundLocal|Recursion|ZeroDivision|NotImplemented|Memory|"
    r"UnicodeEncode|UnicodeDecode)Error\b"
)


class TooLong(BaseException):
    """The processor time that is granted has been used up."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: exit status.
        lines: of stderr.
        out: stdout.
        wrong: what no run may do, in words.
        seconds: of processor time.
    """

    status: int
    lines: list[str]
    out: str
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Watch:
    """Audit hooks cannot be taken away, so there is one, which looks only while it is asked to."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.starts = False
        self.found: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.root is None:
            return
        paths: Sequence = ()
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and (
                flags & _WRITES if isinstance(flags, int) else mode and set("wax+") & set(mode)
            ):
                paths = (path,)
        elif event in _PATHS:
            paths = arguments[: _PATHS[event]] if event != "os.symlink" else arguments[1:2]
        elif event in _STARTS and not self.starts:
            self.found.append(f"{event} {arguments[:2]!r}"[:200])
            raise PermissionError(1, "nothing may be started here")
        for path in paths:
            if isinstance(path, int):
                continue
            place = os.path.abspath(os.fsdecode(path))
            if not place.startswith(self.root) and place != os.devnull and "__pycache__" not in place:
                self.found.append(f"{event} {place!r}"[:200])
                raise PermissionError(1, "outside", place)


_watch = _Watch()


@contextlib.contextmanager
def _watching(root: Path, starts: bool) -> Iterator[list[str]]:
    if not hasattr(_watch, "added"):
        sys.addaudithook(_watch)
        _watch.added = True  # type: ignore[attr-defined]
    _watch.found, _watch.starts, _watch.root = [], starts, os.path.abspath(root)
    try:
        yield _watch.found
    finally:
        _watch.root = None


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """`SECONDS` of processor time and `MEMORY` more addresses than now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def overdue(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, overdue)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def run(
    words: Sequence[str],
    root: Path,
    printed: Callable[[], tuple[str, str]],
    *,
    variables: Mapping[str, str] | None = None,
    starts: bool = False,
    chatter: str = "",
    finds: bool = False,
) -> Outcome:
    """Run `nnunet_ext WORDS` in the folder `root`/here with environment `variables`.

    Args:
        words: the command line.
        root: nothing may be written elsewhere.
        printed: what was printed since the last call, stdout and stderr.
        variables: of the environment; others of nnU-Net and this package are unset.
        starts: other programs may be started.
        chatter: pattern of lines on stderr that are no errors.
        finds: exit status 1 may mean that something was found, which stdout says.
    """
    wrong: list[str] = []
    kept, here, tempdir = dict(os.environ), os.getcwd(), tempfile.tempdir
    for name in [name for name in os.environ if name.startswith(("nnUNet", "NNUNET_EXT"))]:
        del os.environ[name]
    os.environ.update(variables or {})
    os.chdir(root / "here")
    tempfile.tempdir = str(root / "here")
    printed()
    begun = time.process_time()
    status = -1
    try:
        with _limited(), _watching(root, starts) as found:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", RuntimeWarning)
                    status = main(words)
            except SystemExit as end:  # of argparse, or of a training's error
                if isinstance(end.code, str):
                    print(end.code, file=sys.stderr)
                status = end.code if isinstance(end.code, int) else 1
            except TooLong:
                wrong.append(f"took more than {SECONDS:g} s")
            except BaseException as error:  # what the user would see as a traceback
                frame = error.__traceback__
                while frame is not None and frame.tb_next is not None:
                    frame = frame.tb_next
                place = "" if frame is None else f" at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
                wrong.append(f"{type(error).__name__}: {error}"[:300] + place)
        wrong += [f"touched: {event}" for event in found]
    finally:
        os.chdir(here)
        tempfile.tempdir = tempdir
        os.environ.clear()
        os.environ.update(kept)
    seconds = time.process_time() - begun
    out, err = printed()
    lines = err.removesuffix("\n").split("\n") if err else []
    if not wrong:
        wrong = _wrong_words(words[0], status, lines, chatter, finds)
    return Outcome(status, lines, out, wrong, seconds)


def _wrong_words(command: str, status: int, lines: list[str], chatter: str, finds: bool) -> list[str]:
    """What is wrong with the words on stderr: each line is one of ours, printable and about the user's matter."""
    wrong = []
    if status not in (0, 1, 2):
        wrong.append(f"exit status {status}")
    said = [line for line in lines if re.match(rf"nnunet_ext {command}(?: \w+)?: ", line)]
    others = [line for line in lines if line not in said and not (chatter and re.search(chatter, line))]
    if status == 2 and any(": error: " in line for line in said):  # argparse shows the usage before it
        others = [line for line in others if not line.startswith(("usage: ", " "))]
    if status and not said and not (finds and status == 1):
        wrong.append("does not say what failed")
    if others:
        wrong.append(f"other lines: {others[:2]}")
    for line in said:
        if not line.isprintable() or len(line) > 12_000 or _INTERNAL.search(line):
            wrong.append(f"line: {line[:400]!r}")
    return wrong
