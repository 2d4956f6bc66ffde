# SPDX-License-Identifier: Apache-2.0
"""The wheel holds every module, and works without the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("transforms", "networks", "datasets", "training", "transfer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder, tree = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tree")
    # Built from a copy: setuptools keeps old modules in build/ and would pack them again.
    for name in (*PACKAGES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(tree)], check=True, cwd=folder, timeout=300)
    (path,) = folder.glob("models_genesis-*.whl")
    return path


def test_wheel_holds_every_module_and_nothing_else(wheel):
    expected = {
        f"models_genesis/{package}/{path.relative_to(ROOT / package).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    } | {f"models_genesis/{package}/py.typed" for package in PACKAGES}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


def test_an_ordinary_install_works_from_any_directory(wheel, tmp_path):
    """Installed to a folder of its own that comes before the editable install on the path."""
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, timeout=300)
    code = "\n".join(
        [
            "import importlib, pkgutil",
            *(f"import models_genesis.{package}" for package in PACKAGES),
            "for package in " + repr(PACKAGES) + ":",
            "    parent = importlib.import_module('models_genesis.' + package)",
            f"    assert parent.__file__.startswith({str(target)!r}), parent.__file__",
            "    for module in pkgutil.iter_modules(parent.__path__):",
            "        if module.name != '__main__':",
            "            importlib.import_module(parent.__name__ + '.' + module.name)",
        ]
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=300)
