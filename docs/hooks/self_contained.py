"""The built site is whole: it fetches nothing of others, and every link and anchor leads somewhere (a hook of MkDocs).

MkDocs itself checks the links it knows; those of the theme, of API pages and in HTML are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"""<(\w+)\b([^>]*?)\s(?:href|src|srcset)=["']?([^"'\s>]+)""")
ID = re.compile(r"""\s(?:id|name)=["']?([^"'\s>]+)""")


def on_post_build(config):
    from mkdocs.exceptions import PluginError

    if found := list(problems(Path(config.site_dir))):
        raise PluginError("\n".join(["the site is not whole:", *found]))


def problems(site: Path) -> Iterator[str]:
    """One line for each foreign resource and each link that leads nowhere; links to other sites are left alone."""
    ids = cache(anchors)  # for this build only; `mkdocs serve` builds again
    for page in sorted(site.rglob("*.html")):
        for tag, before, link in LINK.findall(page.read_text(encoding="utf-8")):
            name = page.relative_to(site).as_posix()
            if re.match(r"(https?:)?//", link):
                if tag != "a" and 'rel="canonical"' not in before:  # the page's own address
                    yield f"{name}: <{tag}> fetches {link}"
            elif not re.match(r"(data|mailto|javascript):", link):
                target, _, anchor = link.partition("#")
                path = unquote(target.partition("?")[0])
                # Only a server shows the page for what is not found, wherever that is: its links begin at the top.
                start = site if path.startswith("/") else page.parent
                there = (start / path.lstrip("/")).resolve() if path else page
                if not there.is_file():
                    yield f"{name}: {link} is not there"
                elif anchor and there.suffix == ".html" and unquote(anchor) not in ids(there):
                    yield f"{name}: {link}: no such heading"


def anchors(page: Path) -> frozenset[str]:
    return frozenset(ID.findall(page.read_text(encoding="utf-8")))
