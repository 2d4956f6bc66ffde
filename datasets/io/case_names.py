# SPDX-License-Identifier: Apache-2.0
"""What the results of a case are called, so that no two cases of a run write one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ImageMetaKey

from .find_scans import scan_name, without_suffix
from .scan_header import split_series

__all__ = ["OUTPUT_NAME", "OutputName", "output_names"]

OUTPUT_NAME = "output_name"
"""Key of the name of a case's results, in its item and in the metadata of its image."""


def output_names(images: Sequence[str], root: str | os.PathLike[str] | None = None) -> list[str]:
    """Name the results of each case of a run, all different.

    A scan gives its own name, without the suffix of its file. Scans of one name, such as ``s0000/ct.nii.gz`` and
    ``s0001/ct.nii.gz``, keep their path below ``root``; those that lie elsewhere their path below the folder that all
    of the run have in common. Upper and lower case count as the same, as they do on the disks of Windows and macOS.

    Args:
        images: path of each case's image, of its first channel, or ``folder::series``.
        root: folder of the data set.

    Returns:
        A relative path for each case, with forward slashes; its last part is the name.

    Raises:
        ValueError: When two cases would still have one name, as ``ct.nii`` and ``ct.nii.gz`` in one folder; it names
            both.

    Example:
        >>> output_names(["/d/a/ct.nii.gz", "/d/b/ct.nii.gz", "/d/1.2.467.4", "/d/1.2.467.5"])
        ['a/ct', 'b/ct', '1.2.467.4', '1.2.467.5']
    """
    names = [scan_name(image) or "case" for image in images]
    count = Counter(name.casefold() for name in names)
    roots = _roots(images, root)
    names = [
        name if count[name.casefold()] == 1 else _below(image, roots) for name, image in zip(names, images, strict=True)
    ]
    first: dict[str, int] = {}
    for number, (name, image) in enumerate(zip(names, images, strict=True)):
        other = first.setdefault(name.casefold(), number)
        if other != number:
            raise ValueError(
                f"{images[other]} and {image}: expected cases whose results have different names, found {name!r} for "
                "both; rename one, or leave it out"
            )
    return names


def _roots(images: Sequence[str], root: str | os.PathLike[str] | None) -> list[str]:
    """Folders that a path may start from, the data set's first."""
    given = [] if root is None else [os.path.abspath(root), os.path.realpath(root)]
    folders = [os.path.dirname(os.path.abspath(split_series(image)[0])) for image in images]
    try:
        return [*given, os.path.commonpath(folders)]
    except ValueError:  # several drives of Windows
        return given


def _below(image: str, roots: Sequence[str]) -> str:
    """Give the path below the first of the roots that it lies in, without the suffix of a scan."""
    folder, series = split_series(image)
    path = Path(os.path.abspath(folder))
    base = next((root for root in roots if path.is_relative_to(root) and path != Path(root)), path.anchor)
    below = without_suffix(path.relative_to(base).as_posix())
    return f"{below}/{series}" if series else below


class OutputName:
    """Tell MONAI's ``SaveImaged`` the name that :class:`~models_genesis.datasets.CaseDataset` gave a case.

    Use it as ``SaveImaged(keys="pred", data_root_dir=".", output_name_formatter=OutputName())``; ``data_root_dir`` lets
    ``SaveImaged`` keep the folders of a name. Without a name it takes the scan's, of which MONAI would cut off the last
    part of a folder that is named by a UID.
    """

    def __call__(self, metadict: Mapping[str, Any], saver: Any) -> dict[str, Any]:
        """Give the arguments of ``monai.data.FolderLayout.filename``.

        Args:
            metadict: metadata of the image to save.
            saver: the transform that saves.
        """
        name = metadict.get(OUTPUT_NAME) or scan_name(str(metadict.get(ImageMetaKey.FILENAME_OR_OBJ, "case")))
        # the suffix is what FolderLayout takes off
        return {"subject": f"{name}.nii.gz", "idx": metadict.get(ImageMetaKey.PATCH_INDEX)}
