"""JSON objects that others wrote, read so that a wrong type is one line with file and key instead of a traceback.

    about = JsonObject.read(folder / "run.json")
    about.object("settings").whole("epochs")

Every kind of file has one function that takes what is used out of it; nothing else of the file is passed on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nnunet_ext.errors import UserError
from nnunet_ext.files import read_json

# No size, time or count that is stored is larger; sums and squares of what is read stay finite.
LARGEST = 1e15
_LONGEST_TEXT = 4096


@dataclass(frozen=True)
class JsonObject:
    """An object of a JSON file, and its place there for messages.

    Every method raises a `UserError` when the value is not what it is named after. Those with `optional_` give None
    where the key is absent or null.
    """

    file: Path
    content: dict[str, Any]
    place: str = ""
    remedy: str = "restore it or create it again"

    @classmethod
    def read(cls, file: Path, remedy: str = remedy) -> JsonObject:
        """The object that is the whole file."""
        content = read_json(file)
        if not isinstance(content, dict):
            raise UserError(f"{file} holds {shown(content)}; expected an object in braces; {remedy}")
        return cls(file, content, remedy=remedy)

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Say that the value of `key` is not what was expected."""
        found = f"is {shown(self.content[key])}" if key in self.content else "is missing"
        raise UserError(f"{self.file}: {self._path(key)} {found}; expected {expected}; {self.remedy}")

    def object(self, key: str) -> JsonObject:
        """An object."""
        value: Any = self.content.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "an object in braces")
        return JsonObject(self.file, value, self._path(key), self.remedy)

    def optional_object(self, key: str) -> JsonObject:
        """An object, empty where there is none."""
        if self.content.get(key) is None:
            return JsonObject(self.file, {}, self._path(key), self.remedy)
        return self.object(key)

    def objects(self, key: str) -> list[JsonObject]:
        """A list of objects."""
        value: Any = self.content.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.refuse(key, "a list of objects")
        return [JsonObject(self.file, item, f"{self._path(key)}[{i}]", self.remedy) for i, item in enumerate(value)]

    def text(self, key: str) -> str:
        """Text that can be written, of a length that a path may have."""
        value: Any = self.content.get(key)
        if not is_text(value):
            self.refuse(key, f"text of at most {_LONGEST_TEXT} characters")
        return value

    def optional_text(self, key: str) -> str | None:
        """`text` or None."""
        return None if self.content.get(key) is None else self.text(key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        value: Any = self.content.get(key)
        if not isinstance(value, list) or not all(map(is_text, value)):
            self.refuse(key, "a list of texts")
        return tuple(value)

    def number(self, key: str) -> float:
        """A finite number, at most `LARGEST` in size."""
        value: Any = self.content.get(key)
        if not is_number(value):
            self.refuse(key, f"a number between -{LARGEST:g} and {LARGEST:g}")
        return value

    def optional_number(self, key: str) -> float | None:
        """`number` or None."""
        return None if self.content.get(key) is None else self.number(key)

    def whole(self, key: str) -> int:
        """A whole number from 0, at most `LARGEST`."""
        value: Any = self.content.get(key)
        if not _is_whole(value):
            self.refuse(key, f"a whole number from 0 to {LARGEST:g}")
        return value

    def optional_whole(self, key: str) -> int | None:
        """`whole` or None."""
        return None if self.content.get(key) is None else self.whole(key)

    def optional_numbers(self, key: str, *, whole: bool = False) -> list[Any] | None:
        """A list of numbers, or of whole ones, or None."""
        value: Any = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(map(_is_whole if whole else is_number, value)):
            self.refuse(key, f"a list of {'whole ' if whole else ''}numbers")
        return value

    def texts_by_key(self, key: str) -> dict[str, str]:
        """An object whose values are texts."""
        inner = self.object(key)
        return {name: inner.text(name) for name in inner.names()}

    def names(self) -> tuple[str, ...]:
        """Its keys, all of them texts as of `text`."""
        for name in self.content:
            if not is_text(name):
                where = f"{self.file}: {self.place}" if self.place else str(self.file)
                raise UserError(f"{where} has the key {shown(name)}; expected a name; {self.remedy}")
        return tuple(self.content)

    def _path(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number, at most `LARGEST` in size."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 and file names can hold, at most 4096 characters."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or "\0" in value:
        return False
    # JSON can hold halves of characters, which no file can.
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def shown(value: Any) -> str:
    """A value for a message, of any size and depth, in a few words."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number beyond {LARGEST:g}"
    if isinstance(value, float) and math.isinf(value):
        return "infinite"
    words = "null" if value is None else repr(value)
    return words if len(words) <= 60 else words[:57] + "..."
