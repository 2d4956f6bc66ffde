# SPDX-License-Identifier: Apache-2.0
"""The keys of a bundle: what its card says of them, with the types of its configs."""

from __future__ import annotations

import difflib
import itertools
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .moved_keys import MOVED_KEYS
from .option_types import OPTION_KINDS, kind_like

__all__ = ["BundleKey", "describe_keys", "read_bundle_keys"]

CARD = Path("docs", "README.md")
STAGES = ("train", "evaluate", "inference")
_MISSING = object()


@dataclass(frozen=True)
class BundleKey:
    """A key of ``python -m monai.bundle run``, such as ``--epochs``.

    Args:
        name: without the dashes; a nested id, such as ``train#run#keep_last``, for what a component takes.
        default: in the words of the card.
        meaning: what it does; keys of one row of the card share it.
        expected: what values it takes, ``""`` where the configs do not tell.
        stages: the configs that have it, or the component that takes it.
    """

    name: str
    default: str
    meaning: str
    expected: str
    stages: tuple[str, ...]


def read_bundle_keys(bundle: str | Path) -> list[BundleKey]:
    """Read the keys that a bundle documents.

    Args:
        bundle: its folder, with ``docs/README.md`` and ``configs/``.

    Returns:
        The keys in the order of the card's table.

    Raises:
        FileNotFoundError: when it is not the folder of a bundle.
        ValueError: when its card has no table of keys.
    """
    root = Path(bundle)
    card, configs = root / CARD, {}
    for path in (card, root / "configs" / "train.json"):
        if not path.is_file():
            raise FileNotFoundError(
                f"{bundle}: expected the folder of a bundle with {path.relative_to(root)}, found none"
            )
    for stage in STAGES:
        path = root / "configs" / f"{stage}.json"
        configs[stage] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = [line for line in card.read_text(encoding="utf-8").splitlines() if re.match(r"\| `--[\w#]+`", line)]
    if not rows:
        raise ValueError(
            f"{card}: expected a table of keys, with rows such as | `--epochs` | 100 | length |; found none"
        )
    return [key for row in rows for key in _keys_of_row(row, configs)]


def describe_keys(bundle: str | Path, names: Sequence[str] = (), width: int = 100) -> str:
    """Write what a user wants to know of a bundle's keys.

    Args:
        bundle: its folder.
        names: the keys that are asked for, with or without dashes; empty for all. Former names of keys do as well.
        width: of a line, in characters.

    Returns:
        For each key a line with its values and default, and below what it does.

    Raises:
        FileNotFoundError: see :func:`read_bundle_keys`.
        ValueError: when the card has no such key; the message names the nearest.
    """
    keys = read_bundle_keys(bundle)
    known = [key.name for key in keys]
    wanted = [_present_name(name.lstrip("-"), known) for name in names]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise ValueError(
                f"--{name}: expected a key of {Path(bundle).resolve().name}, found none of that name{hint}"
            )
    chosen = [key for key in keys if not wanted or key.name in wanted]
    return "\n".join(
        "\n".join([*map(_head, row), textwrap.fill(meaning, width, initial_indent="    ", subsequent_indent="    ")])
        for meaning, row in itertools.groupby(chosen, lambda key: key.meaning)
    )


def _keys_of_row(row: str, configs: dict[str, dict[str, Any]]) -> list[BundleKey]:
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]
    names = re.findall(r"`--([\w#]+)`", cells[0])
    defaults = _split(cells[1]) if len(names) > 1 else [cells[1]]
    if len(defaults) != len(names):  # one default for all of them, in words
        defaults = [cells[1]] * len(names)
    return [_key(name, default, cells[2], configs) for name, default in zip(names, defaults, strict=True)]


def _split(defaults: str) -> list[str]:
    """Split at the commas that are not inside brackets.

    Example:
        >>> _split("[1, 2], 0.5, none")
        ['[1, 2]', '0.5', 'none']
    """
    return [each.strip() for each in re.split(r",\s*(?![^\[]*\])", defaults)]


def _key(name: str, default: str, meaning: str, configs: dict[str, dict[str, Any]]) -> BundleKey:
    values = {stage: _default_of(content, name) for stage, content in configs.items()}
    having = {stage: value for stage, value in values.items() if value is not _MISSING}
    kinds = [OPTION_KINDS.get(name), *(kind_like(value) for value in having.values())]
    kind = next((kind for kind in kinds if kind is not None), None)
    return BundleKey(name, default.replace("`", ""), meaning, kind.expected if kind else "", tuple(having))


def _default_of(config: Any, name: str) -> Any:
    """Look up what a config has for a key; None where it leaves a component's argument to Python."""
    if name in config:
        return config[name]
    *parents, last = name.split("#")
    for part in parents:
        config = config.get(part, {}) if isinstance(config, dict) else {}
    return config.get(last) if parents and "_target_" in config else _MISSING


def _present_name(name: str, known: Sequence[str]) -> str:
    """Give the nested id of a key that stood at the top of the configs before."""
    moved = MOVED_KEYS.get(name)
    return moved.id if name not in known and moved is not None and moved.id in known else name


def _head(key: BundleKey) -> str:
    missing = [stage for stage in ("train", "inference") if stage not in key.stages]
    where = f"   (not in {missing[0]}.json)" if len(missing) == 1 else ""
    return f"--{key.name}   {key.expected or 'a value'}; default: {key.default}{where}"
