# SPDX-License-Identifier: Apache-2.0
"""What the results of a case are called, so that no two cases of a run write one file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import FolderLayout
from monai.utils import ImageMetaKey

from .find_scans import scan_name, without_suffix
from .scan_header import NIFTI_SUFFIXES, split_series

__all__ = ["OUTPUT_FILE", "OUTPUT_NAME", "PREDICTION", "OutputName", "PredictionLayout", "output_names"]

OUTPUT_NAME = "output_name"
"""Key of the name of a case's results, in its item and in the metadata of its image."""

OUTPUT_FILE = "output_file"
"""Key of the file of a case's prediction in the metadata of its image, where its data list says it."""

PREDICTION = "prediction"
"""Key of an entry of a data list that says which file below the output folder its prediction is to be."""


def output_names(
    images: Sequence[str],
    root: str | os.PathLike[str] | None = None,
    predictions: Sequence[str | None] | None = None,
) -> list[str]:
    """Name the results of each case of a run, all different.

    A scan gives its own name, without the suffix of its file. Scans of one name, such as ``s0000/ct.nii.gz`` and
    ``s0001/ct.nii.gz``, keep their path below ``root``; those that lie elsewhere their path below the folder that all
    of the run have in common. Upper and lower case count as the same, as they do on the disks of Windows and macOS.

    Args:
        images: path of each case's image, of its first channel, or ``folder::series``.
        root: folder of the data set.
        predictions: file of each case's prediction where its data list says it, which then gives the name.

    Returns:
        A relative path for each case, with forward slashes; its last part is the name.

    Raises:
        ValueError: When two cases would still have one name, as ``ct.nii`` and ``ct.nii.gz`` in one folder; it names
            both. When a prediction is no NIfTI file below the output folder.

    Example:
        >>> output_names(["/d/a/ct.nii.gz", "/d/b/ct.nii.gz", "/d/1.2.467.4", "/d/1.2.467.5"])
        ['a/ct', 'b/ct', '1.2.467.4', '1.2.467.5']
    """
    given = [_given_name(*pair) for pair in zip(images, predictions or [None] * len(images), strict=True)]
    names = [said or scan_name(image) or "case" for image, said in zip(images, given, strict=True)]
    count = Counter(name.casefold() for name in names)
    roots = _roots(images, root)
    names = [
        name if said or count[name.casefold()] == 1 else _below(image, roots)
        for name, image, said in zip(names, images, given, strict=True)
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


def _given_name(image: str, prediction: str | None) -> str:
    """Give the name that an entry's prediction has, without suffix; ``""`` where the entry says none."""
    if prediction is None:
        return ""
    path = Path(str(prediction))
    inside = not path.is_absolute() and ".." not in path.parts and path.as_posix() == str(prediction)
    if not inside or not path.name.lower().endswith(NIFTI_SUFFIXES) or not without_suffix(path.name):
        raise ValueError(
            f"{image}: expected its prediction as a NIfTI file below the output folder, found {prediction!r}"
        )
    return without_suffix(path.as_posix())


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
    part of a folder that is named by a UID. With ``folder_layout=PredictionLayout(...)`` a file that the data list says
    counts too.
    """

    def __call__(self, metadict: Mapping[str, Any], saver: Any) -> dict[str, Any]:
        """Give the arguments of ``monai.data.FolderLayout.filename``.

        Args:
            metadict: metadata of the image to save.
            saver: the transform that saves.
        """
        name = metadict.get(OUTPUT_NAME) or scan_name(str(metadict.get(ImageMetaKey.FILENAME_OR_OBJ, "case")))
        # the suffix is what FolderLayout takes off
        arguments = {"subject": f"{name}.nii.gz", "idx": metadict.get(ImageMetaKey.PATCH_INDEX)}
        if isinstance(getattr(saver, "folder_layout", None), PredictionLayout) and metadict.get(OUTPUT_FILE):
            arguments["file"] = metadict[OUTPUT_FILE]
        return arguments


class PredictionLayout(FolderLayout):
    """Where predictions go: ``<name>/<name>_<postfix>.nii.gz``, or the file that a case's data list says.

    Lists of ``python -m models_genesis.datasets nnunet`` say ``<case>.nii.gz``, as nnU-Net names its predictions.

    Args:
        output_dir: folder of the predictions.
        postfix: behind the name of a scan.
    """

    def __init__(self, output_dir: str | os.PathLike[str], postfix: str = "seg") -> None:
        super().__init__(output_dir, postfix, ".nii.gz", parent=True, makedirs=True, data_root_dir=".")

    def filename(self, subject: Any = "subject", idx: Any = None, file: str = "", **kwargs: Any) -> str:
        """Name the file of a prediction and make its folder.

        Args:
            subject: name of the case, with a suffix.
            idx: number of a patch.
            file: the file below ``output_dir``, where the data list says it.
            kwargs: passed on to MONAI's.
        """
        if not file:
            return str(super().filename(subject, idx, **kwargs))
        path = Path(self.output_dir) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)
