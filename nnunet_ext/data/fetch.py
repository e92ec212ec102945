"""Downloads that survive interruptions, and archives that cannot write where they should not."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import lzma
import os
import socket
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json, write_json

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_ATTEMPTS = 6
# Nobody listens there, or the name is unknown: waiting longer seldom helps.
_ATTEMPTS_WITHOUT_ANSWER = 3


def download(url: str, path: str | os.PathLike[str], md5: str, pause_s: float = 2.0, progress: bool = False) -> Path:
    """Fetch `url` to `path`; what an interrupted attempt left is continued by range requests.

    Bytes gather in `path`.part; `path` appears when its MD5 is right. A server that has changed the file, or cannot
    continue, makes the download begin anew.

    Args:
        url: http or https.
        path: target; a file that is already there and right is kept.
        md5: expected checksum, hexadecimal.
        pause_s: wait before the second attempt; doubles with each further one.
        progress: show a bar on stderr for work longer than two seconds.

    Raises:
        UserError: the server refuses, the connection fails six times without a new byte or three times without an
            answer, the checksum is wrong. Each further attempt is announced on stderr.
    """
    path = Path(path)
    if path.is_file() and _md5(path) == md5:
        return path
    part, state = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose a folder you may write to") from None
    failures = 0
    while True:
        attempts = _ATTEMPTS
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, state, progress):
                break
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UserError(f"{url} answers {error.code} {error.reason}; check the address (--base)") from None
            reason = f"the server answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise UserError(f"cannot write {part}: {error.strerror}") from None
            cause = getattr(error, "reason", error)
            if isinstance(cause, (ConnectionRefusedError, socket.gaierror)):
                attempts = _ATTEMPTS_WITHOUT_ANSWER
            reason = " ".join(str(cause).split()) or type(error).__name__
        grown = (part.stat().st_size if part.exists() else 0) > before
        failures = 0 if grown else failures + 1
        if failures >= attempts:
            raise UserError(f"cannot download {url} ({reason}); run the same command again to continue")
        pause = pause_s * 2**failures / 2
        print(f"{url}: {reason}; trying again in {pause:g} s ({failures + 1} of {attempts})", file=sys.stderr)
        time.sleep(pause)
    found = _md5(part)
    if found != md5:
        part.unlink()
        state.unlink(missing_ok=True)
        raise UserError(f"{url} has MD5 {found}, expected {md5}; the download was removed, try again or another --base")
    os.replace(part, path)
    state.unlink(missing_ok=True)
    return path


def _continue(url: str, part: Path, state: Path, progress: bool) -> bool:
    """Fetch what is missing; whether the file is complete."""
    known = _known(state) if part.exists() else {}
    have = part.stat().st_size if known.get("url") == url and part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "nnunet_ext"})
    if have and known.get("size") == have:
        return True
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known.get("etag"):
            request.add_header("If-Range", known["etag"])  # a changed file is sent whole
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        length = answer.headers.get("Content-Length")
        if answer.status == 206:
            span = answer.headers.get("Content-Range", "")
            if not span.startswith(f"bytes {have}-"):
                part.unlink()
                return False
        else:
            have = 0
        size = None if length is None else have + int(length)
        write_json(state, {"url": url, "etag": answer.headers.get("ETag"), "size": size})
        bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem, delay=2, disable=not progress)
        with open(part, "ab" if have else "wb") as file, bar:
            while block := answer.read(_CHUNK):
                file.write(block)
                bar.update(len(block))
    return size is None or part.stat().st_size == size


def _known(state: Path) -> dict[str, Any]:
    """What is known of an unfinished download; nothing, where the file does not say it."""
    try:
        known = read_json(state)
    except UserError:
        return {}
    if not isinstance(known, dict) or not isinstance(known.get("etag"), (str, type(None))):
        return {}
    return known


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def archive_files(path: str | os.PathLike[str]) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The regular files of a tar archive, as (relative path, open file); nothing is written.

    Folders and what macOS adds are skipped.

    Raises:
        UserError: the archive is damaged, or has a member that would lie outside the folder it is unpacked in, or a
            link or device.
    """
    with intact(path):
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or "\\" in member.name:
                    raise UserError(f"{path} holds {member.name!r}, which leads out of its folder; do not use it")
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{path} holds {member.name!r}, a link or device; do not use it")
                if member.isfile() and not name.name.startswith("."):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield name, file


@contextlib.contextmanager
def intact(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, errors of reading an archive or its members become a line that says so.

    Raises:
        UserError: the archive is damaged.
    """
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{path} is no intact tar archive ({text}); remove it and download it again") from None
