# SPDX-License-Identifier: Apache-2.0
"""Imports point downwards only, between the packages and between the rooms of a package, and never in a circle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {
    "": (
        ("bundles", "label", "tools", "benchmarks", "transfer"),
        ("training",),
        ("datasets",),
        ("transforms", "networks"),
    ),
    "datasets": (
        ("__init__", "__main__"),
        ("overlap",),
        ("phantom", "cases", "prepare"),
        ("channels",),
        ("layouts",),
        ("candidates",),
        ("datalist", "loading"),
        ("store",),
        ("splits", "io"),
    ),
    "training": (
        ("__init__", "__main__"),
        ("handlers",),
        ("engines",),
        ("metrics",),
    ),
}
"""What may import what, by package: a folder or a module imports from those further down, and from itself."""

EXCEPTIONS = {("networks.weight_files", "datasets.io.atomic_write")}
"""Weights are written as all files are, by a module that imports nothing of ours."""


def module_of(path: Path) -> str:
    """Name a module of ours, without ``models_genesis``: ``datasets.io.scan_header``, ``datasets.__init__``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {
    module_of(path): path
    for layer in LAYERS[""]
    for package in layer
    for path in sorted((ROOT / package).rglob("*.py"))
    if not {"build", "__pycache__"} & set(path.parts)
}


def imports_of(module: str, source: str) -> Iterator[str]:
    """List what of ours a source imports, wherever in it: modules, and packages as their ``__init__``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["models_genesis", *module.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            own = name.removeprefix("models_genesis.")
            if own != name:
                holder = own.rpartition(".")[0]
                possible = [each for each in (own, f"{own}.__init__", holder, f"{holder}.__init__") if each in MODULES]
                assert possible, f"{module}: expected a module of ours, found {name}"
                yield possible[0]


def is_forbidden(importer: str, imported: str) -> bool:
    """Say whether an import goes up, or sideways, in the first of the tables that has the two apart."""
    if (importer, imported) in EXCEPTIONS:
        return False
    package, ours, theirs = "", importer.split("."), imported.split(".")
    while package in LAYERS and ours[0] == theirs[0] and len(ours) > 1:
        package, ours, theirs = ".".join(filter(None, (package, ours[0]))), ours[1:], theirs[1:]
    if package not in LAYERS or ours[0] == theirs[0]:
        return False
    height = {name: number for number, layer in enumerate(LAYERS[package]) for name in layer}
    return height[ours[0]] >= height[theirs[0]]


def forbidden_imports(module: str, source: str) -> list[str]:
    return [f"{module} -> {each}" for each in imports_of(module, source) if is_forbidden(module, each)]


def test_every_module_has_its_place_in_the_table():
    for package, layers in LAYERS.items():
        inside = {each.removeprefix(f"{package}.") for each in MODULES if not package or each.startswith(f"{package}.")}
        assert {name.split(".")[0] for name in inside} == {name for layer in layers for name in layer}


def test_imports_point_downwards():
    assert [each for module, path in MODULES.items() for each in forbidden_imports(module, path.read_text())] == []


def test_no_circles():
    graph = {module: set(imports_of(module, path.read_text())) - {module} for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of the circle


def test_what_networks_may_use_imports_nothing_of_ours():
    for _, imported in EXCEPTIONS:
        assert list(imports_of(imported, MODULES[imported].read_text())) == []


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("datasets.io.new", "from ..layouts import lits", "datasets.layouts.lits"),
        ("datasets.io.new", "from ..layouts.lits import list_lits", "datasets.layouts.lits"),
        ("datasets.io.new", "def f():\n    from .. import datalist", "datasets.datalist"),
        ("datasets.io.new", "from .. import load_datalist", "datasets.__init__"),
        ("datasets.io.new", "from ..splits import SPLITS", "datasets.splits"),
        ("datasets.loading.new", "from ..datalist import DatasetSummary", "datasets.datalist"),
        (
            "datasets.datalist",
            "def f():\n    from .layouts.image_folder import survey",
            "datasets.layouts.image_folder",
        ),
        ("datasets.io.new", "from ...training.handlers import history", "training.handlers.history"),
        ("transforms.new", "import models_genesis.networks.weights as w", "networks.weights"),
        ("training.metrics.new", "from ..engines.losses import CandidateLoss", "training.engines.losses"),
        ("training.engines.new", "def f():\n    from ..handlers import history", "training.handlers.history"),
        ("training.handlers.new", "from .. import TrainingHistory", "training.__init__"),
        ("training.handlers.new", "from models_genesis.transfer import statistics", "transfer.statistics"),
        ("transfer.new", "from tools import demo\nfrom models_genesis.tools import demo", "tools.demo"),
    ],
)
def test_a_forbidden_import_is_found(module, source, imported):
    assert forbidden_imports(module, source) == [f"{module} -> {imported}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "datasets.layouts.new",
            "from ..io import scan_header\nfrom .lits import list_lits\nfrom ..splits import RULE",
        ),
        ("datasets.phantom.new", "from ...transforms.brats_regions import BRATS_LABELS\nfrom ..layouts import brats"),
        (
            "training.handlers.new",
            "from ...datasets import CubeDataset\nfrom .history import History\nimport datasets, os.path",
        ),
        ("training.handlers.new", "from ..engines.losses import CandidateLoss\nfrom ..metrics import froc"),
        ("bundles.new", "from models_genesis.training import froc_curve\nfrom vendoring import rename"),
    ],
)
def test_an_allowed_import_is_let_pass(module, source):
    assert forbidden_imports(module, source) == []
