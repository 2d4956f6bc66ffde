# SPDX-License-Identifier: Apache-2.0
"""Write the config blocks that several bundles share into each of their configs.

MONAI reads one file for each stage, so shared parts must stand in all of them; ``_shared/blocks.json`` is where they
are changed. ``python bundles/sync.py`` writes them; ``--check`` changes nothing and exits with 1 where a config is
stale. The versions that the metadata pin come from ``constraints.txt`` in the same way, by ``pins.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pins import pinned, read_constraints

BUNDLES = Path(__file__).resolve().parent


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a nested id, as MONAI writes them.

    Example:
        >>> config = {"train": {"trainer": 1}}
        >>> put(config, "train#trainer", 2)
        >>> config
        {'train': {'trainer': 2}}
    """
    if key in content:  # overlays have such ids as keys, for a nested value would replace all of its parent
        content[key] = value
        return
    *parents, last = key.split("#")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[last] = value


def expected(path: Path, content: dict[str, Any], blocks: dict[str, Any], root: Path) -> dict[str, Any]:
    """Give a config's content with all blocks that name it, in the order of ``blocks``."""
    synced: dict[str, Any] = json.loads(json.dumps(content))
    for block in blocks.values():
        if any(path in root.glob(pattern) for pattern in block["configs"]):
            for key, value in block["ids"].items():
                put(synced, key, json.loads(json.dumps(value)))
    return synced


def layout(value: Any, depth: int = 0) -> str:
    """Write JSON by four spaces, with short lists of plain values on one line.

    Example:
        >>> print(layout({"size": [64, 64, 32]}))
        {
            "size": [64, 64, 32]
        }
    """
    inner, outer = "    " * (depth + 1), "    " * depth
    if isinstance(value, dict) and value:
        lines = [f"{inner}{json.dumps(key)}: {layout(each, depth + 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{outer}}}"
    if isinstance(value, list) and value:
        line = json.dumps(value, ensure_ascii=False)
        if "$" not in line and not any(isinstance(each, dict | list) for each in value) and len(line) < 90:
            return line
        return "[\n" + ",\n".join(f"{inner}{layout(each, depth + 1)}" for each in value) + f"\n{outer}]"
    return json.dumps(value, ensure_ascii=False)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, by a temporary one named as ``datasets/io/atomic_write.py`` does."""
    temporary = path.with_name(f".tmp.{secrets.token_hex(4)}.{path.name}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(root: Path = BUNDLES, check: bool = False) -> list[str]:
    """Write the shared blocks into the configs, and the pinned versions into the metadata.

    Args:
        root: folder of the bundles.
        check: whether to leave the configs as they are.

    Returns:
        The configs that are, or were, stale.

    Raises:
        ValueError: when a block names no config, or metadata name a package without a pinned version.
    """
    blocks = json.loads((root / "_shared" / "blocks.json").read_text(encoding="utf-8"))
    paths: set[Path] = set()
    for name, block in blocks.items():
        found = {path for pattern in block["configs"] for path in root.glob(pattern)}
        if not found:
            raise ValueError(f"_shared/blocks.json: {name!r} expected configs like {block['configs']}, found none")
        paths |= found
    versions: dict[str, str] = {}
    if metadata := set(root.glob("*/configs/metadata.json")):
        versions = read_constraints(root.parent / "constraints.txt")
    stale = []
    for path in sorted(paths | metadata):
        content = json.loads(path.read_text(encoding="utf-8"))
        synced = expected(path, content, blocks, root)
        if path in metadata:
            synced = pinned(synced, versions)
        if synced != content:
            stale.append(path.relative_to(root).as_posix())
            if not check:
                write_whole(path, (layout(synced) + "\n").encode())
    return stale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None takes that of this process.

    Returns:
        1 where ``--check`` found a stale config, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a config is stale")
    check = parser.parse_args(arguments).check
    stale = sync(check=check)
    for path in stale:
        print(f"{path}: {'stale; run python bundles/sync.py' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
