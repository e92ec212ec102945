"""Answers nnU-Net's search for a class, for our own exact names only.

nnU-Net turns the names it reads from the command line, the plans and the checkpoints into classes with
`recursive_find_python_class(folder, class_name, current_module)`, which looks only inside nnU-Net's own folders.
`attach` puts a function before it that knows `nnunet_ext.discovery.table`. Standard library only, and no model is
imported before its name is asked for.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.discovery.table import KINDS, Entry, find

SEARCH_MODULE = "nnunetv2.utilities.find_class_by_name"
SEARCH_FUNCTION = "recursive_find_python_class"


def load(entry: Entry) -> Any:
    """Import the module of `entry` and return the class.

    Raises:
        ImportError: the module cannot be imported, whatever the reason, or lacks the class; one line says why.
    """
    try:
        return getattr(importlib.import_module(entry.module), entry.name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImportError(f"{entry.name} cannot be loaded from {entry.module} ({reason})") from error


def answer(class_name: str, current_module: str | None) -> Any | None:
    """Return our class of that name if nnU-Net is searching where such a class belongs, else None.

    A class that cannot be loaded is reported on stderr and left to nnU-Net, whose own message follows.
    """
    entry = find(class_name)
    if entry is None or current_module is None:
        return None
    place = KINDS[entry.kind]
    if current_module != place and not current_module.startswith(place + "."):
        return None
    try:
        return load(entry)
    except ImportError as error:
        print(f"nnunet_ext: {error}", file=sys.stderr)
        return None


def attach(search_module: ModuleType) -> None:
    """Put `answer` before nnU-Net's search in the module that defines it, once.

    Modules of nnU-Net that imported the function by name before now get the new one too.

    Raises:
        AttributeError: this nnU-Net has no such function.
    """
    original: Callable[..., Any] = getattr(search_module, SEARCH_FUNCTION)
    if is_attached(search_module):
        return

    @functools.wraps(original)
    def recursive_find_python_class(
        folder: str, class_name: str, current_module: str | None, *args: Any, **kwargs: Any
    ) -> Any:
        found = answer(class_name, current_module)
        return original(folder, class_name, current_module, *args, **kwargs) if found is None else found

    recursive_find_python_class.answers_for = "nnunet_ext"  # type: ignore[attr-defined]
    for name, module in list(sys.modules.items()):
        if name.startswith("nnunetv2.") and getattr(module, "__dict__", {}).get(SEARCH_FUNCTION) is original:
            setattr(module, SEARCH_FUNCTION, recursive_find_python_class)
    setattr(search_module, SEARCH_FUNCTION, recursive_find_python_class)


def is_attached(search_module: ModuleType) -> bool:
    """Whether `attach` has been here."""
    return getattr(getattr(search_module, SEARCH_FUNCTION, None), "answers_for", None) == "nnunet_ext"


def enable() -> None:
    """Attach in this process, however it was started (no start-up hook, `NNUNET_EXT_AUTOLOAD=0`, `PYTHONPATH`)."""
    attach(importlib.import_module(SEARCH_MODULE))
