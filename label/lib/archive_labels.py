# SPDX-License-Identifier: Apache-2.0
"""Labels of a DICOM archive, by the names of their segments and in the space of their scan.

MONAI Label takes the number of a segment for its value and gives back no more slices than have a label. But an archive
numbers the segments of each segmentation from 1, whatever they were in the label map, viewers by the labels of all
models, and a bundle wants label maps that fit its scans.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from lib.whole_scans import BROKEN_CONNECTION
from monailabel.datastore.dicom import DICOMWebDatastore
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
        ``image`` and ``label`` of each case, sorted by scan. A segmentation without any of the names, that does not fit
        its scan, or that cannot be read, is left out and named in the log.

    Raises:
        OSError: when the archive cannot be reached; see :data:`lib.whole_scans.BROKEN_CONNECTION`.
    """
    cases: dict[str, dict[str, str]] = {}
    images = set(datastore.list_images())
    for segmentation in sorted(_segmentations(datastore), key=_age):
        image, series = _scan_of(segmentation), str(segmentation.SeriesInstanceUID)
        if image not in images:
            logger.info("segmentation %s left out: its scan %s is not among those of the studies", series, image)
            continue
        try:
            scan = datastore.get_image_uri(image)
            files = datastore._client.retrieve_series(str(segmentation.StudyInstanceUID), series)
            if len(files) != 1:
                raise ValueError(f"expected one file in its series, found {len(files)}")
            header = read_scan_header(scan)
            label = place_segments(files[0], header, values)
        except ValueError as error:
            logger.warning("segmentation %s of scan %s left out: %s", series, image, error)
            continue
        except BROKEN_CONNECTION:
            raise
        except Exception:  # of one broken scan or segmentation, which must not keep the others from being learned from
            logger.exception("segmentation %s of scan %s left out, for one of them could not be read", series, image)
            continue
        target = Path(scan).parent / "segmentations" / bundle / f"{image}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(label, header.affine), target)
        cases[image] = {"image": scan, "label": str(target)}
    return [cases[image] for image in sorted(cases)]


def _segmentations(datastore: DICOMWebDatastore) -> list[Dataset]:
    """Headers of all segmentations that say of what; others are named in the log."""
    client = datastore._client
    headers = []
    for each in client.search_for_series(search_filters={"Modality": "SEG"}):
        series = Dataset.from_json(each)
        try:
            metadata = client.retrieve_series_metadata(str(series.StudyInstanceUID), str(series.SeriesInstanceUID))
            header = Dataset.from_json(metadata[0])
            _scan_of(header)
        except BROKEN_CONNECTION:
            raise
        except Exception as error:  # see above
            reason = f"{type(error).__name__}: {error}"
            logger.warning("segmentation %s left out: %s", series.get("SeriesInstanceUID"), reason)
            continue
        headers.append(header)
    return headers


def _scan_of(segmentation: Dataset) -> str:
    """Give the identifier of the series that a segmentation is of."""
    referenced = _need(segmentation, "ReferencedSeriesSequence", "the segmentation")[0]
    return str(_need(referenced, "SeriesInstanceUID", "its ReferencedSeriesSequence"))


def _age(segmentation: Dataset) -> tuple[str, str, str]:
    """What sorts the oldest first; OHIF writes UTC, and dcmqi the time of the server, so that should be UTC, too."""
    date, time = (str(segmentation.get(f"Content{what}", "")) for what in ("Date", "Time"))
    return date, time, str(segmentation.SeriesInstanceUID)


def place_segments(segmentation: Any, header: ScanHeader, values: Mapping[str, int]) -> NDArray[np.uint8]:
    """Draw the segments of a DICOM segmentation into the space of its scan.

    A slice without a frame has nothing drawn on it: OHIF, dcmqi and highdicom leave out empty frames, so a gap between
    slices is nothing odd. Within a frame each pixel must be a voxel of the scan.

    Args:
        segmentation: the whole dataset, binary.
        header: of the scan.
        values: values of the label map by name; the case of letters does not count. Segments of other names are left
            out.

    Returns:
        The label map, of the shape of the scan.

    Raises:
        ValueError: when it is not binary, lacks what a segmentation has, nothing is drawn in segments of these names,
            two of them overlap, or the pixels of a frame are not voxels of a slice of the scan.
    """
    kind = str(_need(segmentation, "SegmentationType", "the segmentation"))
    if kind != "BINARY":  # the pixels of others are shares of 255, or numbers of segments
        raise ValueError(f"expected a SegmentationType of BINARY, found {kind}")
    known = {name.casefold(): value for name, value in values.items()}
    names = {
        int(_need(each, "SegmentNumber", "each segment")): str(_need(each, "SegmentLabel", "each segment"))
        for each in _need(segmentation, "SegmentSequence", "the segmentation")
    }
    wanted = {number: known[name.casefold()] for number, name in names.items() if name.casefold() in known}
    label = np.zeros(header.shape[:3], np.uint8)
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    described = _need(segmentation, "PerFrameFunctionalGroupsSequence", "the segmentation")
    if len(described) != len(frames):
        raise ValueError(f"expected a description of each of {len(frames)} frames, found {len(described)}")
    shared = segmentation.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for number, (frame, own) in enumerate(zip(frames, described, strict=True), 1):
        groups = _Groups(own, shared[0], number)
        value = wanted.get(int(groups.find("SegmentIdentificationSequence", "ReferencedSegmentNumber")))
        if value is None:
            continue
        to_voxels = np.linalg.inv(header.affine) @ _frame_affine(groups)
        steps = to_voxels[:3, :2]
        whole = np.abs(np.rint(steps)).astype(int)
        along_axes = whole.sum(0).tolist() == [1, 1] and whole.sum(1).max() == 1
        if not along_axes or np.abs(steps - np.rint(steps)).max() > 0.01:
            expected = f"expected columns and rows of frame {number} to be one voxel apart along two axes of its scan"
            raise ValueError(f"{expected}, found steps of {(steps.T.round(3) + 0.0).tolist()} voxels")
        rows, columns = np.nonzero(frame)
        index = (to_voxels @ _homogeneous(columns, rows))[:3].T
        voxels = np.rint(index).astype(int)
        outside = (voxels < 0).any() or (voxels >= label.shape).any()
        if outside or np.abs(index - voxels).max(initial=0.0) > 0.05:
            raise ValueError(f"expected frame {number} to lie on voxels of its scan, found it at {index[:1].tolist()}")
        index_of_all = tuple(voxels.T)
        if (label[index_of_all] != 0).any():
            raise ValueError(f"expected segments that do not overlap, found that frame {number} overlaps another")
        label[index_of_all] = value
    if not label.any():  # OHIF writes an empty segment for each label of each model
        found = sorted(names.values())
        raise ValueError(f"expected something drawn in segments of the names {sorted(values)}, found segments {found}")
    return label


@dataclass(frozen=True)
class _Groups:
    """The functional groups of a frame, and those of all frames."""

    own: Dataset
    shared: Dataset
    number: int

    def find(self, sequence: str, keyword: str) -> Any:
        """Find an attribute in a group of the frame, or else of all frames."""
        group = self.own.get(sequence) or self.shared.get(sequence)
        if not group:
            raise ValueError(f"expected a {sequence} of frame {self.number}, found none")
        return _need(group[0], keyword, f"the {sequence} of frame {self.number}")


def _need(item: Dataset, keyword: str, owner: str) -> Any:
    """Give an attribute that must be there."""
    value = item.get(keyword)
    if value is None or value == "" or (isinstance(value, Sequence) and not len(value)):
        raise ValueError(f"expected a {keyword} of {owner}, found none")
    return value


def _frame_affine(groups: _Groups) -> NDArray[np.float64]:
    """Column, row and 0 of a frame to mm in RAS."""
    spacing = np.array(groups.find("PixelMeasuresSequence", "PixelSpacing"), np.float64)
    axes = np.array(groups.find("PlaneOrientationSequence", "ImageOrientationPatient"), np.float64).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    affine[:3, 3] = np.array(groups.find("PlanePositionSequence", "ImagePositionPatient"), np.float64)
    return np.asarray(LPS_TO_RAS @ affine, np.float64)


def _homogeneous(columns: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([columns, rows, np.zeros_like(rows), np.ones_like(rows)])
