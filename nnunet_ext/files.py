"""Writing files so that nobody ever finds half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError

# Nobody's results are nested deeper, and Python's functions cannot follow a thousand levels.
_DEEPEST_JSON = 64
# Compressed and decompressed bytes at a time.
_PACKED_PIECE, _PIECE = 1 << 18, 1 << 22


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    The temporary name keeps the suffixes of `path`, because writers such as SimpleITK choose the format by them.
    The data reach the disk before the rename, so a crash leaves the old file or the new one. What killed processes
    left of their attempts at the same `path` is removed first.

    Raises:
        UserError: the folder cannot be created, or the file cannot be written whole, as on a full disk.
    """
    path = Path(path)
    temporary = None
    with _said_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        try:
            descriptor, name = tempfile.mkstemp(prefix=writing_prefix(), suffix="-" + path.name, dir=path.parent)
            os.close(descriptor)
            temporary = Path(name)
            yield temporary
            # mkstemp makes files private; a result should have the permissions any other new file gets.
            temporary.chmod(0o666 & ~_umask())
            with open(temporary, "r+b") as written:  # Windows flushes no file that is opened for reading
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends without an exception.

    What killed processes left of their attempts at the same `path` is removed first.

    Args:
        path: the folder.
        replace: a folder that is there already gives way when the new one is complete.

    Raises:
        UserError: `path` exists already and is not to be replaced, or it cannot be created or written.
    """
    path = Path(path)
    temporary = old = None
    with _said_plainly(path):
        if path.exists() and not (replace and path.is_dir()):
            raise UserError(f"{path} exists already; choose another folder or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        try:
            temporary = Path(tempfile.mkdtemp(prefix=writing_prefix(), suffix="-" + path.name, dir=path.parent))
            yield temporary
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
            if replace and path.is_dir():
                aside = Path(tempfile.mkdtemp(prefix=writing_prefix(), suffix="-" + path.name, dir=path.parent))
                path.rename(aside)
                try:
                    temporary.rename(path)
                except OSError:
                    aside.rename(path)
                    raise
                old = aside
            else:
                temporary.rename(path)
        finally:
            for left in (temporary, old):
                if left is not None:
                    shutil.rmtree(left, ignore_errors=True)


def writing_prefix() -> str:
    """How the names of this process's unfinished files begin: `.writing-HOST-PROCESS-`."""
    return f".writing-{_host()}-{os.getpid()}-"


def remove_leftovers(path: Path) -> None:
    """Remove the unfinished files and folders for `path` whose process, of this host, is dead.

    Those of other hosts stay: nobody here knows whether they are still being written.
    """
    pattern = re.compile(rf"\.writing-{_host()}-(\d+)-(?:\w{{8}}-)?{re.escape(path.name)}", re.ASCII)
    for name in os.listdir(path.parent):
        match = pattern.fullmatch(name)
        if match is None or _alive(int(match[1])):
            continue
        left = path.with_name(name)
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                left.unlink()


@contextlib.contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is being written, as one line: errors of the system and of libraries."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not _concerns(path, error):
            raise UserError(f"cannot read {error.filename}: {error.strerror}; needed to write {path}") from None
        reason = error.strerror or str(error)
    except RuntimeError as error:
        # torch's writer and the C++ streams below it know no OSError.
        if not re.search(r"PytorchStreamWriter|inline_container|iostream error|No space left", str(error)):
            raise
        reason = "the file could not be written to its end; is the disk full?"
    else:
        return
    raise UserError(f"cannot write {path}: {reason}; make room, or choose a folder you may write to") from None


def _concerns(path: Path, error: OSError) -> bool:
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    parents = {os.path.abspath(parent) for parent in path.absolute().parents}
    beside = os.path.join(os.path.abspath(path.parent), ".writing-")
    return any(
        os.path.abspath(name) in {*parents, os.path.abspath(path)} or os.path.abspath(name).startswith(beside)
        for name in named
    )


def _host() -> str:
    """A short name of this host; containers count processes for themselves, so each is a host of its own."""
    try:
        processes = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        processes = 0
    return hashlib.blake2b(f"{socket.gethostname()} {processes}".encode(), digest_size=4).hexdigest()


def _alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is no question but Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def resolved(path: str | os.PathLike[str]) -> Path:
    """The path without links, as far as there is one: at links in a circle `Path.resolve` raises RuntimeError."""
    return Path(os.path.realpath(path))


def utf8_name(path: str | os.PathLike[str]) -> str:
    """A path as text for ITK, which ends the whole process when it gets one that is no UTF-8.

    Raises:
        UserError: it is none.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is no name in UTF-8; rename it") from None
    return name


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make `target` a symbolic link to `source`; where links cannot be made, as often on Windows, a copy."""
    try:
        os.symlink(source, target)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has, atomically."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        odd = text[max(error.start - 40, 0) : error.end]
        raise UserError(f"cannot write {path}: it would hold {odd!r}, a name that is no UTF-8; rename it") from None
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as JSON that every parser accepts: NaN and infinities become null. Atomic."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON; the message names it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        _check_depth(content)
        return content
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; restore it or create it again") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise UserError(f"{path} is not valid JSON ({error}); restore it or create it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _check_depth(content: Any) -> None:
    """Raise a RecursionError for a JSON value of more than `_DEEPEST_JSON` levels."""
    level = [content]
    for _ in range(_DEEPEST_JSON):
        holders = [value for value in level if isinstance(value, (dict, list))]
        if not holders:
            return
        level = [value for holder in holders for value in (holder.values() if isinstance(holder, dict) else holder)]
    raise RecursionError


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def gunzipped(data: bytes) -> Iterator[bytes]:
    """The content of a gzip file with all its members, in pieces of at most 4 MiB; checksums are verified.

    Raises:
        EOFError: the data end too early, which SimpleITK fills up with zeros in silence; so do no data at all.
        zlib.error: they are damaged.
    """
    member = zlib.decompressobj(wbits=31)
    for begin in range(0, len(data), _PACKED_PIECE):
        piece, full = data[begin : begin + _PACKED_PIECE], False
        while piece or full:
            if member.eof:
                piece = piece.lstrip(b"\0")  # some writers pad
                if not piece:
                    break
                member = zlib.decompressobj(wbits=31)
            out = member.decompress(piece, _PIECE)
            if out:
                yield out
            full = len(out) == _PIECE  # then there may be more without further input
            piece = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise EOFError("the compressed data end too early")
