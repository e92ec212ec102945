"""This process without what only Linux or POSIX has, and with the rules of Windows' file systems: `enter()` first.

A simulation: Python itself and all other packages still run on this system. What differs is what a module can see
(`os`, `signal`, `resource`, /proc) and what files may be done with.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import signal
import sys
import warnings

MODULES = ("resource", "fcntl", "pwd", "grp", "termios")
OF_OS = (
    "fork", "forkpty", "getpgid", "geteuid", "getuid", "killpg", "link", "mkfifo",
    "sched_getaffinity", "setpgid", "setsid", "sysconf",
)  # fmt: skip
OF_SIGNAL = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "alarm", "setitimer", "pause")
FOLDERS = ("/proc", "/dev/shm", "/sys")
# What no name on Windows may hold.
FORBIDDEN = re.compile(r'[<>:"|?*\\]')

_asking = False


def enter() -> None:
    """Take it all away, for the rest of this process; on macOS and Windows nothing has to be."""
    if sys.platform != "linux":
        return
    _wrap_os()
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    _wrap_text()
    sys.addaudithook(_refuse)
    # With -X warn_default_encoding: a file opened with no word about its encoding is read otherwise elsewhere. The
    # message about a command's output ends in a full stop; there the encoding of the system is the right one.
    message = "'encoding' argument not specified$"
    warnings.filterwarnings("error", message, EncodingWarning, module=r"nnunet_ext\b")


def _wrap_os() -> None:
    import fcntl  # before `enter` takes it away

    stat, fsync, rename = os.stat, os.fsync, os.rename

    def stat_here(path, *arguments, **options):
        if _hidden(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stat(path, *arguments, **options)

    def fsync_written(descriptor):
        # As FlushFileBuffers: a file opened for reading cannot be flushed.
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(descriptor)

    def rename_to_new(source, target, **options):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        rename(source, target, **options)

    os.stat, os.fsync, os.rename = stat_here, fsync_written, rename_to_new


def _wrap_text() -> None:
    """Text written with no word about line ends gets carriage returns."""
    write_text = pathlib.Path.write_text

    def with_carriage_returns(self, data, encoding=None, errors=None, newline=None):
        return write_text(self, data, encoding, errors, "\r\n" if newline is None else newline)

    pathlib.Path.write_text = with_carriage_returns  # type: ignore[method-assign]


def _hidden(path) -> bool:
    if not isinstance(path, (str, os.PathLike)):
        return False
    text = os.fspath(path)
    return isinstance(text, str) and any(text == folder or text.startswith(folder + "/") for folder in FOLDERS)


def _refuse(event: str, arguments: tuple) -> None:
    """Refuse what Windows refuses: such paths and names, links, and moving or removing a file that is open."""
    if _asking:
        return
    if event == "open" and _hidden(arguments[0]):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), arguments[0])
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    new = [arguments[0]] if written or event == "os.mkdir" else [arguments[1]] if event == "os.rename" else []
    for path in new:
        if isinstance(path, (str, os.PathLike)) and FORBIDDEN.search(os.path.basename(os.fspath(path))):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    if event == "os.symlink":
        raise OSError(errno.EPERM, "A required privilege is not held by the client", arguments[1])
    if event in ("os.rename", "os.remove"):
        for path in arguments[: 2 if event == "os.rename" else 1]:
            if _is_open(path):
                raise PermissionError(errno.EACCES, "it is being used by another process", path)


def _is_open(path) -> bool:
    """Whether this process has a descriptor of the file, or has mapped it."""
    global _asking
    _asking = True
    try:
        wanted = os.path.abspath(os.fsdecode(path))
        with open("/proc/self/maps", encoding="utf-8") as maps:
            if any(line.rstrip("\n").endswith(" " + wanted) for line in maps):
                return True
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}") == wanted:
                    return True
            except OSError:  # the descriptor of the listing itself
                continue
        return False
    finally:
        _asking = False
