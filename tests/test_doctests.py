# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("transforms", "networks", "datasets", "training", "transfer")


def module_names() -> list[str]:
    names = []
    for package in PACKAGES:
        parent = importlib.import_module(f"models_genesis.{package}")
        names += [f"{parent.__name__}.{module.name}" for module in pkgutil.iter_modules(parent.__path__)]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", module_names())
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    attempted = sum(doctest.testmod(importlib.import_module(name)).attempted for name in module_names())
    assert attempted >= 20
