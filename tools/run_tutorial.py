# SPDX-License-Identifier: Apache-2.0
"""Runs the tutorial notebook at the sizes that it states, and keeps its outputs in the file.

Readers on GitHub and of the site see these outputs. A digest of the code goes with them, by which
``tests/docs/test_tutorial.py`` finds outputs of other code.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

TUTORIAL = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"

PARAMETERS = "parameters"
"""Tag of the cell that states the sizes, as papermill has it."""


def code_digest(notebook: NotebookNode) -> str:
    """Give the SHA-256 of a notebook's code, without outputs and texts.

    Args:
        notebook: executed or not.

    Returns:
        Hexadecimal digits.
    """
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def with_parameters(notebook: NotebookNode, parameters: Mapping[str, Any]) -> NotebookNode:
    """Set other sizes in a copy of a notebook.

    Args:
        notebook: with one cell that is tagged :data:`PARAMETERS`.
        parameters: values by name, appended to that cell.

    Returns:
        The copy.

    Raises:
        ValueError: when there is not one such cell, or it does not state one of the names.
    """
    changed = copy.deepcopy(notebook)
    cells = [cell for cell in changed.cells if PARAMETERS in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"expected one cell with the tag {PARAMETERS!r}, found {len(cells)}")
    assigned = [node for node in ast.walk(ast.parse(cells[0].source)) if isinstance(node, ast.Assign)]
    stated = {target.id for node in assigned for target in node.targets if isinstance(target, ast.Name)}
    if unknown := sorted(set(parameters) - stated):
        raise ValueError(f"expected parameters among {', '.join(sorted(stated))}, found {', '.join(unknown)}")
    cells[0].source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    return changed


def execute(notebook: NotebookNode, folder: Path, work: Path) -> NotebookNode:
    """Run all cells in a new kernel of this Python.

    Args:
        notebook: it gets the outputs.
        folder: where its relative paths start.
        work: where the tutorial writes; it stays.

    Returns:
        The notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails, with the cell and its traceback.
    """
    with tempfile.TemporaryDirectory() as private:
        # sockets of this user's alone, where TCP would be open to all on the machine
        sockets = Config(KernelManager={"transport": "ipc", "ip": str(Path(private) / "kernel")})
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
            coalesce_streams=True,
            config=sockets,
        )
        # none of the user's own settings of IPython, and no advice to install widgets and codecs
        quiet = "ignore:IProgress not found,ignore:NvImgCodecPydicomReader"
        own = {"IPYTHONDIR": private, "PYTHONWARNINGS": quiet}
        client.execute(env={**os.environ, **own, "MONAI_DATA_DIRECTORY": str(work)})
    return notebook


def without_own_paths(notebook: NotebookNode) -> NotebookNode:
    """Take the line of ``print_config`` that tells where MONAI lies on this machine out of the outputs."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = re.sub(r"^MONAI __file__: .*\n", "", output.text, flags=re.MULTILINE)
    return notebook


def main() -> int:
    """Run the command line.

    Returns:
        0.

    Raises:
        FileExistsError: when the folder to work in is there already.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(tempfile.gettempdir()) / "genesis_tutorial"
    parser.add_argument("--work", type=Path, default=default, help="new folder for data, weights and pictures")
    work = parser.parse_args().work
    work.mkdir(parents=True)
    notebook = without_own_paths(execute(nbformat.read(TUTORIAL, as_version=4), TUTORIAL.parent, work))
    notebook.metadata["executed"] = {"code_sha256": code_digest(notebook)}
    nbformat.write(notebook, TUTORIAL)
    print(f"written: {TUTORIAL}, from {work}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
