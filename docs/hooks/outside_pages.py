"""Files outside docs/ that pages link to become part of the site (a hook of MkDocs).

The README is its first page; CONTRIBUTING, SECURITY and CHANGELOG are pages; results of benchmarks and sources are
files. All keep the links that work in a checkout; they are turned here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
# [text](target), <img src="target">; not https:, not #heading
LINK = re.compile(r"""(\]\(|\b(?:src|srcset|href)=")([^)\s"#:]+)""")


def on_files(files, config):
    from mkdocs.structure.files import File

    wanted = {path: site_uri(path) for path in PAGES}
    for page in (*PAGES, *(Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path)):
        wanted |= {target: site_uri(target) for target in targets(page) if DOCS not in target.parents}
    for path, uri in wanted.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    path = page.file.abs_src_path
    if path is None:
        return markdown
    here = posixpath.dirname(page.file.src_uri) or "."

    def turned(link: re.Match[str]) -> str:
        target = (Path(path).parent / link[2]).resolve()
        return link[1] + (posixpath.relpath(site_uri(target), here) if is_ours(target) else link[2])

    return LINK.sub(turned, markdown)


def targets(page: Path) -> Iterator[Path]:
    """Files of this repository that a page links to."""
    for link in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / link[2]).resolve()
        if is_ours(target):
            yield target


def is_ours(path: Path) -> bool:
    return path.is_file() and ROOT in path.parents


def site_uri(path: Path) -> str:
    """Where a file of the repository lies on the site: docs/ is its root, and so is the repository's."""
    if path == ROOT / "README.md":
        return "index.md"
    return path.relative_to(DOCS if DOCS in path.parents else ROOT).as_posix()
