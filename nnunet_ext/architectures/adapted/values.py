"""From what plans can hold, JSON, to the objects a constructor takes.

A text that begins with @ stands for something else:

    @channels, @classes, @axes          of the images, the output, the grid (2 or 3): nnU-Net knows them when it builds
    @grid, @edge                        the fixed size a network is built for, per axis, or one number for all axes
    @torch.nn.GELU                      an object of an installed package
    @my_package.Stem(width=8)           what it returns when it is called with plain values
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunet_ext.errors import UserError, reason_of

KNOWN = ("channels", "classes", "axes", "grid", "edge")


def locate(path: str) -> Any:
    """The object at a dotted path, such as `monai.networks.nets.SegResNet`.

    Raises:
        UserError: there is none, or its module cannot be imported.
    """
    parts = path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{path!r} is no dotted path; expected one such as monai.networks.nets.SegResNet")
    found, taken = _import_longest(parts)
    for part in parts[taken:]:
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 3)
            there = f"; it has {', '.join(near)}" if near else ""
            raise UserError(f"{path} does not exist: {found.__name__} has no {part}{there}; mend the path")
        found = getattr(found, part)
    return found


def _import_longest(parts: list[str]) -> tuple[Any, int]:
    """The module that the longest beginning of a path names, and of how many parts it is."""
    for taken in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:taken])
        try:
            return importlib.import_module(name), taken
        except ModuleNotFoundError as error:
            # Another module that is missing is the fault of the one just imported.
            if not error.name or not f"{name}.".startswith(f"{error.name}."):
                raise UserError(f"{'.'.join(parts)} cannot be imported ({reason_of(error)}); install it") from None
        except Exception as error:  # somebody else's code
            raise UserError(f"{'.'.join(parts)} cannot be imported ({reason_of(error)}); mend {name}") from None
    raise UserError(
        f"{'.'.join(parts)} cannot be imported (there is no {parts[0]}); install its package where nnU-Net runs, or "
        "put its folder into PYTHONPATH"
    )


def is_network_class(found: Any) -> bool:
    """Whether an object is a class of networks."""
    return isinstance(found, type) and issubclass(found, nn.Module)


def resolve(value: Any, known: Mapping[str, Any]) -> Any:
    """The value a constructor takes for one that plans hold.

    Args:
        value: JSON; texts that begin with @ are looked up, in lists and objects too.
        known: what @channels, @classes and so on stand for here.

    Raises:
        UserError: nothing of that name.
    """
    if isinstance(value, list):
        return [resolve(inner, known) for inner in value]
    if isinstance(value, dict):
        return {key: resolve(inner, known) for key, inner in value.items()}
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    name = value[1:]
    if name in KNOWN:
        if known.get(name) is None:
            raise UserError(f"{value} has no value here")
        return known[name]
    path, call = _parse(value)
    found = locate(path)
    if call is None:
        return found
    try:
        return found(**call)
    except Exception as error:  # somebody else's code
        raise UserError(f"{value} fails ({reason_of(error)[:300]})") from None


def calls_something(value: Any) -> bool:
    """Whether `resolve` would call what is named, or take something else than a class of layers or networks."""
    if isinstance(value, (list, tuple)):
        return any(map(calls_something, value))
    if isinstance(value, Mapping):
        return any(map(calls_something, value.values()))
    if not isinstance(value, str) or not value.startswith("@") or value[1:] in KNOWN:
        return False
    path, call = _parse(value)
    return call is not None or not is_network_class(locate(path))


def _parse(value: str) -> tuple[str, dict[str, Any] | None]:
    """The path in @path or @path(name=value, …), and the values."""
    try:
        node = ast.parse(value[1:].strip(), mode="eval").body
        if isinstance(node, ast.Call) and not node.args:
            return ast.unparse(node.func), {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
        if isinstance(node, ast.Attribute):
            return ast.unparse(node), None
    except (SyntaxError, ValueError):
        pass
    raise UserError(
        f"{value!r} is not understood; expected {', '.join('@' + name for name in KNOWN)}, @package.name or "
        "@package.name(argument=value)"
    )
