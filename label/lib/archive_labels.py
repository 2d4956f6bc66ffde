# SPDX-License-Identifier: Apache-2.0
"""Labels of a DICOM archive, by the names of their segments and in the space of their scan.

MONAI Label takes the number of a segment for its value and gives back no more slices than have a label. But an archive
numbers the segments of each segmentation from 1, whatever they were in the label map, viewers by the labels of all
models, and a bundle wants label maps that fit its scans.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from models_genesis.datasets import ScanHeader, read_scan_header
from models_genesis.datasets.io.scan_geometry import LPS_TO_RAS

logger = logging.getLogger(__name__)


def fetch_cases(datastore: DICOMWebDatastore, values: Mapping[str, int], bundle: str) -> list[dict[str, str]]:
    """Download the labelled scans of an archive, each with its newest segmentation that has a label of the bundle.

    Args:
        datastore: the archive.
        values: values of the label map by name; the case of letters does not count.
        bundle: name of the folder of the label maps.

    Returns:
        ``image`` and ``label`` of each case, sorted by scan. A segmentation without any of the names, or that does not
        fit its scan, is left out and named in the log.
    """
    cases: dict[str, dict[str, str]] = {}
    images = set(datastore.list_images())
    for segmentation in sorted(_segmentations(datastore), key=_age):
        image = str(segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID)
        series = str(segmentation.SeriesInstanceUID)
        if image not in images:
            logger.info("segmentation %s left out: its scan %s is not among those of the studies", series, image)
            continue
        try:
            scan = kept_scan(datastore, image)
            (whole,) = datastore._client.retrieve_series(str(segmentation.StudyInstanceUID), series)
            header = read_scan_header(scan)
            label = place_segments(whole, header, values)
        except ValueError as error:
            logger.warning("segmentation %s of scan %s left out: %s", series, image, error)
            continue
        target = Path(scan).parent / "segmentations" / bundle / f"{image}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(label, header.affine), target)
        cases[image] = {"image": scan, "label": str(target)}
    return [cases[image] for image in sorted(cases)]


def kept_scan(datastore: Datastore, image: str) -> str:
    """Give the file of a scan, of an archive's the one that is kept under its name.

    The first time that MONAI Label downloads a scan it gives a nameless copy in the folder for temporary files instead.

    Args:
        datastore: the studies.
        image: name of the scan.

    Returns:
        Its path.
    """
    datastore.get_image_uri(image)
    return str(datastore.get_image_uri(image))


def _segmentations(datastore: DICOMWebDatastore) -> list[Dataset]:
    """Headers of all segmentations that say of what."""
    client = datastore._client
    found = [Dataset.from_json(each) for each in client.search_for_series(search_filters={"Modality": "SEG"})]
    headers = [
        Dataset.from_json(client.retrieve_series_metadata(str(each.StudyInstanceUID), str(each.SeriesInstanceUID))[0])
        for each in found
    ]
    return [each for each in headers if each.get("ReferencedSeriesSequence")]


def _age(segmentation: Dataset) -> tuple[str, str, str]:
    """What sorts the oldest first."""
    date, time = (str(segmentation.get(f"Content{what}", "")) for what in ("Date", "Time"))
    return date, time, str(segmentation.SeriesInstanceUID)


def place_segments(segmentation: Any, header: ScanHeader, values: Mapping[str, int]) -> NDArray[np.uint8]:
    """Draw the segments of a DICOM segmentation into the space of its scan.

    Args:
        segmentation: the whole dataset, binary.
        header: of the scan.
        values: values of the label map by name; the case of letters does not count. Segments of other names are left
            out.

    Returns:
        The label map, of the shape of the scan.

    Raises:
        ValueError: when nothing is drawn in segments of these names, two of them overlap, or a frame does not lie on a
            slice of the scan.
    """
    known = {name.casefold(): value for name, value in values.items()}
    names = {int(each.SegmentNumber): str(each.SegmentLabel) for each in segmentation.SegmentSequence}
    wanted = {number: known[name.casefold()] for number, name in names.items() if name.casefold() in known}
    label = np.zeros(header.shape[:3], np.uint8)
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for number, frame in enumerate(frames):
        groups = segmentation.PerFrameFunctionalGroupsSequence[number], segmentation.SharedFunctionalGroupsSequence[0]
        value = wanted.get(int(_group(groups, "SegmentIdentificationSequence").ReferencedSegmentNumber))
        if value is None:
            continue
        rows, columns = np.nonzero(frame)
        index = (np.linalg.inv(header.affine) @ _frame_affine(groups) @ _homogeneous(columns, rows))[:3].T
        voxels = np.rint(index).astype(int)
        outside = (voxels < 0).any() or (voxels >= label.shape).any()
        if outside or np.abs(index - voxels).max(initial=0.0) > 0.05:
            raise ValueError(
                f"expected frame {number + 1} to lie on voxels of its scan, found it at {index[:1].tolist()}"
            )
        place = tuple(voxels.T)
        if (label[place] != 0).any():
            raise ValueError(f"expected segments that do not overlap, found that frame {number + 1} overlaps another")
        label[place] = value
    if not label.any():  # OHIF writes an empty segment for each label of each model
        found = sorted(names.values())
        raise ValueError(f"expected something drawn in segments of the names {sorted(values)}, found segments {found}")
    return label


def _group(groups: tuple[Any, ...], keyword: str) -> Any:
    """Find a functional group of the frame, or else of all frames."""
    return next(each[keyword][0] for each in groups if keyword in each)


def _frame_affine(groups: tuple[Any, ...]) -> NDArray[np.float64]:
    """Column, row and 0 of a frame to mm in RAS."""
    spacing = [float(value) for value in _group(groups, "PixelMeasuresSequence").PixelSpacing]
    axes = np.array(_group(groups, "PlaneOrientationSequence").ImageOrientationPatient, np.float64).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    affine[:3, 3] = np.array(_group(groups, "PlanePositionSequence").ImagePositionPatient, np.float64)
    return np.asarray(LPS_TO_RAS @ affine, np.float64)


def _homogeneous(columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
