# SPDX-License-Identifier: Apache-2.0
"""Which scan a seriesuid means: by the file's name, its path, the folder of a DICOM series, or the series itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..io.dicom_series import list_series, series_name
from ..io.find_scans import find_scans, scan_name, without_suffix
from ..io.scan_geometry import split_series


def scan_names(root: Path, image: str) -> set[str]:
    """List the names under which a table may know a scan.

    Args:
        root: folder that the path starts from.
        image: path of the scan, or ``folder::series``.

    Returns:
        Path, path without suffix, name of file or folder, and of DICOM the series identifier.
    """
    folder, series = split_series(image)
    if folder == ".":
        folder = root.resolve().name
    names = {image, scan_name(image)}
    if not series:
        names |= {folder, without_suffix(folder), without_suffix(Path(folder).name)}
    path = root / split_series(image)[0]
    if path.is_dir():
        found = list_series(str(path))
        names |= {name for name in [series_name(found, series)] if name} if series else set(found)
    return names - {""}


def match_scans(root: Path, names: Iterable[str]) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    """Find the scans that names mean below a folder.

    Args:
        root: the folder.
        names: seriesuids of a table.

    Returns:
        The scan of each name that means one; the scans of each name that means several; the scans that no name means.
    """
    images: list[str] = []
    by_name: dict[str, list[str]] = {}
    for image in find_scans(root):  # each as it is found, while the headers of its folder are known
        images.append(image)
        for name in scan_names(root, image):
            by_name.setdefault(name, []).append(image)
    wanted = set(names)
    matched = {name: by_name[name][0] for name in wanted if len(by_name.get(name, ())) == 1}
    ambiguous = {name: by_name[name] for name in wanted if len(by_name.get(name, ())) > 1}
    taken = {image for found in (*ambiguous.values(), [*matched.values()]) for image in found}
    return matched, ambiguous, [image for image in images if image not in taken]
