"""What the documents name is there: files, modules, links between pages, environment variables."""

from __future__ import annotations

import ast
import pkgutil
import re
from pathlib import Path

import pytest

import nnunet_ext
from nnunet_ext.environment import VARIABLES

ROOT = Path(__file__).parent.parent
PACKAGE = Path(nnunet_ext.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
VARIABLE = r"NNUNET_EXT_[A-Z_]*[A-Z]"
# Files that nobody keeps here: what a command on the page makes.
MADE = {"nnunet_ext.sif"}
# Where a path in backquotes may begin: at the repository's root, or, for short, in the package.
STARTS = [ROOT, PACKAGE]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def paths_in(text: str) -> set[str]:
    """Paths of this repository: all that begin with nnunet_ext/, and those in backquotes that begin in a folder of it.

    Of a path with a placeholder, such as trainers/NAME.py, only the folder.
    """
    folders = {path.name for start in STARTS for path in start.iterdir() if path.is_dir()}
    found = re.findall(r"(?<![\w/.-])nnunet_ext/[\w./-]*\w/?", text)
    found += [path for path in re.findall(r"`(\w[\w./-]*/[\w./-]*)`", text) if path.split("/")[0] in folders]
    return {path.partition("NAME")[0] for path in found}


def names_in(text: str) -> set[str]:
    """Dotted names of modules, classes and functions of the package."""
    return set(re.findall(r"(?<![\w/.-])nnunet_ext(?:\.\w+)+", text))


def is_there(name: str) -> bool:
    if (
        name in MADE or any(ROOT.glob(f"*/{name}")) or any((ROOT / "nnunet_ext").rglob(name))
    ):  # a file, such as nnunet_ext.pth
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EACH_PAGE
def test_paths_exist(page):
    assert [path for path in sorted(paths_in(text_of(page))) if not any((s / path).exists() for s in STARTS)] == []


@EACH_PAGE
def test_dotted_names_can_be_imported(page):
    assert [name for name in sorted(names_in(text_of(page))) if not is_there(name)] == []


@EACH_PAGE
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text_of(page))
    broken = []
    for link in filter(None, (inline or attribute for inline, attribute in links)):
        target, _, anchor = link.partition("#")
        there = page.parent / target if target else page
        if re.match(r"\w+:", link):
            continue
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in headings(there)):
            broken.append(link)
    assert broken == []


def test_docstrings_and_comments_name_files_that_exist():
    stale = {
        f"{path.relative_to(ROOT)}: {named}"
        for path in PACKAGE.rglob("*.py")
        for named in paths_in(text_of(path))
        if not any((start / named).exists() for start in STARTS)
    }
    assert stale == set()


def test_package_docstrings_name_files_that_exist():
    stale = {
        f"{path.parent.name}: {named}"
        for path in PACKAGE.rglob("__init__.py")
        for named in re.findall(r"(?<![\w/*])\w+\.py\b", ast.get_docstring(ast.parse(text_of(path))) or "")
        if not (path.parent / named).is_file() and not any(path.parent.glob(f"*/{named}"))
    }
    assert stale == set()


def test_something_is_found():
    pages = "".join(map(text_of, PAGES))
    assert len(paths_in(pages)) > 40 and len(names_in(pages)) > 5
    assert paths_in("`trainers/gone.py` and nnunet_ext/gone/NAME.py") == {"trainers/gone.py", "nnunet_ext/gone/"}
    assert not is_there("nnunet_ext.plans.gone") and not is_there("nnunet_ext.plans.memory.gone")


def strings_in(path: Path) -> set[str]:
    return {node.value for node in ast.walk(ast.parse(text_of(path))) if isinstance(node, ast.Constant)
            and isinstance(node.value, str)}  # fmt: skip


def test_every_variable_is_read_listed_and_documented():
    sources = set(PACKAGE.rglob("*.py")) - {PACKAGE / "environment.py"}
    tests = set((ROOT / "tests").rglob("*.py"))
    read = {text for path in sources for text in strings_in(path) if re.fullmatch(VARIABLE, text)}
    read |= {text for path in tests for text in strings_in(path) if re.fullmatch(r"NNUNET_EXT_TEST_\w+", text)}
    assert set(VARIABLES) == read
    rows = re.findall(rf"^\| `({VARIABLE})` \|", text_of(ROOT / "docs" / "environment.md"), re.MULTILINE)
    assert sorted(rows) == sorted(VARIABLES)
    texts = [text_of(path) for path in {*sources, *PAGES, *(ROOT / "benchmarks").glob("*.py")}]
    mentioned = {name for text in texts for name in re.findall(rf"\b{VARIABLE}\b", text)}
    assert mentioned <= set(VARIABLES)
