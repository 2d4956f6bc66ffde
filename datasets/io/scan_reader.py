# SPDX-License-Identifier: Apache-2.0
"""One MONAI reader for every format that the data lists name, DICOM series among others of their folder included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data.image_reader import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from .scan_geometry import TOLERANCE, BadScanError, ScanHeader, corner_distance
from .scan_header import open_scan


class ScanReader(ImageReader):
    """Read a scan as :func:`~models_genesis.datasets.io.scan_header.open_scan` does, for MONAI's loaders.

    So a scan that a listing refuses is refused by training and inference too, and all of them take a voxel for the same
    place. ``folder::series`` names one DICOM series of several, as the data lists written here do. Give it to MONAI as
    ``LoadImaged(keys="image", reader="models_genesis.datasets.ScanReader", dtype=None)``.

    After an error of ``read``, ``LoadImage`` tries all other readers, one of which may make something of the file, such
    as the wrong series. So the file is read in :meth:`get_data`, whose errors count.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Say yes to every file: what cannot be read, :meth:`get_data` says."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Note what is to be read.

        Args:
            data: file, DICOM folder or ``folder::series``, or several of one shape, to be stacked as channels.
            kwargs: accepted as MONAI's readers do, and not used.

        Returns:
            The names.
        """
        return [str(name) for name in ensure_tuple(data)]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Read what :meth:`read` noted.

        Args:
            img: the names.

        Returns:
            Voxels and metadata, as MONAI's readers give them: (X, Y, Z), (X, Y, Z, channels) of a file of several
            volumes, or (channels, X, Y, Z) of several files.

        Raises:
            BadScanError: When a scan is bad, or several differ in shape or place.
        """
        opened = [(name, *open_scan(name)) for name in img]
        header = opened[0][1]
        for name, other, _ in opened[1:]:
            _check_same_space(name, header, other)
        volumes = [load() for _, _, load in opened]
        channels = 0 if len(volumes) > 1 else -1 if header.components > 1 else float("nan")
        meta = {
            MetaKeys.AFFINE: header.affine.copy(),
            MetaKeys.ORIGINAL_AFFINE: header.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(header.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: channels,
        }
        return np.stack(volumes) if len(volumes) > 1 else volumes[0], meta


def _check_same_space(name: str, header: ScanHeader, other: ScanHeader) -> None:
    """Refuse a channel that does not lie on the first one."""
    if header.components > 1 or other.components > 1 or header.shape != other.shape:
        expected, found = (" x ".join(map(str, (*each.shape, each.components))) for each in (header, other))
        raise BadScanError(name, "channel of another shape", f"expected {expected} as the first, found {found}")
    apart = corner_distance(header.shape, header.affine, other.affine)
    if apart > TOLERANCE * min(header.spacing):
        detail = f"expected the voxels of the first channel, found them up to {apart:.3g} mm away"
        raise BadScanError(name, "channel in another space", detail)
