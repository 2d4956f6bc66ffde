# SPDX-License-Identifier: Apache-2.0
"""The fenced blocks of the project's documents, and the commands that stand in their sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>.*)$")
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A piece of code in a document.

    Args:
        document: path below the project's folder.
        line: of the document, the first one of the text.
        language: what the fence says, empty where it says nothing.
        text: without the fences, each line with its end.
    """

    document: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, as ``README.md:29``."""
        return f"{self.document}:{self.line}"


def documents() -> list[str]:
    """List the documents whose commands have to work, by their paths below the project's folder."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found += [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("bundles/*/docs/README.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks_in(document: str, text: str) -> list[Block]:
    """Find the fenced blocks of a text.

    Args:
        document: its path, for the blocks.
        text: Markdown.

    Raises:
        ValueError: when the last block is not closed, or one stands in a quotation.
    """
    blocks: list[Block] = []
    opened: tuple[int, re.Match[str]] | None = None
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if re.match(r"\s*>\s*(`{3,}|~{3,})", line):
            raise ValueError(f"{document}:{number}: expected blocks outside of quotations, where they are not found")
        fence = FENCE.match(line.rstrip("\n"))
        if opened is None:
            opened = (number, fence) if fence else None
        elif fence and fence["fence"].startswith(opened[1]["fence"]) and not fence["language"].strip():
            start, first = opened
            content = [each.removeprefix(first["indent"]) for each in lines[start : number - 1]]
            blocks.append(Block(document, start + 1, first["language"].strip(), "".join(content)))
            opened = None
    if opened is not None:
        raise ValueError(f"{document}:{opened[0]}: expected the end of the block, found the end of the text")
    return blocks


def blocks_of(document: str) -> list[Block]:
    """Read the fenced blocks of a document of the project."""
    return blocks_in(document, (ROOT / document).read_text(encoding="utf-8"))


def spans_of(document: str) -> Iterator[Block]:
    """Go through the code within the sentences of a document: each is a block of one line without a language."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    for block in blocks_of(document):
        length = block.text.count("\n")
        lines[block.line - 2 : block.line + length] = [""] * (length + 2)
    for number, line in enumerate(lines, 1):
        yield from (Block(document, number, "", text) for text in SPAN.findall(line))
