# SPDX-License-Identifier: Apache-2.0
"""The wheel holds every module of every level, and works without the source tree; nothing forgets a package."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("transforms", "networks", "datasets", "training", "transfer")


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


def test_whatever_is_imported_is_required():
    """By the wheel itself, or by an extra: not only by what it requires, which may do without it some day."""
    imported = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {(alias.name.split(".")[0], path.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((str(node.module).split(".")[0], path.name))
    foreign = {(name, file) for name, file in imported if name not in {*sys.stdlib_module_names, "models_genesis"}}
    assert {"numpy", "torch", "monai"} <= {name for name, _ in foreign}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], *(extras[name] for name in extras if name not in ("dev", "docs"))]
    required = {Requirement(line).name.lower() for text in lines for line in text.splitlines() if line}
    # itk is a package of packages, and numba's own interface to LLVM takes llvmlite's types
    owners = {**packages_distributions(), "itk": ["itk"], "llvmlite": ["numba"]}
    missing = {
        (name, file) for name, file in foreign if not required & {owner.lower() for owner in owners.get(name, [])}
    }
    assert missing == set()


def test_every_module_of_an_ordinary_install_can_be_imported(wheel, wheel_environment, tmp_path):
    """From any directory, in an environment that has what the wheel requires, no extras, and nothing else."""
    python = wheel_environment(tmp_path / "environment")
    names = [Path(name).with_suffix("") for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    modules = [".".join(name.parts).removesuffix(".__init__") for name in names if name.stem != "__main__"]
    # Triton comes with torch for CUDA alone, and its kernels are imported where they run
    modules = [name for name in modules if not name.endswith(".triton_deform")]
    assert len(modules) > 100
    code = f"""
import importlib, json
from importlib.metadata import distributions
for name in {modules!r}:
    module = importlib.import_module(name)
    assert module.__file__.startswith({str(tmp_path)!r}), module.__file__
print(json.dumps([each.name for each in distributions()]))
"""
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    line = [str(python), "-W", "ignore", "-c", code]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {re.sub("[-_.]+", "-", name).lower() for name in json.loads(done.stdout.splitlines()[-1])}
    assert {"models-genesis", "monai", "fire"} <= found
    assert not found & {"pytest", "hypothesis", "huggingface-hub", "highdicom", "einops", "onnx", "ruff", "sphinx"}
