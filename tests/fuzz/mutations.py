# SPDX-License-Identifier: Apache-2.0
"""Damage at random: what disks, transfers, editors and hostile hands do to files, each drawn from one generator."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

Edit = Callable[[bytes, random.Random], bytes]

BYTES = (0, 255, 127, 128, 37, 10, 32, 57, 45)
INTEGERS = (0, 1, 2, 255, 32767, 32768, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf"))
WORDS = (
    *("", "0", "-1", "-0", "1", "2", "44.0", "1e3", "1e400", "nan", "inf", "99999999", "9" * 30, "4294967296"),
    *("18446744073709551616", "0x10", "true", "null", "None", "%d", "%s%s%n", "../a", "/dev/zero", "\x00", "é", "☃"),
    *(
        "a" * 5000,
        "a" * 300,
        "MET_DOUBLE",
        "double",
        "gzip",
        "LIST",
        "1 2 3 4 5",
        "[" * 3000,
        '"',
        "<",
        "&amp;",
        "::",
        ",",
    ),
)
CHUNKS = (1, 2, 4, 8, 40, 256)


def damaged(content: bytes, rng: random.Random, reach: int, edit: Edit) -> bytes:
    """Damage a file at one to four places.

    Args:
        content: a good file.
        rng: draws everything.
        reach: first bytes that are hit in three of four cases, such as those of the header; the rest anywhere.
        edit: changes what has a meaning in this format, such as a header's field.

    Returns:
        Its content, damaged; never empty.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.5:
            content = edit(content, rng)
        else:
            content = _damaged_bytes(content, rng, reach)
        content = content or b"x"
    return content


def _damaged_bytes(content: bytes, rng: random.Random, reach: int) -> bytes:
    """Flip, overwrite, remove, insert or repeat bytes at one place, or cut the file there."""
    found = bytearray(content)
    place = rng.randrange(min(len(found), reach) if rng.random() < 0.75 else len(found))
    size = rng.choice(CHUNKS)
    kind = rng.choice(("flip", "overwrite", "number", "remove", "insert", "repeat", "cut"))
    if kind == "flip":
        found[place] ^= 1 << rng.randrange(8)
    elif kind == "overwrite":
        found[place] = rng.choice(BYTES)
    elif kind == "number":
        found[place : place + 4] = rng.choice(INTEGERS).to_bytes(4, "little")
    elif kind == "remove":
        del found[place : place + size]
    elif kind == "insert":
        found[place:place] = rng.randbytes(size)
    elif kind == "repeat":
        found[place:place] = bytes(found[place : place + size]) * rng.choice((1, 3, 200))
    else:
        del found[place + 1 :]
    return bytes(found)


def edit_text(head: int | None = None) -> Edit:
    """Make an edit of text files: another word, or a line removed, repeated or put elsewhere.

    Args:
        head: bytes of the text, where voxels follow.
    """

    def edit(content: bytes, rng: random.Random) -> bytes:
        text, rest = (content, b"") if head is None else (content[:head], content[head:])
        if rng.random() < 0.7:
            pattern = rb"[-+]?\d[\d.]*" if rng.random() < 0.6 else rb"[-+\w.]+"
            words = list(re.finditer(pattern, text))
            if not words:
                return content
            word = rng.choice(words)
            return text[: word.start()] + rng.choice(WORDS).encode() + text[word.end() :] + rest
        lines = text.splitlines(keepends=True) or [b""]
        line = lines.pop(rng.randrange(len(lines)))
        for _ in range(rng.choice((0, 1, 2, 50))):
            lines.insert(rng.randint(0, len(lines)), line)
        return b"".join(lines) + rest

    return edit


def edit_fields(fields: Sequence[tuple[int, str]]) -> Edit:
    """Make an edit that writes an extreme number into a header's field.

    Args:
        fields: place and kind (see :mod:`struct`) of each.
    """

    def edit(content: bytes, rng: random.Random) -> bytes:
        place, kind = rng.choice(fields)
        return _with_number(content, rng, place, kind)

    return edit


def edit_zip(content: bytes, rng: random.Random) -> bytes:
    """Write an extreme number into a local header, a central one or the end of a zip."""
    places = [match.start() for match in re.finditer(rb"PK[\x01\x03\x05\x06]", content)]
    if not places:
        return content
    return _with_number(content, rng, rng.choice(places) + 4 + 2 * rng.randrange(21), rng.choice("HI"))


def _with_number(content: bytes, rng: random.Random, place: int, kind: str) -> bytes:
    size = struct.calcsize(f"<{kind}")
    if place + size > len(content):
        return content
    number = rng.choice(FLOATS) if kind in "fd" else rng.choice(INTEGERS) % 256**size
    return content[:place] + struct.pack(f"<{kind}", number) + content[place + size :]
