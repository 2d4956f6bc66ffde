# SPDX-License-Identifier: Apache-2.0
"""Builds the site: ``docs/`` with the bundles' cards, CONTRIBUTING and CHANGELOG as pages, warnings as errors.

The texts stay where readers of the repository look for them. Here they are copied, and their links lead to the site's
pages, or to a copy of the file where it is not a page.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from posixpath import normpath

import nbformat
from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).resolve().parents[1]

LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")

FENCE = re.compile(r"(^ *```.*?^ *```[^\S\n]*$)", re.MULTILINE | re.DOTALL)


def site_pages(root: Path) -> dict[str, str]:
    """List the texts that are pages of the site.

    Args:
        root: folder of the repository.

    Returns:
        Path in the site by path in the repository.
    """
    cards = {
        str(card.relative_to(root)): f"bundles/{card.parents[1].name}.md" for card in root.glob("bundles/*/docs/*.md")
    }
    texts = [*root.glob("docs/**/*.md"), *root.glob("docs/**/*.ipynb")]
    docs = {str(text.relative_to(root)): str(text.relative_to(root / "docs")) for text in texts}
    named = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    return dict(sorted({**cards, **docs, **named}.items()))


def with_site_links(text: str, source: str, pages: Mapping[str, str], root: Path, copy: Callable[[str], str]) -> str:
    """Let the relative links of a text lead to the site's pages and files.

    Args:
        text: Markdown.
        source: its path in the repository.
        pages: see :func:`site_pages`.
        root: folder of the repository.
        copy: takes a file's path in the repository, copies it into the site, and gives its path there.

    Returns:
        The text for the site; folders are named instead of linked.

    Raises:
        FileNotFoundError: when a link leads to nothing.
    """
    up = "../" * pages[source].count("/")

    def turn(match: re.Match[str]) -> str:
        image, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = normpath(f"{Path(source).parent.as_posix()}/{target}")
        if path in pages:
            return f"{image}[{words}]({up}{pages[path]}{anchor})"
        if (root / path).is_dir():
            return f"{words} (`{path}/`)"
        if not (root / path).is_file():
            raise FileNotFoundError(f"{source}: expected a file at the link {target}, found none")
        return f"{image}[{words}]({up}{copy(path)})"

    parts = FENCE.split(text)
    return "".join(part if number % 2 else LINK.sub(turn, part) for number, part in enumerate(parts))


def notebook_with_site_links(
    text: str, source: str, pages: Mapping[str, str], root: Path, copy: Callable[[str], str]
) -> str:
    """Let the links in a notebook's texts lead to the site's pages and files; code and outputs stay as they are.

    Args:
        text: the notebook, as JSON.
        source: see :func:`with_site_links`, as all others.
        pages: likewise.
        root: likewise.
        copy: likewise.

    Returns:
        The notebook for the site.
    """
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_site_links(cell.source, source, pages, root, copy)
    return str(nbformat.writes(notebook))


def write_sources(root: Path, site: Path) -> None:
    """Write the sources of the site.

    Args:
        root: folder of the repository.
        site: folder to write; what is in it is deleted.
    """
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    shutil.copy(root / "docs" / "conf.py", site)
    shutil.copytree(root / "docs" / "_static", site / "_static")
    pages = site_pages(root)

    def copy(path: str) -> str:
        # what belongs to a page keeps its place next to it, so that directives find pictures too
        inside = path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"
        (site / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, site / inside)
        return inside

    for picture in (root / "docs").glob("*.png"):
        copy(str(picture.relative_to(root)))
    for source, page in pages.items():
        text = (root / source).read_text(encoding="utf-8")
        (site / page).parent.mkdir(parents=True, exist_ok=True)
        turn = notebook_with_site_links if page.endswith(".ipynb") else with_site_links
        (site / page).write_text(turn(text, source, pages, root, copy), encoding="utf-8")


def main() -> int:
    """Run the command line.

    Returns:
        Sphinx's exit code: not 0 where there was a warning.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs", help="source/ and html/ are made in it")
    folder = parser.parse_args().out
    write_sources(ROOT, folder / "source")
    result = sphinx_build(
        ["-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees"), str(folder / "source"),
         str(folder / "html")]
    )  # fmt: skip
    print(f"written: {folder / 'html' / 'index.html'}")
    return int(result)


if __name__ == "__main__":
    sys.exit(main())
