# SPDX-License-Identifier: Apache-2.0
"""The tutorial runs from its first cell to its last at a very small size, and its stored outputs belong to its code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import nbformat
import nibabel as nib
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from models_genesis.networks import GenesisUNet, load_pretrained

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "num_patients": 4,
    "spacing": (8.0, 8.0, 8.0),
    "features": [4, 8],
    "pretraining_cube": [16, 16, 16],
    "pretraining_epochs": 1,
    "cubes_per_scan": 4,
    "liver_cube": [32, 32, 32],
    "liver_epochs": 2,
    "cubes_per_case": 4,
}


@dataclass(frozen=True)
class Run:
    """An executed notebook, and the folder that it has written to."""

    notebook: NotebookNode
    work: Path


@pytest.fixture(scope="session")
def tool(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(ROOT / "tools" / "run_tutorial.py")


@pytest.fixture(scope="module")
def stored(tool) -> NotebookNode:
    return nbformat.read(tool.TUTORIAL, as_version=4)


@pytest.fixture(scope="module")
def run(tool, stored, tmp_path_factory) -> Run:
    work = tmp_path_factory.mktemp("tutorial")
    return Run(tool.execute(tool.with_parameters(stored, SMALL), tool.TUTORIAL.parent, work), work / "genesis_tutorial")


def printed(notebook: NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def cells_that_draw(notebook: NotebookNode) -> list[NotebookNode]:
    return [
        cell for cell in notebook.cells if cell.cell_type == "code" and re.search(r"display\(|subplots\(", cell.source)
    ]


def pictures(cell: NotebookNode) -> list[str]:
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


def splits(path: Path) -> dict[str, str]:
    content = json.loads(path.read_text())
    return {entry["patient"]: split for split in ("training", "validation", "testing") for entry in content[split]}


def test_stored_outputs_are_those_of_the_stored_code(tool, stored):
    nbformat.validate(stored)
    again = "the code differs from what the outputs were made with: python tools/run_tutorial.py"
    assert stored.metadata.executed.code_sha256 == tool.code_digest(stored), again
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert tool.TUTORIAL.stat().st_size < 1_000_000


def test_each_cell_that_draws_has_a_picture(stored, run):
    for notebook in (stored, run.notebook):
        drawing = cells_that_draw(notebook)
        assert len(drawing) == 5
        assert all(pictures(cell) for cell in drawing), [cell.source for cell in drawing if not pictures(cell)]


def test_the_pretrained_weights_fit_the_network_whole(run):
    report = load_pretrained(GenesisUNet(features=SMALL["features"]), run.work / "models" / "model.pt")
    assert report.matched and (report.adapted, report.skipped, report.missing) == ((), (), ())


def test_only_the_head_is_new_for_the_liver(run):
    (matched,) = re.findall(r"(\d+) matched", printed(run.notebook))
    tensors = GenesisUNet(features=SMALL["features"]).state_dict()
    assert int(matched) == len([name for name in tensors if not name.startswith("head")])


def test_dice_as_printed_is_that_of_the_files(run):
    found = dict(re.findall(r"^(phantom_\d+): Dice (\S+)$", printed(run.notebook), re.MULTILINE))
    assert sorted(found) == sorted(
        name for name, split in splits(run.work / "cases.json").items() if split == "testing"
    )
    for name, text in found.items():
        (file,) = (run.work / "predicted").rglob(f"{name}_seg.nii.gz")
        predicted, truth = (
            np.asarray(nib.load(path).dataobj) > 0
            for path in (file, run.work / "phantom" / "labelsTr" / f"{name}.nii.gz")
        )
        assert 0 <= float(text) <= 1
        assert float(text) == pytest.approx(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()), abs=6e-4)


def test_test_patients_are_new_to_both_trainings_and_the_broken_scan_is_named(run):
    pretraining, fine_tuning = splits(run.work / "scans.json"), splits(run.work / "cases.json")
    assert pretraining == fine_tuning and set(pretraining.values()) == {"training", "validation", "testing"}
    assert re.search(r"unreadable +1\n +download/interrupted\.nii\.gz: expected", printed(run.notebook))


def test_own_scans_are_named_in_one_cell(stored):
    """What comes after that cell takes scans and labels by its names, never the phantom's own."""
    (place,) = [n for n, cell in enumerate(stored.cells) if "own-scans" in cell.metadata.get("tags", [])]
    names = re.findall(r"^(\w+) = phantom_folder", stored.cells[place].source, re.MULTILINE)
    after = "\n".join(cell.source for cell in stored.cells[place + 1 :] if cell.cell_type == "code")
    assert names == ["scan_folder", "image_folder", "label_folder"] and all(name in after for name in names)
    assert "phantom" not in after


def test_a_cell_that_fails_is_shown_with_its_traceback(tool, tmp_path):
    notebook = new_notebook(cells=[new_code_cell("sides = 0"), new_code_cell("1 / sides"), new_code_cell("after = 1")])
    with pytest.raises(CellExecutionError, match=r"(?s)1 / sides.*ZeroDivisionError.*division by zero"):
        tool.execute(notebook, tmp_path, tmp_path)
    assert notebook.cells[2].execution_count is None


def test_parameters_that_the_notebook_does_not_state_are_refused(tool, stored):
    with pytest.raises(ValueError, match=r"num_patients.*found num_patient$"):
        tool.with_parameters(stored, {"num_patient": 3})
    changed = tool.with_parameters(stored, {"num_patients": 3})
    assert tool.code_digest(changed) != tool.code_digest(stored) != ""
    with pytest.raises(ValueError, match="one cell with the tag 'parameters', found 0"):
        tool.with_parameters(new_notebook(), {})
