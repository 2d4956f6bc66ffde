# SPDX-License-Identifier: Apache-2.0
"""Links between the documents lead to files and headings that are there; the site does not have README and cards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from document_blocks import ROOT, documents

FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(<?(?!\w+:)([^)\s>]+)>?\)")


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub and MyST make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        found.add(next(name for name in (slug, *(f"{slug}-{number}" for number in range(1, 99))) if name not in found))
    return found


@pytest.mark.parametrize("name", [*documents(), "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    document = ROOT / name
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        file, _, anchor = link.partition("#")
        target = (document.parent / file) if file else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_anchors_are_those_of_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three!\n\n```\n# not a heading\n```\n## [A](b.md) & c\n## A\n## A\n")
    assert anchors(page) == {"one-two-three", "a--c", "a", "a-1"}
