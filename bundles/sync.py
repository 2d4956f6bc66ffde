# SPDX-License-Identifier: Apache-2.0
"""Write the config blocks that several bundles share into each of their configs.

MONAI reads one file for each stage, so shared parts must stand in all of them; ``_shared/blocks.json`` is where they
are changed. ``python bundles/sync.py`` writes them; ``--check`` changes nothing and exits with 1 where a config is
stale. The versions that the metadata pin come from ``constraints.txt`` in the same way, by ``pins.py``.

An id that leaves a block leaves its configs too: ``_shared/written.json`` notes which ids the blocks had when they were
last written. ``--keep`` leaves such ids in the configs, which own them from then on.
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


def take(content: dict[str, Any], key: str) -> None:
    """Remove what lies at a nested id, if anything does, and the parents that it leaves empty.

    Example:
        >>> config = {"rank": 0, "train": {"sampler": {"seed": 0}}}
        >>> take(config, "train#sampler"), take(config, "gone")
        (None, None)
        >>> config
        {'rank': 0}
    """
    first, _, rest = key.partition("#")
    if key in content or not rest:
        content.pop(key, None)
    elif isinstance(content.get(first), dict):
        take(content[first], rest)
        if not content[first]:
            del content[first]


def named(path: Path, block: dict[str, Any], root: Path) -> bool:
    """Tell whether a block names a config."""
    return any(path in root.glob(pattern) for pattern in block["configs"])


def expected(
    path: Path, content: dict[str, Any], blocks: dict[str, Any], root: Path, written: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Give a config's content with all blocks that name it, in the order of ``blocks``, and without what left them."""
    synced: dict[str, Any] = json.loads(json.dumps(content))
    own = [block for block in blocks.values() if named(path, block, root)]
    present = {key for block in own for key in block["ids"]}
    for block in (written or {}).values():
        for key in set(block["ids"]) - present if named(path, block, root) else ():
            if not any(each.startswith(f"{key}#") for each in present):  # else it is shared part by part now
                take(synced, key)
    for block in own:
        for key, value in block["ids"].items():
            put(synced, key, json.loads(json.dumps(value)))
    return synced


def record(blocks: dict[str, Any]) -> str:
    """Write which ids the blocks have, a line a block."""
    lines = (
        f"    {json.dumps(name)}: {json.dumps({'configs': block['configs'], 'ids': list(block['ids'])})}"
        for name, block in blocks.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


LINE = 120
"""Columns up to which a component with plain arguments is written on one line."""


def layout(value: Any, depth: int = 0, column: int = 0) -> str:
    """Write JSON by four spaces, with what is short and holds plain values alone on one line.

    Args:
        value: what to write.
        depth: how deep it lies.
        column: columns that its key takes.

    Example:
        >>> print(layout({"size": [64, 64, 32], "flip": {"_target_": "RandFlipd", "keys": "image"}}))
        {
            "size": [64, 64, 32],
            "flip": {"_target_": "RandFlipd", "keys": "image"}
        }
    """
    inner, outer = "    " * (depth + 1), "    " * depth
    line = json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict) and value:
        plain = not any(
            isinstance(each, dict) or (isinstance(each, list) and not _plain(each)) for each in value.values()
        )
        if depth and plain and len(outer) + column + len(line) < LINE:
            return line
        lines = [
            f"{inner}{json.dumps(key)}: {layout(each, depth + 1, len(json.dumps(key)) + 2)}"
            for key, each in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{outer}}}"
    if isinstance(value, list) and value:
        if "$" not in line and _plain(value) and len(line) < 90:
            return line
        return "[\n" + ",\n".join(f"{inner}{layout(each, depth + 1)}" for each in value) + f"\n{outer}]"
    return line


def _plain(values: list[Any]) -> bool:
    return not any(isinstance(each, dict | list) for each in values)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, by a temporary one named as ``datasets/io/atomic_write.py`` does."""
    temporary = path.with_name(f".tmp.{secrets.token_hex(4)}.{path.name}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(root: Path = BUNDLES, check: bool = False, keep: bool = False) -> list[str]:
    """Write the shared blocks into the configs, and the pinned versions into the metadata.

    Args:
        root: folder of the bundles.
        check: whether to leave the configs as they are.
        keep: whether ids that left a block stay in its configs.

    Returns:
        The configs that are, or were, stale, and the note of the ids if it is.

    Raises:
        ValueError: when a block names no config, or metadata name a package without a pinned version.
    """
    blocks = json.loads((root / "_shared" / "blocks.json").read_text(encoding="utf-8"))
    note = root / "_shared" / "written.json"
    before = note.read_text(encoding="utf-8") if note.is_file() else "{}"
    written = {} if keep else json.loads(before)
    paths: set[Path] = {path for block in written.values() for glob in block["configs"] for path in root.glob(glob)}
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
        synced = expected(path, content, blocks, root, written)
        if path in metadata:
            synced = pinned(synced, versions)
        if synced != content:
            stale.append(path.relative_to(root).as_posix())
            if not check:
                write_whole(path, (layout(synced) + "\n").encode())
    if before != record(blocks):
        stale.append(note.relative_to(root).as_posix())
        if not check:  # after the configs: an interrupted run is done again
            write_whole(note, record(blocks).encode())
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
    parser.add_argument("--keep", action="store_true", help="leave ids in the configs that have left a block")
    given = parser.parse_args(arguments)
    check = given.check
    stale = sync(check=check, keep=given.keep)
    for path in stale:
        print(f"{path}: {'stale; run python bundles/sync.py' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
