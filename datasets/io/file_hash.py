# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of what a data list names: a file, or the files of a scan."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ...networks.weight_container import sha256_of
from .scan_header import scan_files, split_series

__all__ = ["hash_of_files"]


def hash_of_files(scan: str | os.PathLike[str]) -> str | None:
    """Compute the SHA-256 of a file, or of a scan in several files that of their names and hashes, in order of names.

    Args:
        scan: file, header of a MetaImage or NRRD with its voxels elsewhere, or folder of a DICOM series, with ``::``
            and the series where it holds several. Of a folder without DICOM all files count.

    Returns:
        Hexadecimal digits; None where nothing is there.
    """
    name = os.fspath(scan)
    path = Path(split_series(name)[0])
    if path.is_file():
        members = [member for member in scan_files(name) if member.is_file()]  # what is missing, opening the scan says
        if len(members) == 1:
            return sha256_of(members[0])
        folder = path.parent
    elif path.is_dir():
        members = scan_files(name) or [member for member in path.iterdir() if member.is_file()]
        folder = path
    else:
        return None
    hashes = {os.path.relpath(member, folder): sha256_of(member) for member in members}
    text = "\n".join(f"{member} {hashes[member]}" for member in sorted(hashes))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
