# SPDX-License-Identifier: Apache-2.0
"""What MkDocs needs to show pages whose links also work in the repository.

The README is the first page. Pages link to files outside docs/ by ``../``; those files, and what
they link to in turn, become part of the site below ``repository/``.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def source(uri: str) -> str:
    """The path in the repository of a file of the site."""
    if uri == "index.md":
        return "README.md"
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"


def uri_of(path: str) -> str:
    """The file of the site that a path in the repository becomes."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def targets(path: str) -> list[str]:
    """The files of the repository that a Markdown file links to; links to nowhere are left out."""
    links = LINK.findall((ROOT / path).read_text(encoding="utf-8"))
    paths = [posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link in links]
    return [item for item in paths if (ROOT / item).is_file()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and every file outside docs/ that a page needs."""
    waiting = ["README.md", *(source(file.src_uri) for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            uri = uri_of(path)
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            new = set(targets(path)) - seen
            seen |= new
            waiting += new
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the files of the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(source(uri))

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if not (ROOT / path).is_file():
            return link[1]  # MkDocs reports it
        return posixpath.relpath(uri_of(path), posixpath.dirname(uri) or ".")

    return LINK.sub(moved, markdown)
