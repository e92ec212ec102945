"""The page of the command line, made from the parsers at every build of the site (a hook of MkDocs).

It walks argparse's underscored attributes, which have been the same for as long as argparse is there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from nnunet_ext.cli.main import COMMANDS, load

PAGE = "commands.md"
WIDTH = 100
INTRODUCTION = """# Commands

Made from the commands' own parsers: `nnunet_ext COMMAND --help` says the same. nnU-Net's commands stay as they are.

"""


def on_files(files, config):
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """The whole page as Markdown, a section for each command and each of its sub-commands."""
    table = ["| command | |", "|---|---|"]
    table += [f"| [`nnunet_ext {name}`](#nnunet_ext-{name}) | {escaped(text)} |" for name, text in COMMANDS.items()]
    sections = [section for name in COMMANDS for section in sections_of(load(name)[1], level=2)]
    return INTRODUCTION + "\n".join(table) + "\n\n" + "\n".join(sections)


def sections_of(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=WIDTH)
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    lines = [f"{'#' * level} {parser.prog}", "", *description(parser.description or ""), ""]
    lines += ["```text", parser.format_usage().strip(), "```", ""]
    for group in parser._action_groups:
        shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a not in nested]
        shown = [action for action in shown if not isinstance(action, argparse._HelpAction)]
        if shown:
            lines += [f"| {group.title} | |", "|---|---|", *(row(parser, action) for action in shown), ""]
    yield "\n".join(lines)
    for action in nested:
        for sub in action.choices.values():
            # argparse puts the parent's required options before the name; the parent's own section shows them.
            sub.prog = f"{parser.prog} {sub.prog.split()[-1]}"
            yield from sections_of(sub, level + 1)


def row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    if action.option_strings:
        default = formatter._get_default_metavar_for_optional(action)
        value = "" if action.nargs == 0 else " " + formatter._format_args(action, default)
        names = ", ".join(f"`{option}{value}`" for option in action.option_strings)
    else:
        names = f"`{formatter._format_args(action, formatter._get_default_metavar_for_positional(action))}`"
    return f"| {names.replace('|', chr(92) + '|')} | {escaped(formatter._expand_help(action) if action.help else '')} |"


def description(docstring: str) -> Iterator[str]:
    """A command's docstring as Markdown: paragraphs as they are, examples and lists of commands as code."""
    for block in re.split(r"\n\s*\n", docstring.strip()):
        lines = block.splitlines()
        code = [line for line in lines if line.startswith("  ")]
        text = [line for line in lines if not line.startswith("  ")]
        if code and len(text) < 2 and (not text or lines[0] == text[0]):
            yield from (*(escaped(line) for line in text), "", "```text", *(line[2:] for line in code), "```", "")
        elif code:
            yield from ("```text", *lines, "```", "")
        else:
            yield from (escaped(" ".join(lines)), "")


def escaped(text: str) -> str:
    """Plain text for Markdown; the names of pages become links, options and other code are set as such."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*_{}\[\]<>|#$])", r"\\\1", text)
    text = re.sub(r"(?<![\w-])(--?[a-z][\w\\-]*)", lambda option: f"`{option[0].replace(chr(92), '')}`", text)
    return re.sub(r"docs/([a-z\d\\_]+)\.md", lambda p: f"[{p[1]}]({p[1].replace(chr(92), '')}.md)", text)
