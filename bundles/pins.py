# SPDX-License-Identifier: Apache-2.0
"""The versions that a bundle's metadata pin: those of ``constraints.txt`` for the oldest Python, where all can run.

The model zoo installs exactly what the metadata pin, on Python 3.10, while development goes on with newer versions of
packages that have left 3.10 behind. Both stand in ``constraints.txt``, the latter with a marker; ``sync.py`` writes the
former into the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PYTHONS = ("3.10", "3.11", "3.12")
"""What the pins must install on, the oldest first."""

VERSION_KEYS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


def read_constraints(path: Path, python: str = PYTHONS[0]) -> dict[str, str]:
    """Read the versions of ``constraints.txt`` that one Python gets.

    Args:
        path: the file.
        python: version of Python, such as ``"3.10"``.

    Returns:
        Versions by package.

    Raises:
        ValueError: when a line does not pin one version, or a package has two versions for this Python.
    """
    versions: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        (pin,) = requirement.specifier if len(requirement.specifier) == 1 else (None,)
        if pin is None or pin.operator != "==":
            raise ValueError(f"{path}: expected PACKAGE==VERSION in each line, found {line!r}")
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if requirement.name in versions:
            raise ValueError(f"{path}: expected one version of {requirement.name} for Python {python}, found two")
        versions[requirement.name] = pin.version
    return versions


def pinned(metadata: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """Give metadata with the versions of the packages that they name.

    Example:
        >>> pinned({"numpy_version": "1", "required_packages_version": {"fire": "0"}}, {"numpy": "2", "fire": "0.7"})
        {'numpy_version': '2', 'required_packages_version': {'fire': '0.7'}}

    Raises:
        ValueError: when they name a package without a version.
    """
    packages = metadata.get("required_packages_version", {})
    missing = sorted({*packages, *(name for key, name in VERSION_KEYS.items() if key in metadata)} - set(versions))
    if missing:
        raise ValueError(f"constraints.txt: expected versions of all that the metadata name, missing are {missing}")
    result = dict(metadata)
    result.update({key: versions[name] for key, name in VERSION_KEYS.items() if key in metadata})
    if packages:
        result["required_packages_version"] = {name: versions[name] for name in packages}
    return result
