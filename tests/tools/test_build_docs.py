# SPDX-License-Identifier: Apache-2.0
"""The site's links lead to its pages, and it builds without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script(ROOT / "tools" / "build_docs.py")


@pytest.fixture
def repository(tmp_path) -> Path:
    for name in ("docs/a.md", "docs/deep/b.md", "bundles/x/docs/README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# Text\n")
    (tmp_path / "docs" / "picture.png").write_bytes(b"png")
    (tmp_path / "docs" / "conf.py").write_text("")
    (tmp_path / "docs" / "_static").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "t.py").write_text("pass\n")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("docs/a.md", "[card](../bundles/x/docs/README.md#weights)", "[card](bundles/x.md#weights)"),
        ("docs/deep/b.md", "see [a](../a.md), [b](b.md)", "see [a](../a.md), [b](../deep/b.md)"),
        ("bundles/x/docs/README.md", "[a](../../../docs/a.md#one)", "[a](../a.md#one)"),
        ("bundles/x/docs/README.md", "![p](../../../docs/picture.png)", "![p](../picture.png)"),
        ("docs/a.md", "[tool](../tools/t.py)", "[tool](files/tools/t.py)"),
        ("docs/a.md", "[tools](../tools)", "tools (`tools/`)"),
        ("docs/a.md", "[x](https://a.b/c.md) [y](#here)", "[x](https://a.b/c.md) [y](#here)"),
        ("docs/a.md", "```python\nf[0](missing)\n```\n[a](a.md)", "```python\nf[0](missing)\n```\n[a](a.md)"),
    ],
)
def test_links_lead_to_pages_or_to_copies(tool, repository, tmp_path_factory, source, text, expected):
    copied = []

    def copy(path: str) -> str:
        copied.append(path)
        return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"

    pages = tool.site_pages(repository)
    assert tool.with_site_links(text, source, pages, repository, copy) == expected
    assert all((repository / path).is_file() for path in copied)


def test_links_of_a_notebook_are_turned_in_its_texts_alone(tool, repository):
    text, code = "[card](../bundles/x/docs/README.md) [tool](../tools/t.py)", "print('[a](a.md)')"
    notebook = new_notebook(
        cells=[new_markdown_cell(text), new_code_cell(code, outputs=[new_output("stream", text=text)])]
    )
    nbformat.write(notebook, repository / "docs" / "n.ipynb")
    tool.write_sources(repository, repository / "site")
    cells = nbformat.read(repository / "site" / "n.ipynb", as_version=4).cells
    assert cells[0].source == "[card](bundles/x.md) [tool](files/tools/t.py)"
    assert (cells[1].source, cells[1].outputs[0].text) == (code, text)


def test_a_link_to_nothing_is_refused(tool, repository):
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md: expected a file at the link gone\.md"):
        tool.with_site_links("[x](gone.md)", "docs/a.md", tool.site_pages(repository), repository, str)


def test_the_site_builds_without_a_warning_and_lists_all_public_names(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tools" / "build_docs.py"), "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for package in ("transforms", "networks", "datasets", "training", "transfer"):
        page = (tmp_path / "html" / "reference" / f"{package}.html").read_text(encoding="utf-8")
        described = set(re.findall(rf'id="models_genesis\.{package}\.(\w+)"', page))
        module = importlib.import_module(f"models_genesis.{package}")
        expected = {name for name in module.__all__ if callable(getattr(module, name))}  # constants have no docstring
        assert len(expected) > 5 and expected <= described, sorted(expected - described)
    for card in ROOT.glob("bundles/*/docs/README.md"):
        assert (tmp_path / "html" / "bundles" / f"{card.parents[1].name}.html").is_file()
    tutorial = (tmp_path / "html" / "tutorial.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<img [^>]*src="_images/[0-9a-f]{64}\.png"', tutorial)) >= 5  # the outputs in the file
