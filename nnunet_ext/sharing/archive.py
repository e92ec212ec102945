"""ZIP files of strangers: every member is looked at before any is written, and none is written outside its folder."""

from __future__ import annotations

import contextlib
import hashlib
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nnunet_ext.errors import UserError, reason_of
from nnunet_ext.json_object import shown

# Weights hardly shrink and JSON shrinks tenfold; what grows by more is made to fill a disk.
_LARGEST_RATIO = 100
_FREE_BYTES = 16 << 20  # small files of many equal numbers may
_MOST_MEMBERS = 100_000
_PIECE = 1 << 20
_REMEDY = "ask whoever made it for another"
# Characters and names that not every system can have in a path.
_ODD = re.compile(r'[\\:*?"<>|\x00-\x1f]|[. ]$')


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A ZIP file whose members may all be unpacked into one folder.

    Raises:
        UserError: it is missing or none; or a member's name leads out of the folder or occurs twice, a member is a
            link or encrypted, or all together are far larger than the file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the file that export-model wrote")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is no ZIP file, or damaged ({reason_of(error)}); copy or download it again") from None
    with archive:
        _check(path, archive)
        yield archive


def unpack(
    path: Path, archive: zipfile.ZipFile, target_of: Callable[[str], Path | None], progress: Callable[[int], object]
) -> dict[str, str]:
    """Write the members of an `opened` file.

    Args:
        path: of the file, for messages.
        archive: as `opened` gives it.
        target_of: the file a member is written to, or None to leave it out.
        progress: called with numbers of bytes.

    Returns:
        SHA-256 of each member that was written.

    Raises:
        UserError: a member is damaged.
    """
    sums = {}
    for member in _files(archive):
        target = target_of(member.filename)
        if target is None:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        sha256 = hashlib.sha256()
        with open(target, "xb") as file:
            for piece in _pieces(path, archive, member):
                sha256.update(piece)
                file.write(piece)
                progress(len(piece))
        sums[member.filename] = sha256.hexdigest()
    return sums


def names_of(archive: zipfile.ZipFile) -> list[str]:
    """Names of the files in it."""
    return [member.filename for member in _files(archive)]


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [member for member in archive.infolist() if not member.is_dir()]


def _pieces(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    try:
        with archive.open(member) as source:
            left = member.file_size
            while piece := source.read(_PIECE):
                left -= len(piece)
                yield piece
        if left:
            raise EOFError("it ends too early")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        name = shown(member.filename)
        raise UserError(f"{path}: {name} is damaged ({reason_of(error)}); copy or download it again") from None


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    def refuse(member: zipfile.ZipInfo, what: str) -> UserError:
        return UserError(f"{path}: the member {shown(member.filename)} {what}; nothing was unpacked, {_REMEDY}")

    members = archive.infolist()
    if not members or len(members) > _MOST_MEMBERS:
        raise UserError(f"{path} holds {len(members)} members; expected 1 to {_MOST_MEMBERS}; {_REMEDY}")
    seen: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in members:
        parts = member.filename.removesuffix("/").split("/")
        if any(part in ("", ".", "..") or _ODD.search(part) for part in parts) or not _is_utf8(member.filename):
            raise refuse(member, "has a name that leads out of the folder, or that not every system can have")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse(member, "is a link or a device")
        if member.flag_bits & 1:
            raise refuse(member, "is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refuse(member, "is compressed in a way that no model is")
        # Some systems do not tell letters of two cases, or composed ones, apart.
        folded = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        folded = [unicodedata.normalize("NFC", name).casefold() for name in folded]
        folders.update(folded[:-1])
        if member.is_dir():
            continue
        if folded[-1] in seen:
            raise refuse(member, "is there twice")
        seen[folded[-1]] = member
    for name in folders & seen.keys():
        raise refuse(seen[name], "is a file and a folder")
    size, packed = sum(member.file_size for member in members), sum(member.compress_size for member in members)
    there = path.stat().st_size
    if packed > there or size > _FREE_BYTES + _LARGEST_RATIO * there:
        raise UserError(
            f"{path} would grow from {there} to {size} bytes, which no model does; nothing was unpacked, {_REMEDY}"
        )


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)
