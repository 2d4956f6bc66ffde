# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests share."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of measured references and real data; it lies next to the checkout and is not part of it."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data are not on this machine (expected at {SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """Import a script that is in no package, under its own name."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def forked_python(
    load_script: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run ``python -m MODULE`` in a process of its own that has MONAI imported; see ``forked_python.py``."""
    forked = load_script(Path(__file__).with_name("forked_python.py")).ForkedPython(tmp_path_factory.mktemp("output"))
    yield forked.run
    forked.close()
