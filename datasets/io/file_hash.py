# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of what a data list names: a file, or a folder of a DICOM series."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...networks.weight_container import sha256_of

__all__ = ["hash_of_files"]


def hash_of_files(path: str | os.PathLike[str]) -> str | None:
    """Compute the SHA-256 of a file, or of a folder that of the hashes of its files, in the order of their names.

    Args:
        path: file or folder.

    Returns:
        Hexadecimal digits; None where nothing is there.
    """
    path = Path(path)
    if path.is_dir():
        members = sorted(member for member in path.iterdir() if member.is_file())
        text = "\n".join(f"{member.name} {sha256_of(member)}" for member in members)
        return hashlib.sha256(text.encode()).hexdigest()
    return sha256_of(path) if path.is_file() else None
