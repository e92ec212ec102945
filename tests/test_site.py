"""What makes the site beside its pages: the hooks in docs/hooks. `.ci/run` builds the site itself, strictly."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunet_ext.cli.main import COMMANDS, load

ROOT = Path(__file__).parent.parent


def hook(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options_of(parser: argparse.ArgumentParser) -> dict[str, set[str]]:
    """Name of each command below and including this one -> what its help lists."""
    found = {parser.prog: set()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found |= {f"{parser.prog} {name}": options_of(sub)[sub.prog]}
        elif action.help != argparse.SUPPRESS:
            found[parser.prog] |= set(action.option_strings) - {"-h", "--help"}
    return found


def test_the_page_of_commands_has_every_command_and_option():
    expected = {}
    for name in COMMANDS:
        expected |= options_of(load(name)[1])
    sections = {}
    for section in ("\n" + hook("command_page").page()).split("\n## nnunet_ext ")[1:]:
        for part in ("nnunet_ext " + section).split("\n### "):
            title, _, text = part.partition("\n")
            sections[title] = {cell.split("`")[0].split()[0] for cell in text.split("`") if cell.startswith("-")}
    assert sections.keys() == expected.keys() and len(sections) > 20
    assert {name: options - sections[name] for name, options in expected.items() if options - sections[name]} == {}


def test_prose_of_a_docstring_is_no_markup():
    command_page = hook("command_page")
    assert command_page.escaped("<case>.json in $nnUNet_raw, a|b") == r"\<case\>.json in \$nnUNet\_raw, a\|b"
    assert command_page.escaped("see docs/sam_med3d.md, or --save_all") == (
        r"see [sam\_med3d](sam_med3d.md), or `--save_all`"
    )
    assert list(command_page.description("One\nline.\n\nexample:\n  a_b *")) == [
        "One line.", "", "example:", "", "```text", "a_b *", "```", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "uri", "link", "turned"),
    [
        ("README.md", "index.md", "[m](docs/metrics.md#files)", "[m](metrics.md#files)"),
        ("README.md", "index.md", '<img src="docs/fewshot_curve.png">', '<img src="fewshot_curve.png">'),
        ("docs/discovery.md", "discovery.md", "[c](../CONTRIBUTING.md)", "[c](CONTRIBUTING.md)"),
        ("docs/python/models.md", "python/models.md", "[c](../../CONTRIBUTING.md#a)", "[c](../CONTRIBUTING.md#a)"),
        ("docs/python/models.md", "python/models.md", "[p](../plans.md)", "[p](../plans.md)"),
        ("CONTRIBUTING.md", "CONTRIBUTING.md", "[r](README.md)", "[r](index.md)"),
        ("README.md", "index.md", "[n](https://a.org/b) [here](#a)", "[n](https://a.org/b) [here](#a)"),
    ],
)
def test_links_of_the_checkout_are_turned(path, uri, link, turned):
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / path), src_uri=uri))
    assert hook("outside_pages").on_page_markdown(link, page, None, None) == turned


def test_a_site_that_is_not_whole(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://fonts.example/x.css"><script src=//cdn.example/y.js></script>'
        '<link rel="canonical" href="https://here.example/a.html"><a href="https://other.example/">x</a>'
        '<a href="b/c.html#here">x</a><a href="b/c.html#gone">x</a>'
        '<a href="gone.html">x</a><a href="#top">x</a><h1 id="top"></h1><img src="data:image/png;base64,AA">'
    )
    (tmp_path / "b" / "c.html").write_text('<h2 class="x" id="here"></h2><a href="../a.html">x</a>')
    assert list(hook("self_contained").problems(tmp_path)) == [
        "a.html: <link> fetches https://fonts.example/x.css",
        "a.html: <script> fetches //cdn.example/y.js",
        "a.html: b/c.html#gone: no such heading",
        "a.html: gone.html is not there",
    ]
