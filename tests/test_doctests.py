# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("transforms", "networks", "datasets", "training", "transfer")


def module_names() -> list[str]:
    """List the modules of every level by their files: pkgutil passes over folders without ``__init__.py``."""
    files = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    names = [".".join(("models_genesis", *file.with_suffix("").parts)).removesuffix(".__init__") for file in files]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", module_names())
def test_examples(name):
    module = importlib.import_module(name)
    assert module.__file__ is not None and module.__file__.startswith(str(ROOT))
    assert doctest.testmod(module).failed == 0


def test_every_level_is_looked_through():
    assert {"models_genesis.datasets", "models_genesis.datasets.io.scan_geometry"} <= set(module_names())


def test_there_are_examples():
    attempted = sum(doctest.testmod(importlib.import_module(name)).attempted for name in module_names())
    assert attempted >= 20
