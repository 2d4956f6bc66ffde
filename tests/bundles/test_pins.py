# SPDX-License-Identifier: Apache-2.0
"""What the metadata pin can be installed together on every Python that we support, and comes from one file."""

from __future__ import annotations

import doctest
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.parent.parent.name for path in ROOT.glob("bundles/*/configs/metadata.json"))


@pytest.fixture(scope="module")
def pins(load_script):
    return load_script(ROOT / "bundles" / "pins.py")


def pinned_by(name: str) -> dict[str, str]:
    metadata = json.loads((ROOT / "bundles" / name / "configs" / "metadata.json").read_text())
    own = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    return {package: metadata[key] for package, key in own.items()} | metadata["required_packages_version"]


@pytest.fixture(scope="module")
def resolved(pins, package_index, tmp_path_factory) -> dict[str, dict[str, str]]:
    """What pip would install by Python, of everything that any bundle pins; wheels only.

    All bundles at once, for their pins agree: what is installable together is so in parts. For the oldest Python it is
    all of ``constraints.txt`` with what that needs, so that pins which contradict each other are found, here and for
    ``make setup``; that takes pip a while. ``make test-zip PYTHON=python3.10`` installs and runs it.
    """
    wanted: dict[str, str] = {}
    for name in NAMES:
        assert all(wanted.get(package, version) == version for package, version in pinned_by(name).items())
        wanted |= pinned_by(name)
    folder = tmp_path_factory.mktemp("index")
    everything = pins.read_constraints(ROOT / "constraints.txt")

    def resolve(python: str) -> dict[str, str]:
        report, oldest = folder / f"{python}.json", python == pins.PYTHONS[0]
        requirements = [f"{name}=={version}" for name, version in (everything if oldest else wanted).items()]
        package_index.pip(
            "install", "--dry-run", "--ignore-installed", "--python-version", python, "--only-binary=:all:", "--target",
            str(folder / python), "--report", str(report), *requirements, *([] if oldest else ["--no-deps"]), site=site,
        )  # fmt: skip
        chosen = [each["metadata"] for each in json.loads(report.read_text())["install"]]
        return {each["name"].lower().replace("_", "-"): each["version"] for each in chosen}

    try:
        site = package_index.newer_pip(folder / "pip")
        with ThreadPoolExecutor() as pool:  # it waits for the index most of the time
            return dict(zip(pins.PYTHONS, pool.map(resolve, pins.PYTHONS), strict=True))
    except package_index.IndexUnreachableError as error:
        pytest.skip(f"no package index can be reached from here: {error}")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_pins_have_wheels_that_agree(resolved, name, python):
    found = {package: resolved[python].get(package) for package in pinned_by(name)}
    assert {package: version and version.split("+")[0] for package, version in found.items()} == pinned_by(name)


def test_all_supported_pythons_are_resolved_and_stated(pins, resolved):
    assert list(resolved) == list(pins.PYTHONS)
    setup = (ROOT / "setup.cfg").read_text()
    assert f"python_requires = >={pins.PYTHONS[0]}" in setup
    assert all(f"Programming Language :: Python :: {python}\n" in setup for python in pins.PYTHONS)


def test_constraints_have_one_version_for_each_python(pins):
    versions = {python: pins.read_constraints(ROOT / "constraints.txt", python) for python in pins.PYTHONS}
    assert versions["3.10"].keys() == versions["3.11"].keys() == versions["3.12"].keys()
    assert versions["3.10"]["numpy"] != versions["3.11"]["numpy"]
    for name in NAMES:
        assert pinned_by(name).items() <= versions["3.10"].items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("numpy>=2\n", "expected PACKAGE==VERSION"),
        ("numpy\n", "expected PACKAGE==VERSION"),
        ("numpy==2\nnumpy==3; python_version < '3.12'\n", "one version of numpy for Python 3.10"),
    ],
)
def test_constraints_that_do_not_pin_are_refused(pins, tmp_path, text, message):
    (tmp_path / "constraints.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        pins.read_constraints(tmp_path / "constraints.txt")


def test_markers_and_comments_are_read(pins, tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("# why\nnumpy==1; python_version < '3.11'\nnumpy==2; python_version >= '3.11'  # new\n\nfire==3\n")
    assert pins.read_constraints(path) == {"numpy": "1", "fire": "3"}
    assert pins.read_constraints(path, "3.12") == {"numpy": "2", "fire": "3"}


def test_a_package_without_a_version_is_refused(pins):
    with pytest.raises(ValueError, match=r"missing are \['fire', 'monai'\]"):
        pins.pinned({"monai_version": "1", "required_packages_version": {"fire": "1"}}, {"numpy": "2"})


def test_examples_in_docstrings(pins):
    sys.modules[pins.__name__] = pins
    assert doctest.testmod(pins).failed == 0
