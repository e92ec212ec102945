"""Damage, decided by a `random.Random`: bytes, JSON, NIfTI headers, tables, what torch stores, names of files."""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

# JSON text that takes the place of a value; None removes it.
FRAGMENTS = (
    None, "null", "true", "0", "-1", "1.5", "3", '""', '"text"', "[]", "{}", "[[]]", "[null]", '[{"a": 1}]',
    "NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e999", "5e-324", str(2**31), str(2**63), str(10**30),
    "7" * 4000, "7" * 5000, r'"a\nb\u001b[31m"', r'"\u0000"', r'"\ud800"', '"' + "x" * 5000 + '"', '"/"', '"../.."',
    "[" * 500 + "]" * 500, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[1, 2", "\x00",
)  # fmt: skip
_PLACE = "@place@"
KEYS = ("", "0", "9" * 30, "a\nb", "\ud800", "x" * 5000, "(1, 2)")

# Values within what torch stores.
STORED = (None, -1, 0, "", "nowhere", (), (7,), {}, {"a": "b"}, torch.zeros(2), torch.zeros(0), float("nan"))

# Where bytes of a NIfTI-1 header lie, and what is put there.
NIFTI = {
    "unknown unit": (123, b"\x07"),
    "unknown type": (70, b"\x03\x7f"),
    "complex voxels": (70, b"\x20\x00\x40\x00"),
    "bits and type disagree": (72, b"\x01\x00"),
    "no axes": (40, b"\x00\x00"),
    "too many axes": (40, b"\x63\x00"),
    "axis of length 0": (44, b"\x00\x00"),
    "axis of negative length": (44, b"\xff\xff"),
    "axis of absurd length": (44, b"\xff\x7f"),
    "offset NaN": (108, struct.pack("<f", np.nan)),
    "offset infinite": (108, struct.pack("<f", np.inf)),
    "offset negative": (108, struct.pack("<f", -8.0)),
    "offset beyond the end": (108, struct.pack("<f", 1e30)),
    "offset within the header": (108, struct.pack("<f", 16.0)),
    "slope NaN and offset infinite": (112, struct.pack("<2f", 1.0, np.inf)),
    "slope huge": (112, struct.pack("<2f", 1e38, 0)),
    "voxel size NaN": (80, struct.pack("<f", np.nan)),
    "voxel size negative": (80, struct.pack("<f", -1.0)),
    "handedness NaN": (76, struct.pack("<f", np.nan)),
    "quaternion longer than 1": (256, struct.pack("<3f", 3.0, 3.0, 3.0)),
    "quaternion NaN": (256, struct.pack("<f", np.nan)),
    "affine of zeros": (280, bytes(48)),
    "affine flat": (280, struct.pack("<12f", 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)),
    "affine NaN": (280, struct.pack("<f", np.nan)),
    "affine infinite": (280, struct.pack("<f", np.inf)),
    "affine tiny": (280, struct.pack("<12f", *(1e-30 * np.eye(3, 4)).ravel())),
    "only a header of zeros": (4, bytes(344)),
    "magic": (344, b"ni1\0"),
    "size of header": (0, b"\x00\x00\x00\x01"),
}

NAMES = (
    "a\nb", "a\x1b[31mb", "\udcff", "é 脳", " ", "$(touch EXECUTED)", "`touch EXECUTED`", "a;touch EXECUTED;", "-rf",
    "x" * 250, "%s%n", "{0}", "*", "a'b\"c", "_0000", ".hidden", "a__b", "fold_x", "Dataset001_", "CON",
)  # fmt: skip


class Payload:
    """Makes a file when it is unpickled by a reader that runs what it reads."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (open, (str(self.marker), "w"))


def places(value: Any, way: tuple = ()) -> Iterator[tuple]:
    """The way to a JSON value or stored dictionary itself, and to every value inside."""
    yield way
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*way, key))


def data(content: bytes, rng: random.Random) -> bytes:
    """Bytes cut, emptied, lengthened, overwritten, or with bits turned."""
    kind = rng.randrange(6)
    if kind == 0:
        return content[: rng.randrange(len(content) + 1)]
    if kind == 1:
        return rng.choice((b"", b"\0", b"\0" * 4096, rng.randbytes(300), b"<html>404</html>", content * 2))
    changed = bytearray(content or b"\0")
    if kind == 2:
        at = rng.randrange(len(changed))
        changed[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        return bytes(changed)
    for _ in range(rng.choice((1, 1, 5, 40))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def json_value(text: str, rng: random.Random) -> tuple[str, str]:
    """(what was done, the text with one value replaced or removed, or a key renamed)."""
    content = json.loads(text)
    # A level first, then a place: else nearly all would be metrics of cases.
    by_depth: dict[int, list[tuple]] = {}
    for path in places(content):
        by_depth.setdefault(len(path), []).append(path)
    path = rng.choice(by_depth[rng.choice(list(by_depth))])
    fragment = rng.choice(FRAGMENTS)
    holder: dict = {"whole": content}
    inside: Any = holder
    for key in ("whole", *path)[:-1]:
        inside = inside[key]
    last = ("whole", *path)[-1]
    if fragment is None and path:
        del inside[last]
    elif rng.random() < 0.1 and isinstance(inside, dict) and path:
        inside[rng.choice(KEYS)] = inside.pop(last)
    else:
        inside[last] = _PLACE
    changed = json.dumps(holder["whole"]).replace(f'"{_PLACE}"', fragment or "null")
    return f"{path} -> {(fragment or 'removed')[:40]}", changed


def stored(content: Any, rng: random.Random) -> tuple[str, Any]:
    """(what was done, what torch stores with one entry removed or replaced)."""
    content = copy.deepcopy(content)
    *way, last = rng.choice([path for path in places(content) if path])
    inner = content
    for key in way:
        inner = inner[key]
    if rng.random() < 0.25:
        del inner[last]
        return f"{(*way, last)} removed", content
    value = rng.choice(STORED)
    inner[last] = value
    return f"{(*way, last)} -> {value!r}"[:100], content


def nifti_header(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(what was done, an unpacked NIfTI file with one field of its header changed)."""
    changed = bytearray(content)
    if rng.random() < 0.7:
        what = rng.choice(list(NIFTI))
        at, new = NIFTI[what]
    else:
        at, new = rng.randrange(348), rng.randbytes(rng.choice((1, 2, 4)))
        what = f"header at {at}: {new.hex()}"
    changed[at : at + len(new)] = new
    return what, bytes(changed)


def table(text: str, rng: random.Random) -> tuple[str, str]:
    """(what was done, lines of text with a word or a line changed)."""
    lines = text.split("\n")
    number = rng.randrange(len(lines))
    words = lines[number].split(rng.choice((" ", ",", ": ")))
    word = rng.choice(
        ("", "nan", "inf", "-1", "1e999", "9" * 5000, "\ud800", "\0", "\x1b[31m", "x" * 5000, "0-99999999")
    )
    kind = rng.randrange(3)
    if kind == 0:
        words[rng.randrange(len(words))] = word
        lines[number] = " ".join(words)
    elif kind == 1:
        del lines[number]
    else:
        lines.insert(number, word)
    return f"line {number}: {word[:20]!r}", "\n".join(lines)


def file(path: Path, rng: random.Random, marker: Path) -> str:
    """Damage a file in one way that fits its kind; says which. What would run makes the file `marker`."""
    before = path.read_bytes()
    name, kind = path.name, rng.random()
    if kind < 0.25:
        path.write_bytes(data(before, rng))
        return "bytes"
    if name.endswith(".json"):
        what, text = json_value(before.decode(), rng)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return what
    if name.endswith((".nii.gz", ".nii")):
        packed = name.endswith(".gz")
        what, changed = nifti_header(gzip.decompress(before) if packed else before, rng)
        path.write_bytes(gzip.compress(changed, 1) if packed else changed)
        return what
    if name.endswith((".pth", ".pt", ".model")):
        content = torch.load(path, weights_only=True)
        if kind < 0.35:
            torch.save({**content, "more": Payload(marker)}, path)
            return "a payload"
        what, changed = stored(content, rng)
        torch.save(changed, path)
        return what
    if name.endswith((".txt", ".csv", ".sh", ".md")):
        what, text = table(before.decode(), rng)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return what
    path.write_bytes(data(before, rng))
    return "bytes"


def entry(path: Path, rng: random.Random) -> tuple[str, Callable[[], None]]:
    """Rename, remove or replace an entry of a folder; returns what was done and how it is undone."""
    aside = path.with_name(f".aside-{zlib.crc32(os.fsencode(path.name)):08x}")
    kind = rng.choice(("renamed", "removed", "a folder", "a loop", "beside", "empty"))
    other = path.with_name((rng.choice(NAMES) + rng.choice(("", "".join(path.suffixes))))[-250:].replace("/", "_"))
    if kind == "beside" or (kind == "renamed" and other.exists()):
        made = not os.path.lexists(other)
        if made:
            shutil.copytree(path, other) if path.is_dir() else shutil.copyfile(path, other)
        return f"{path.name} also as {other.name!r}", lambda: _remove(other) if made else None
    if kind == "renamed":
        path.rename(other)
        return f"{path.name} renamed {other.name!r}", lambda: _put_back(other, path)
    path.rename(aside)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a loop":
        path.symlink_to(path.name)
    elif kind == "empty":
        path.touch()
    return f"{path.name} {kind}", lambda: (_remove(path), _put_back(aside, path))[0]


def _put_back(source: Path, target: Path) -> None:
    source.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
