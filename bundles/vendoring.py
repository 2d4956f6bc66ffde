# SPDX-License-Identifier: Apache-2.0
"""Make a bundle stand alone: the package's code goes to its ``scripts/``, its configs and its README are adapted.

In this repository a bundle imports ``models_genesis``. A packed bundle must run where that is not installed, so all
four packages are copied below ``scripts`` and every ``models_genesis.`` becomes ``scripts.``. All four rather than what
one bundle imports: they are small (0.6 MB), every command of the documentation works in every package, and where two
packages are loaded in one process, which share the module name ``scripts``, both find what they need.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("datasets", "networks", "training", "transforms")

OWN_IMPORT = re.compile(r"^\$from models_genesis\.(\w+(?:\.\w+)*) import (\w+)$")

# MONAI puts the bundle's folder on the path as late as in `run`, so that `monai.bundle.load`, which only runs
# `initialize`, would find no `scripts`. Where the config lies, only the running workflow knows; without one it is ''.
FIND_SCRIPTS = (
    "$sys.path.insert(0, next((str(frame.f_locals['self'].config_root_path.resolve().parent) "
    "for frame, _ in traceback.walk_stack(None) "
    "if isinstance(frame.f_locals.get('self'), monai.bundle.ConfigWorkflow)), ''))"
)
FIND_SCRIPTS_IMPORTS = ("$import importlib", "$import sys", "$import traceback")


def rename(text: str) -> str:
    """Let code and configs import from ``scripts``.

    Example:
        >>> rename("models_genesis.networks.GenesisUNet, kept in ~/.cache/models_genesis")
        'scripts.networks.GenesisUNet, kept in ~/.cache/models_genesis'
    """
    return re.sub(r"\bmodels_genesis\.(?=\w)", "scripts.", text)


def vendored_code(root: Path) -> dict[str, str]:
    """Give the package's modules, of every level, as they stand below ``scripts`` in a packed bundle.

    Args:
        root: folder that holds the four packages.

    Returns:
        Text by path in the bundle.

    Raises:
        ValueError: when a package is missing, or a module holds an absolute import that the renaming does not reach.
    """
    code = {}
    for package in PACKAGES:
        paths = sorted((root / package).rglob("*.py"))
        if not paths:
            raise ValueError(f"{root / package}: expected a package to copy, found no modules")
        for path in paths:
            text = rename(path.read_text(encoding="utf-8"))
            if re.search(r"^\s*(from|import) models_genesis\b", text, re.MULTILINE):
                raise ValueError(f"{path}: imports models_genesis as a whole; import from one of its packages")
            code[f"scripts/{path.relative_to(root).as_posix()}"] = text
    return code


def portable_configs(configs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Let the configs of one bundle find their code below ``scripts``, from whatever directory they are run.

    Imports of ours become keys that are evaluated when they are first used, for MONAI evaluates ``imports`` before
    ``initialize`` and never again: ``"$from models_genesis.training import f"`` and ``"$f(1)"`` become
    ``"f": "$importlib.import_module('scripts.training').f"`` and ``"$@f(1)"``. ``initialize`` begins with
    :data:`FIND_SCRIPTS`.

    Args:
        configs: contents by file name; overlays may use what other files import.

    Returns:
        The adapted contents; the input is not changed.

    Raises:
        ValueError: when a config has a key of an imported name, or an import of ours that cannot be rewritten.
    """
    names = {
        match[2]
        for config in configs.values()
        for entry in _imports(config)
        if (match := OWN_IMPORT.match(entry)) is not None
    }
    return {file: _portable_config(file, config, names) for file, config in configs.items()}


def _imports(config: Mapping[str, Any]) -> list[str]:
    return [entry for key in ("imports", "+imports") for entry in config.get(key, [])]


def _portable_config(file: str, config: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    clash = sorted(names & set(config))
    if clash:
        raise ValueError(f"{file}: {clash} are imported and keys at the same time; give the keys other names")
    portable: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("imports", "+imports"):
            if lost := [entry for entry in value if "models_genesis" in entry and not OWN_IMPORT.match(entry)]:
                raise ValueError(f"{file}: {lost}: expected one name from one package of models_genesis in each import")
            entries = [entry for entry in value if not OWN_IMPORT.match(entry)]
            # "+imports" comes on top of a file that has these already
            extra = FIND_SCRIPTS_IMPORTS if key == "imports" else ()
            portable[key] = entries + [entry for entry in extra if entry not in entries]
            for entry in value:
                if match := OWN_IMPORT.match(entry):
                    portable[match[2]] = f"$importlib.import_module('scripts.{match[1]}').{match[2]}"
        elif key == "initialize":
            portable[key] = [FIND_SCRIPTS, *_portable_value(value, names)]
        else:
            portable[key] = _portable_value(value, names)
    return portable


def _portable_value(value: Any, names: Iterable[str]) -> Any:
    """Refer to imported names as keys in all expressions, and rename all targets."""
    if isinstance(value, dict):
        return {key: _portable_value(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_portable_value(each, names) for each in value]
    if not isinstance(value, str):
        return value
    if value.startswith("$"):
        for name in names:
            value = re.sub(rf"(?<![\w.@'\"]){name}\b(?!\s*=[^=])", f"@{name}", value)
    return rename(value)


def portable_readme(text: str, name: str, requirements: Iterable[str], vendored: bool = True) -> str:
    """Let the commands of a bundle's README run from the unpacked bundle's own folder.

    Args:
        text: ``docs/README.md`` as it stands in this repository, with ``B=bundles/NAME`` before the commands.
        name: the bundle.
        requirements: what has to be installed, as pip writes it.
        vendored: whether the bundle carries its own code; otherwise it imports the installed package.

    Returns:
        The README of the packed bundle.

    Raises:
        ValueError: when the README has not the form that is expected, or something in it still points outside.
    """
    file = f"{name}/docs/README.md"
    sentence = "From any directory; `B` is this bundle's folder."
    for expected in (sentence, f"\nB=bundles/{name}\n", "\n## Data\n"):
        if text.count(expected) != 1:
            raise ValueError(f"{file}: expected {expected!r} once, found it {text.count(expected)} times")
    text = text.replace(sentence, "From this bundle's own folder, the one with `configs/` and `docs/`.")
    text = text.replace(f"\nB=bundles/{name}\n", "\n")
    text = text.replace(" --bundle_root $B", "").replace("$B/", "")
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./){2,}[^)]*\)", r"\1 in the project's repository", text)
    text = re.sub(r"(?<![\w/])bundles/(?=\w)", "../", text)
    text = rename(text) if vendored else text
    ours = r"|(?<![\w/.~])models_genesis\." if vendored else ""
    left = re.findall(rf".*(?:\$B\b|\$\{{B\}}{ours}).*", text)
    if left:
        raise ValueError(f"{file}: expected nothing that only this repository has, found {left}")
    install = INSTALL.format(requirements=" ".join(requirements), code=OWN_CODE if vendored else PACKAGE_CODE)
    return text.replace("\n## Data\n", install + "\n## Data\n")


INSTALL = """
## Install

{code} It was tested with:

```bash
pip install {requirements}
```

Its configs are code that runs with your rights: use only packages whose checksum you compared with one from a source
you trust.
"""

OWN_CODE = "This package carries its own code in `scripts/`, which is run as its configs are."

PACKAGE_CODE = "Its code is the Python package `models-genesis`."
