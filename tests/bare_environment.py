# SPDX-License-Identifier: Apache-2.0
"""Make an environment that has the packages a bundle's metadata pin, what those need, and nothing else."""

from __future__ import annotations

import sys
import venv
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(requirements: Iterable[str]) -> set[str]:
    """Give the names of packages and of all that they and their extras require, as their own metadata say it."""
    found: set[tuple[str, str]] = set()  # with the extra, "" for none
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for part in {"", *requirement.extras}:
            if (requirement.name.lower(), part) not in found:
                found.add((requirement.name.lower(), part))
                waiting += [(Requirement(text), part) for text in distribution(requirement.name).requires or []]
    return {name for name, _ in found}


def others(requirements: Iterable[str]) -> list[str]:
    """List the pins of which another version is installed here."""
    pins = [Requirement(text) for text in requirements]
    return [str(pin) for pin in pins if not pin.specifier.contains(distribution(pin.name).version.split("+")[0])]


def make(folder: Path, requirements: Iterable[str], install: Callable[[Path, list[str]], bool]) -> Path:
    """Make a virtual environment whose site-packages link to the installed packages, file by top-level file.

    Downloading them again would take minutes and gigabytes for the same files. No ``.pth`` file and no package that is
    not required goes in, so that this project, installed or editable, is not there. Packages of which the pins name
    another version than the one installed here are installed.

    Args:
        folder: where to make it.
        requirements: as pip writes them.
        install: installs packages without what they need to a folder; returns False where that cannot be done, and the
            installed versions are linked instead.

    Returns:
        Its Python.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    requirements = list(requirements)
    different = others(requirements)
    installed = {Requirement(pin).name.lower() for pin in different} if install(site, different) else set()
    for name in sorted(closure(requirements) - installed):
        package = distribution(name)
        tops = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not top.endswith(".pth") and not (site / top).is_symlink():
                (site / top).symlink_to(package.locate_file(top))
    return folder / "bin" / "python"
