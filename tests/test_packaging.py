# SPDX-License-Identifier: Apache-2.0
"""The wheel holds every module of every level, and works without the source tree; nothing forgets a package."""

from __future__ import annotations

import configparser
import os
import re
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


def test_every_folder_of_modules_is_a_package_that_setup_lists():
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    assert sorted(listed) == sorted(f"models_genesis.{'.'.join(path.relative_to(ROOT).parts)}" for path in folders)
    assert "models_genesis.datasets.io" in listed
    assert dict(re.findall(r"models_genesis\.(\w+) = (\w+)", setup["options"]["package_dir"])) == {
        p: p for p in PACKAGES
    }


def test_types_of_every_package_are_checked():
    (listed,) = re.findall(r"^for package in ([\w ]+); do$", (ROOT / "tools/typecheck.sh").read_text(), re.MULTILINE)
    assert sorted(listed.split()) == sorted(PACKAGES)


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
    files = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(("models_genesis", *file.with_suffix("").parts)).removesuffix(".__init__") for file in files]
    names = [name for name in names if not name.endswith("__main__")]
    code = "\n".join(
        [
            "import importlib",
            f"for name in {names!r}:",
            "    module = importlib.import_module(name)",
            f"    assert module.__file__.startswith({str(target)!r}), module.__file__",
        ]
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=300)
