# SPDX-License-Identifier: Apache-2.0
"""CAD-PE (ieee-dataport.org/open-access/cad-pe): ``images/001.nrrd`` and ``rs/001RefStd.nrrd``, one number a clot.

Names and numbering are as published tools read them; the data themselves were not at hand.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import LoadImage
from numpy.typing import NDArray

from ..datalist import DatasetSummary, ScanRecord
from ..io.file_walk import find_files
from ..io.scan_header import read_scan_header
from ..io.scan_reader import ScanReader
from . import emboli
from .emboli import EmbolismCase, list_emboli

REFERENCE = "RefStd"


def list_cadpe(root: str | Path, out: str | Path, progress: bool = False, **rules: Any) -> DatasetSummary:
    """Find the angiograms of CAD-PE with their reference standard, and make candidates of them.

    Args:
        root: folder with ``images`` and ``rs``, which may lie deeper.
        out: folder for the tables.
        progress: whether to show a progress bar.
        rules: see :func:`~models_genesis.datasets.layouts.emboli.list_emboli`.

    Returns:
        All scans, those left out with the reason.

    Raises:
        FileNotFoundError: When there is no such folder, or no image in it.
        ValueError: See ``list_emboli``.
    """
    folder = Path(root)
    images = [path for path in find_files(folder, ".nrrd") if REFERENCE not in path.name]
    if not images:
        raise FileNotFoundError(f"{folder}: expected CAD-PE's images/*.nrrd, found none.")
    references = [path for path in find_files(folder, ".nrrd") if path.name.endswith(f"{REFERENCE}.nrrd")]
    masks = {path.name.replace(f"{REFERENCE}.nrrd", ""): path for path in references}
    cases, left_out = [], []
    for path in images:
        image = path.relative_to(folder).as_posix()
        mask = masks.get(path.stem)
        if mask is None:
            detail = f"expected {path.stem}{REFERENCE}.nrrd, found none"
            left_out.append(ScanRecord(image, path.stem, reason="mask missing", detail=detail))
            continue
        facts = {"mask": mask.relative_to(folder).as_posix()}
        cases.append(EmbolismCase(image, path.stem, partial(_read_mask, path, mask), facts))
    return list_emboli(folder, Path(out), "CAD-PE", cases, left_out, progress=progress, **rules)


def _read_mask(image: Path, mask: Path) -> NDArray:
    """Read a mask; it must lie where its image does, since its own header could say otherwise."""
    load = LoadImage(reader=ScanReader, dtype=None, image_only=True)
    expected, found = read_scan_header(str(image)), read_scan_header(str(mask))
    if expected.shape == found.shape and not np.allclose(expected.affine, found.affine, atol=0.05):
        raise ValueError(f"{mask.name}: expected the geometry of its image, found {found.affine.round(3).tolist()}")
    return np.asarray(load(str(mask)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets cadpe``."""
    emboli.add_arguments(parser)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the CAD-PE folder that the command line names, and write its tables."""
    return list_cadpe(arguments.root, progress=True, **emboli.options(arguments))
