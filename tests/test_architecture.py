"""The house: packages import downwards only, in the order docs/architecture.md states, and files in no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nnunet_ext

ROOT = Path(nnunet_ext.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
MODULES = {".".join(("nnunet_ext", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def imported(path: Path) -> Iterator[str]:
    """Every name a file imports, inside functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


EDGES = {
    module: {found for name in imported(path) if (found := module_of(name)) not in (None, "nnunet_ext", module)}
    for module, path in MODULES.items()
}


def room(module: str) -> str:
    return module.split(".")[1]


def stated_order() -> list[str]:
    """The words between backquotes of the page's one line that begins with `Order:`, from the ground up."""
    (line,) = re.findall(r"^Order: (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return re.findall(r"`(\w+)`", line)


def test_the_page_names_every_room_once():
    rooms = {room(module) for module in MODULES if module != "nnunet_ext"}
    order = stated_order()
    assert len(order) == len(set(order)) and set(order) == rooms


def test_no_room_imports_one_above_it():
    floor = {name: number for number, name in enumerate(stated_order())}
    upwards = [
        f"{module} imports {target}"
        for module, targets in EDGES.items()
        for target in sorted(targets)
        if module != "nnunet_ext" and floor[room(target)] > floor[room(module)]
    ]
    assert not upwards


def test_no_file_imports_in_a_circle():
    finished: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in finished:
            for target in sorted(EDGES[module]):
                visit(target, [*way, module])
            finished.add(module)

    for module in MODULES:
        visit(module, [])
    assert len(EDGES) > 150 and sum(map(len, EDGES.values())) > 400, "the graph was not read"


def test_the_engine_knows_no_model():
    models = {path.name for path in (ROOT / "architectures").iterdir() if path.is_dir()} - {"__pycache__"}
    of_models = [
        (module, target)
        for module in MODULES
        if module.startswith("nnunet_ext.inference")
        for target in EDGES[module]
        if len(target.split(".")) > 2 and target.split(".")[2] in models
    ]
    assert len(models) >= 5 and not of_models


def test_rows_import_nothing_heavy():
    """nnU-Net's worker processes read them."""
    for module in MODULES:
        if module.startswith("nnunet_ext.models"):
            names = {name.split(".")[0] for name in imported(MODULES[module])}
            heavy = names - {"__future__", "collections", "dataclasses", "functools", "importlib", "nnunet_ext", "sys",
                             "typing"}  # fmt: skip
            assert not heavy and all(target.startswith("nnunet_ext.models") for target in EDGES[module])
