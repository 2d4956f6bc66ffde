# SPDX-License-Identifier: Apache-2.0
"""Scans of a DICOM archive with all their slices or not at all, and labels of theirs under the right names."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import requests
from filelock import FileLock
from monai.transforms import LoadImage
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from pydicom.dataset import Dataset

from models_genesis.datasets import BadScanError, ScanWriter, open_scan, read_scan_header
from models_genesis.datasets.io.atomic_write import atomic_text
from models_genesis.datasets.io.scan_geometry import TOLERANCE, corner_distance

logger = logging.getLogger(__name__)

BROKEN_CONNECTION = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    ConnectionError,
    TimeoutError,
)
"""What says that the archive cannot be reached, of which no single scan is to blame."""

CONVERSION = 2
"""Noted of each scan. One without it was converted by MONAI Label, and is downloaded and read again."""


class WholeScanDatastore(DICOMWebDatastore):
    """MONAI Label's datastore of an archive, which downloads a scan again where it is not whole.

    MONAI Label takes every folder that has a file in it for a downloaded scan, also where the download was interrupted,
    goes on in another process, or is older than slices that the archive has got since. Here a note next to the scan
    says how many files the archive had, and is written last; one process downloads a scan at a time.

    Scans are read as everywhere in this project, and not by MONAI Label, which lays slices that are missing, uneven or
    tilted onto an even grid without a word.

    MONAI Label makes its client of a dozen settings and the datastore of it in one go, so :meth:`of` takes a datastore
    that has been made.
    """

    @classmethod
    def of(cls, made: DICOMWebDatastore) -> WholeScanDatastore:
        """Turn MONAI Label's datastore into this one; it has the same state."""
        made.__class__ = cls
        assert isinstance(made, cls)
        return made

    def get_image_uri(self, image_id: str) -> str:
        """Give the file of a scan, or the folder of its DICOM files where MONAI Label is told not to convert them.

        Args:
            image_id: the series' identifier.

        Returns:
            The path, always the same one; that of MONAI Label is a nameless copy after a download.

        Raises:
            MONAILabelException: when the archive has no such series, or gives other than all of its files, or they
                are not a scan, such as of slices that are missing; see :class:`models_genesis.datasets.BadScanError`.
        """
        series = self.series(image_id)
        folder = Path(os.path.realpath(os.path.join(self._datastore.image_path(), image_id)))
        file, note = folder.with_name(f"{image_id}.nii.gz"), folder.with_name(f"{image_id}.whole.json")
        count = self._count_instances(series)
        with FileLock(folder.with_name(f"{image_id}.lock")):
            if _read(note) != self._state(folder, file, count):
                note.unlink(missing_ok=True)
                self._download(str(series.StudyInstanceUID), image_id, folder, count)
                with atomic_text(note) as stream:
                    json.dump(self._state(folder, file, count), stream)
            elif image_id not in self._datastore.objects:
                self.refresh()  # another process has downloaded it since this one has read the list
        return str(file if self._convert_to_nifti else folder)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Store a label map, a final one as a DICOM segmentation in the archive.

        Args:
            image_id: the series' identifier.
            label_filename: file of the label map.
            label_tag: ``"final"``, or another name for what is kept here only.
            label_info: ``label_info`` in it has the ``name`` of each value that occurs in the label map, the lowest
                first.
            label_id: not used by MONAI Label.

        Returns:
            The name of the label.

        Raises:
            MONAILabelException: when nothing is drawn in a final label map, or there are other than as many names as
                values occur: MONAI Label names by place among those, so a segment would get the name of another.
        """
        names = [each.get("name") for each in label_info.get("label_info") or []]
        if label_tag == DefaultLabelTag.FINAL:
            raw = label_filename.endswith(".bin")
            voxels = np.fromfile(label_filename, np.uint8) if raw else LoadImage(image_only=True)(label_filename)
            values = [int(value) for value in np.unique(np.asarray(voxels)) if value]
            if not values or (names and len(names) != len(values)):
                expected = f"expected a name for each value that occurs in the label map, the lowest first: {values}"
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"{image_id}: {expected}, found {names}")
        return str(super().save_label(image_id, label_filename, label_tag, label_info, label_id))

    def series(self, image_id: str) -> Dataset:
        """Ask the archive for what it says of a series.

        Raises:
            MONAILabelException: when there is no such series.
        """
        answers = self._client.search_for_series(search_filters={"SeriesInstanceUID": image_id})
        found = [each for each in map(Dataset.from_json, answers) if str(each.SeriesInstanceUID) == image_id]
        if not found:
            expected = f"expected the identifier of a series in {self.name()}, found no such series"
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, f"{image_id}: {expected}")
        return found[0]

    def _count_instances(self, series: Dataset) -> int:
        if count := series.get("NumberOfSeriesRelatedInstances"):
            return int(count)
        uids = str(series.StudyInstanceUID), str(series.SeriesInstanceUID)
        return len(self._client.search_for_instances(*uids, get_remaining=True))

    def _state(self, folder: Path, file: Path, count: int) -> dict[str, int | None]:
        """What the note says of a scan: files in the archive and here, and the size of the converted file."""
        files = len(list(folder.iterdir())) if folder.is_dir() else 0
        size = file.stat().st_size if self._convert_to_nifti and file.is_file() else None
        return {"instances": count, "files": files, "size": size, "conversion": CONVERSION}

    def _download(self, study: str, image_id: str, folder: Path, count: int) -> None:
        if folder.exists():
            logger.warning("%s: was not downloaded as a whole, or has changed in the archive; once more", image_id)
            shutil.rmtree(folder)
        dicom_web_download_series(study, image_id, str(folder), self._client, self._fetch_by_frame)
        files = sorted(folder.iterdir())
        if len(files) != count:
            self._refuse(image_id, folder, f"expected {count} files of the archive, found {len(files)}")
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "scan.nii.gz"
            try:
                if not self._convert_to_nifti:
                    read_scan_header(str(folder))
                    return
                convert(str(folder), made)
            except BadScanError as error:
                self._refuse(image_id, folder, str(error))
            self.add_image(image_id, str(made), self._dicom_info(image_id))

    @staticmethod
    def _refuse(image_id: str, folder: Path, found: str) -> NoReturn:
        shutil.rmtree(folder)
        raise MONAILabelException(MONAILabelError.SERVER_ERROR, f"{image_id}: {found}")


def convert(scan: str, target: Path) -> None:
    """Write a scan as a NIfTI file, on the grid that its header tells.

    Args:
        scan: what :func:`models_genesis.datasets.open_scan` reads, such as a folder of DICOM files.
        target: the file.

    Raises:
        BadScanError: when it cannot be read, or the file's header tells another grid.
    """
    header, read = open_scan(scan)
    voxels = read()
    writer = ScanWriter(output_dtype=voxels.dtype, mark=False)  # a scan, not a result
    writer.set_data_array(voxels, channel_dim=None)
    writer.set_metadata({"affine": header.affine}, resample=False)
    writer.write(target)
    found = read_scan_header(str(target), header.components)
    apart = corner_distance(header.shape, header.affine, found.affine)
    if found.shape != header.shape or apart > TOLERANCE * min(header.spacing):
        expected = f"expected {header.shape} voxels at {header.affine.round(3).tolist()} in the file that it becomes"
        raise BadScanError(scan, "converted", f"{expected}, found {found.shape} at {found.affine.round(3).tolist()}")


def _read(note: Path) -> Any:
    return json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
