"""Writing files so that nobody ever finds half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_ext.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    The temporary name keeps the suffixes of `path`, because writers such as SimpleITK choose the format by them.
    The data reach the disk before the rename, so a crash leaves the old file or the new one.

    Raises:
        UserError: the folder cannot be created or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".writing-", suffix="-" + path.name, dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder you may write to") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a result should have the permissions any other new file gets.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "r+b") as written:  # Windows flushes no file that is opened for reading
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` when the block ends without an exception.

    Raises:
        UserError: `path` exists already, or it cannot be created or written.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; choose another folder or remove it")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", suffix="-" + path.name, dir=path.parent))
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders private
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder you may write to") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Make `target` a symbolic link to `source`; where links cannot be made, as often on Windows, a copy."""
    try:
        os.symlink(source, target)
    except (OSError, NotImplementedError):
        shutil.copyfile(source, target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 with the line ends it has, atomically."""
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
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; restore it or create it again") from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise UserError(f"{path} is not valid JSON ({error}); restore it or create it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


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


def gunzip(data: bytes) -> bytes:
    """All members of a gzip file, checksums included.

    Raises:
        EOFError: the data end too early, which SimpleITK fills up with zeros in silence.
        zlib.error: they are damaged.
    """
    parts = []
    while data:
        member = zlib.decompressobj(wbits=31)
        parts.append(member.decompress(data))
        if not member.eof:
            raise EOFError("the compressed data end too early")
        data = member.unused_data.lstrip(b"\0")  # some writers pad
    return parts[0] if len(parts) == 1 else b"".join(parts)
