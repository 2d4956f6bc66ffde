# SPDX-License-Identifier: Apache-2.0
"""FUMPE (Masoudi et al., Scientific Data 2018): a DICOM folder ``PAT001`` and a mask ``PAT001.mat`` for each patient.

A mask is one array of rows, columns and slices, the slices in the order of the DICOM files' names, as MATLAB reads a
folder. The data themselves were not at hand: a mask that does not lie on plausible HU is left out and said so, which a
turned or reversed one would be.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from ..datalist import DatasetSummary, ScanRecord
from ..io.dicom_series import list_series, series_name
from ..io.file_walk import find_files
from ..io.scan_header import split_series
from . import emboli
from .emboli import EmbolismCase, list_emboli
from .image_folder import find_scans


def list_fumpe(root: str | Path, out: str | Path, progress: bool = False, **rules: Any) -> DatasetSummary:
    """Find the angiograms of FUMPE with their masks, and make candidates of them.

    Args:
        root: folder below which a folder ``PAT...`` of DICOM files and a file ``PAT....mat`` lie for each patient.
        out: folder for the tables.
        progress: whether to show a progress bar.
        rules: see :func:`~models_genesis.datasets.layouts.emboli.list_emboli`.

    Returns:
        All scans, those left out with the reason.

    Raises:
        FileNotFoundError: When there is no such folder, or no scan of a patient in it.
        ValueError: See ``list_emboli``.
    """
    folder = Path(root)
    images = {_patient(image): image for image in find_scans(folder) if _patient(image)} if folder.is_dir() else {}
    if not images:
        raise FileNotFoundError(f"{folder}: expected FUMPE's folders PAT001, PAT002 and so on, found none.")
    masks = {path.stem.upper(): path for path in find_files(folder, ".mat")}
    cases, left_out = [], []
    for patient, image in sorted(images.items()):
        if patient not in masks:
            detail = f"expected {patient}.mat, found none"
            left_out.append(ScanRecord(image, patient, reason="mask missing", detail=detail))
            continue
        facts = {"mask": masks[patient].relative_to(folder).as_posix()}
        cases.append(EmbolismCase(image, patient, partial(read_mask, masks[patient], folder / image), facts))
    return list_emboli(folder, Path(out), "FUMPE", cases, left_out, progress=progress, **rules)


def _patient(image: str) -> str:
    """Name the patient by the innermost part of a path that begins with PAT."""
    parts = [part.upper() for part in Path(split_series(image)[0]).parts]
    return next((part for part in reversed(parts) if part.startswith("PAT")), "")


def read_mask(path: Path, scan: Path) -> NDArray:
    """Read a mask along the axes of its scan.

    Args:
        path: the MATLAB file.
        scan: the DICOM folder.

    Returns:
        (columns, rows, slices), as ITK reads the scan.

    Raises:
        ValueError: When the file is of MATLAB 7.3, holds no single array of three axes, or another number of slices.
    """
    try:
        content = loadmat(path)
    except NotImplementedError as error:
        raise ValueError(f"{path.name}: expected a MATLAB file older than 7.3, found {error}") from error
    arrays = {name: array for name, array in content.items() if isinstance(array, np.ndarray) and array.ndim == 3}
    if len(arrays) != 1:
        raise ValueError(f"{path.name}: expected one array of three axes, found {sorted(arrays) or 'none'}")
    mask = next(iter(arrays.values())).transpose(1, 0, 2)
    folder, series = split_series(str(scan))
    found = list_series(folder)
    name = series_name(found, series)
    if name is None:
        raise ValueError(f"{path.name}: expected one DICOM series in {folder}, found {len(found)}")
    files = found[name]
    if mask.shape[2] != len(files):
        raise ValueError(f"{path.name}: expected {len(files)} slices, found {mask.shape[2]}")
    # slices are ordered by their place, MATLAB files by their names
    by_name = {name: number for number, name in enumerate(sorted(files))}
    return np.ascontiguousarray(mask[:, :, [by_name[name] for name in files]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets fumpe``."""
    emboli.add_arguments(parser)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the FUMPE folder that the command line names, and write its tables."""
    return list_fumpe(arguments.root, progress=True, **emboli.options(arguments))
