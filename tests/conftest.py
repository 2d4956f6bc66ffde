# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests share."""

from __future__ import annotations

import email
import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PACKAGES = ("transforms", "networks", "datasets", "training", "transfer")
LONGEST = (
    "bundles/test_built_zips.py", "bundles/test_zoo_pull_request.py", "docs/test_documents_run.py",
    "tools/test_gpu_check.py", "bundles/test_segmentation_bundles.py", "bundles/test_classification_bundles.py",
    "docs/test_tutorial.py", "bundles/test_genesis_chest_ct_pretraining.py", "bundles/test_deform_on.py",
)  # fmt: skip
"""Files of tests that take a minute or more. They run first: begun last, one of them would keep one process busy while
the others have nothing left to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first and leave the others in their order."""
    order = {ROOT / "tests" / file: rank for rank, file in enumerate(LONGEST)}
    if missing := [str(file) for file in order if not file.is_file()]:
        raise pytest.UsageError(f"LONGEST: expected files of tests, found none at {', '.join(missing)}")
    items.sort(key=lambda item: order.get(item.path, len(order)))


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
def forked(load_script: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts ``python -m MODULE`` in processes that have MONAI imported: a ``ForkedPython`` of ``forked_python.py``."""
    forked = load_script(Path(__file__).with_name("forked_python.py")).ForkedPython(tmp_path_factory.mktemp("output"))
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def forked_python(forked: Any) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m MODULE`` in a process of its own that has MONAI imported, until its end."""
    return forked.run


@pytest.fixture(scope="session")
def package_index(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The helper of that name, which asks pip."""
    return load_script(Path(__file__).with_name("package_index.py"))


@pytest.fixture(scope="module")
def index_answers() -> list[bool]:
    """Whether the package index answered, each time that :func:`bare_environment` asked it."""
    return []


@pytest.fixture(scope="module")
def bare_environment(
    load_script: Callable[[Path], ModuleType],
    package_index: ModuleType,
    index_answers: list[bool],
    made_once: Callable[..., Path],
) -> Callable[[Path, list[str]], Path]:
    """Make an environment of pinned packages and nothing else; gives its Python."""

    def install(site: Path, pins: list[str]) -> bool:
        if not pins:  # all of them are installed here
            return True

        def download(folder: Path) -> None:
            options = ("--no-deps", "--no-compile", "--only-binary=:all:")
            package_index.pip("install", *options, "--target", str(folder), *pins)

        try:
            packages = made_once(hashlib.sha256(" ".join(sorted(pins)).encode()).hexdigest(), download)
        except package_index.IndexUnreachableError:
            index_answers.append(False)
        else:
            index_answers.append(True)
            for path in packages.iterdir():
                (site / path.name).symlink_to(path)
        return index_answers[-1]

    script = load_script(Path(__file__).with_name("bare_environment.py"))
    return lambda folder, requirements: script.make(folder, requirements, install)


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a folder once in a session, whichever of its processes needs it first; tests read it, and write elsewhere.

    What is called takes a name and a function that fills an empty folder.
    """
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if hasattr(request.config, "workerinput") else own) / "made_once"  # the session's, never older
    root.mkdir(exist_ok=True)

    def once(name: str, fill: Callable[[Path], object]) -> Path:
        folder, whole = root / name, root / f"{name}.whole"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # another process failed here
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def wheel(made_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, alone in a folder that pip can take for an index (``--find-links``)."""
    (path,) = made_once("wheel", lambda folder: build_wheel(folder, tmp_path_factory.mktemp("tree"))).glob("*.whl")
    return path


def build_wheel(folder: Path, tree: Path) -> None:
    """Build the wheel in a folder; the other one gets a copy of what it is built from."""
    # Built from a copy: setuptools keeps old modules in build/ and would pack them again.
    for name in (*PACKAGES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(tree)], check=True, cwd=folder, timeout=300)


@pytest.fixture(scope="module")
def wheel_environment(wheel: Path, bare_environment: Callable[[Path, list[str]], Path]) -> Callable[..., Path]:
    """Make an environment with the wheel and what its metadata require; gives its Python.

    What is made takes the folder; ``extras`` of the wheel, such as ``("hub",)``; and ``pins`` of what is required.
    """
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))

    def required(text: str, extras: Iterable[str]) -> str | None:
        requirement = Requirement(text)
        marker, requirement.marker = requirement.marker, None
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
        return str(requirement) if wanted else None

    def make(folder: Path, extras: Iterable[str] = (), pins: Iterable[str] = ()) -> Path:
        needed = [required(text, extras) for text in metadata.get_all("Requires-Dist", [])]
        python = bare_environment(folder, [*pins, *filter(None, needed)])
        # by name and version from an index that has nothing else: what the wheel requires must be there already
        options = ["--quiet", "--no-index", "--find-links", str(wheel.parent)]
        package = f"{metadata['Name']}[{','.join(extras)}]=={metadata['Version']}"
        line = [sys.executable, "-m", "pip", "--python", str(python), "install", *options, package]
        subprocess.run(line, check=True, timeout=300)
        return python

    return make
