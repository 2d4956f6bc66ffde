# SPDX-License-Identifier: Apache-2.0
"""One MONAI reader for every format that the data lists name, DICOM series among others of their folder included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
from monai.config import PathLike
from monai.data import ITKReader, NibabelReader
from monai.data.image_reader import ImageReader
from monai.utils import ensure_tuple

from .scan_header import NIFTI_SUFFIXES, list_series, split_series


class ScanReader(ImageReader):
    """Read NIfTI with MONAI's ``NibabelReader`` and everything else with its ``ITKReader``.

    ``ITKReader`` alone reads the first series of a DICOM folder only, and refuses NIfTI files whose axes are not quite
    orthogonal. ``folder::series`` names one series of several, as the data lists written here do. Give it to MONAI's
    loader as ``LoadImaged(keys="image", reader="models_genesis.datasets.ScanReader", dtype=None)``.

    After an error of ``read``, ``LoadImage`` tries all other readers, one of which may make something of the file, such
    as the wrong series. So the file is read in :meth:`get_data`, whose errors count.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Say yes to every file: what ITK cannot read, it says itself."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Note what is to be read.

        Args:
            data: file, DICOM folder or ``folder::series``, or several of one format, to be stacked as channels.
            kwargs: passed on to MONAI's reader.

        Returns:
            The names and ``kwargs``.
        """
        return [str(name) for name in ensure_tuple(data)], kwargs

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Read what :meth:`read` noted.

        Args:
            img: the names and arguments.

        Returns:
            Voxels and metadata, as MONAI's readers give them.

        Raises:
            FileNotFoundError: When a folder does not hold the named series, or several and none is named.
        """
        names, kwargs = img
        # a new reader for each scan: MONAI's keep the names of the last one, and threads share this one
        reader: ImageReader
        if all(name.lower().endswith(NIFTI_SUFFIXES) for name in names):
            reader = NibabelReader()
            return reader.get_data(reader.read(names, **kwargs))
        reader = ITKReader()
        images = [self._read_itk(reader, name, **kwargs) for name in names]
        return reader.get_data(images if len(images) > 1 else images[0])

    def _read_itk(self, reader: ImageReader, name: str, **kwargs: Any) -> Any:
        folder, series = split_series(name)
        if not Path(folder).is_dir():
            return reader.read(folder, **kwargs)
        found = list_series(folder)
        if not series and len(found) == 1:
            series = next(iter(found))
        if series not in found:
            raise FileNotFoundError(f"{folder}: expected the DICOM series {series or 'alone'}, found {list(found)}.")
        files = found[series]
        return itk.imread(files if len(files) > 1 else files[0], **kwargs)
