# SPDX-License-Identifier: Apache-2.0
"""The writer of predicted label maps and restored scans."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import NibabelWriter
from monai.data.utils import to_affine_nd
from monai.utils import ImageMetaKey, convert_data_type

from .atomic_write import atomic_path
from .file_hash import hash_of_files
from .nifti_scan import copy_geometry, nifti_affine, read_nifti_header
from .scan_geometry import NIFTI_SUFFIXES, TOLERANCE, BadScanError, corner_distance

logger = logging.getLogger(__name__)

MARK = b"genesis"
"""First word of the description in the header of each file that is written here."""


class ScanWriter(NibabelWriter):
    """MONAI's ``NibabelWriter``, but a file appears whole or not at all, and lies on its scan in every viewer.

    A file on the voxels of a NIfTI scan says where they are in that scan's own words: sform, qform, their codes, voxel
    sides and unit are copied, so that whatever a program makes of the scan, it makes of the prediction. Others get
    sform and qform of scanner coordinates in mm, on which nibabel and ITK agree. A single slice keeps its third axis.

    The header's description says of which scan a file is, as hashes of its path and its bytes, and what its voxels
    were. A file of another scan, which was called alike, is not replaced; one of the same scan is, if that was moved or
    if it was mended. What no such writer wrote, such as the scan itself, a label map drawn by hand, or a prediction
    that was corrected, is never replaced.

    Give it to MONAI as ``SaveImaged(keys="pred", writer="models_genesis.datasets.ScanWriter")``.
    """

    source: str = ""

    def __init__(self, *args: Any, mark: bool = True, **kwargs: Any) -> None:
        """Take MONAI's arguments.

        Args:
            args: passed on to ``NibabelWriter``.
            mark: whether the header says that the file was written here; not for a file that is a scan, such as one
                that was converted or resampled, which is no result to be replaced, nor to be left out of a listing.
            kwargs: passed on to ``NibabelWriter``.
        """
        super().__init__(*args, **kwargs)
        self.mark = mark

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        """Take the voxels, see MONAI's; only axes behind the third are dropped where they have the length 1.

        Args:
            data_array: the voxels.
            channel_dim: axis of the channels, ``None`` for none.
            squeeze_end_dims: whether to drop axes of length 1 behind the third.
            kwargs: passed on to MONAI's.
        """
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        voxels: np.ndarray = convert_data_type(self.data_obj, np.ndarray)[0]
        while squeeze_end_dims and voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        self.data_obj = voxels

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Take the metadata, see MONAI's, and note which scan the voxels are of.

        Without resampling the voxels and their affine are taken as they are. MONAI's own resamples them onto themselves
        and takes the third axis for channels then, so that scans whose first two axes do not span the first two of the
        patient, as those of sagittal and coronal ones, could not be written, or got other voxels by rounding.

        Args:
            meta_dict: metadata of the image.
            resample: whether to resample to the original affine.
            options: passed on to MONAI's.
        """
        self.source = str((meta_dict or {}).get(ImageMetaKey.FILENAME_OR_OBJ, ""))
        if resample:
            super().set_metadata(meta_dict, resample, **options)
            return
        self.affine = self.get_meta_info(meta_dict)[1]
        if self.output_dtype is None and self.data_obj is not None:
            self.output_dtype = convert_data_type(self.data_obj, np.ndarray)[0].dtype

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the image that was given to the writer.

        Args:
            filename: the NIfTI file to write or replace.
            verbose: whether to log the name.
            obj_kwargs: passed on to ``nibabel.Nifti1Image``.

        Raises:
            FileExistsError: when the file is of another scan, or was not written by this class.
        """
        description = _description(self.source)
        _refuse_other_scan(Path(filename), description, self.source)
        affine = to_affine_nd(3, convert_data_type(np.eye(4) if self.affine is None else self.affine, np.ndarray)[0])
        self.data_obj = self.create_backend_obj(self.data_obj, affine, self.output_dtype, **obj_kwargs)
        image: Any = self.data_obj
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = b" ".join([description, _checksum(image)]) if self.mark else b""
        source = self._source_header(image.shape, np.asarray(affine, np.float64))
        if source is not None:
            copy_geometry(source, image.header)
            # nibabel writes what the header says as long as the affine agrees with it, in the header's unit
            image = nib.Nifti1Image(image.dataobj, image.header.get_best_affine(), image.header)
        with atomic_path(filename) as temporary:
            nib.save(image, temporary)
        if verbose:
            logger.info("wrote %s", filename)

    def _source_header(self, shape: tuple[int, ...], affine: np.ndarray) -> Any:
        """Read the header of the scan if the voxels are its own; ``None`` otherwise."""
        if not self.source.lower().endswith(NIFTI_SUFFIXES) or not Path(self.source).is_file():
            return None
        try:
            header = read_nifti_header(self.source)
            theirs = nifti_affine(self.source, header, shape)
        except BadScanError:
            return None  # written over since it was read
        if tuple(int(size) for size in header["dim"][1:4]) != shape[:3]:
            return None
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        return header if corner_distance(shape, theirs, affine) <= TOLERANCE * sides.min() else None


def is_written_here(path: str | Path) -> bool:
    """Say whether a NIfTI file was written by :class:`ScanWriter`: a prediction, or a deformed or restored scan."""
    return _words(path)[:1] == [MARK]


def _words(path: str | Path) -> list[bytes]:
    """Read the words of a NIfTI header's description; none where it cannot be read."""
    if not str(path).lower().endswith(NIFTI_SUFFIXES):
        return []
    try:
        return bytes(read_nifti_header(str(path))["descrip"]).rstrip(b"\0").split(b" ")
    except BadScanError:
        return []


def _description(source: str) -> bytes:
    """Name a scan by hashes of its path and bytes, in what a NIfTI header has room for."""
    content = hash_of_files(source) if source else None
    if content is None:
        return MARK
    path = hashlib.sha256(os.path.abspath(source).encode(errors="surrogateescape")).hexdigest()
    return b" ".join([MARK, path[:24].encode(), content[:24].encode()])


def _checksum(image: Any) -> bytes:
    """Give the checksum of an image's voxels as they are stored, by which a corrected one is known."""
    data = image.dataobj
    stored = data.get_unscaled() if hasattr(data, "get_unscaled") else np.asarray(data, image.get_data_dtype())
    return f"{zlib.crc32(np.asarray(stored, stored.dtype.newbyteorder('<')).tobytes(order='F')):08x}".encode()


def _was_changed(path: Path, words: list[bytes]) -> bool:
    """Say whether a file that was written here has other voxels now; of an earlier version's that is not known."""
    if len(words) not in (2, 4):
        return False
    try:
        return _checksum(nib.load(path)) != words[-1]
    except Exception:  # damaged, in one of many ways
        return True


def _refuse_other_scan(target: Path, description: bytes, source: str) -> None:
    if not target.exists():
        return
    found, ours = _words(target), description.split(b" ")
    is_source = bool(source) and os.path.exists(source) and os.path.samefile(source, target)
    if found[:1] != [MARK] or is_source or _was_changed(target, found):
        raise FileExistsError(
            f"{target}: expected no file, or an earlier result, found one that was not written here or was changed"
            " since, such as a scan or a label map drawn by hand; give another --output_dir, or remove it"
        )
    if len(found) >= len(ours) == 3 and all(was[:24] != now for was, now in zip(found[1:3], ours[1:], strict=True)):
        raise FileExistsError(
            f"{target}: expected a result of {source}, found that of another scan of the same name; give each folder of"
            " scans an --output_dir of its own, or remove the file"
        )
