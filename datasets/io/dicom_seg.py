# SPDX-License-Identifier: Apache-2.0
"""A predicted label map and the DICOM series it was made from to a DICOM segmentation object."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser

from .atomic_write import atomic_write
from .dicom_series import chosen_slices
from .json_file import read_json
from .scan_header import SERIES_SEPARATOR, BadScanError, ScanHeader, list_series, read_scan_header, split_series
from .segment_terms import SegmentTerm, read_terms, segment_term

MANUFACTURER = "Models Genesis for MONAI"
TOLERANCE = 0.1
"""How far a voxel of the prediction may lie from its voxel of the series, in voxel sides: far below what could be seen,
far above what headers round off."""


@dataclass(frozen=True)
class SegmentationSource:
    """What made the segmentation, and what its values mean.

    Args:
        labels: name of each predicted value but the background's.
        algorithm: name of the algorithm.
        algorithm_version: its version.
    """

    labels: Mapping[int, str]
    algorithm: str = MANUFACTURER
    algorithm_version: str = "unknown"


def read_bundle_source(bundle: str | Path) -> SegmentationSource:
    """Read from a segmentation bundle what it predicts.

    The config's expressions are evaluated, so the bundle must be trusted.

    Args:
        bundle: folder of the bundle.

    Returns:
        Its name, its version and the values that it predicts by default.

    Raises:
        FileNotFoundError: no such bundle.
        ValueError: the bundle does not segment.
    """
    configs = Path(bundle) / "configs"
    if not (configs / "inference.json").is_file():
        raise FileNotFoundError(f"{bundle}: expected a bundle with configs/inference.json, found none")
    metadata = read_json(configs / "metadata.json")
    parser = ConfigParser()
    parser.read_config(configs / "inference.json")
    parser["bundle_root"] = str(bundle)
    if not {"labels", "regions"} <= set(parser.get()):
        raise ValueError(f"{bundle}: expected a segmentation bundle with labels and regions in its inference.json")
    names = {int(value): str(name) for value, name in parser.get_parsed_content("labels").items()}
    predicted = sorted({int(value) for values in parser.get_parsed_content("regions").values() for value in values})
    return SegmentationSource({value: names[value] for value in predicted}, metadata["name"], metadata["version"])


def write_dicom_seg(
    prediction: str | Path,
    series: str | Path,
    target: str | Path,
    source: SegmentationSource,
    terms: Mapping[str, SegmentTerm] | None = None,
) -> dict[str, int]:
    """Write a label map as a binary DICOM segmentation that refers to the slices of its series.

    Patient, study and frame of reference are those of the series; each label becomes a segment with a name, a coded
    category and type and the algorithm that made it. Slices without any segment are left out,
    unless all are.

    Args:
        prediction: NIfTI label map, of whole numbers, on the voxels of the series; its axes may be turned or flipped.
        series: folder of the DICOM series, ``folder::series`` where it holds several; the beginning of the series'
            identifier will do.
        target: the file to write, whole or not at all.
        source: what the values mean and what predicted them.
        terms: codes for further names, see :func:`~models_genesis.datasets.io.segment_terms.read_terms`.

    Returns:
        Voxels of each segment by name, those without any included.

    Raises:
        ModuleNotFoundError: highdicom is not installed.
        FileNotFoundError: no such prediction.
        BadScanError: the series is missing, one of several, lacks slices, has two at one place or attributes that a
            segmentation needs.
        ValueError: the prediction lies elsewhere than the series, holds no whole numbers, or a value
            without a name; a name without codes.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise ModuleNotFoundError("DICOM segmentations need highdicom: pip install 'models-genesis[dicom]'")
    series = _whole_name(str(series))
    header, slices = read_scan_header(series), _read_slices(series)
    labels = place_on_series(prediction, series, header)
    present = {int(value) for value in np.unique(labels)} - {0}
    if unnamed := present - set(source.labels):
        raise ValueError(
            f"{prediction}: expected the values {sorted({0, *source.labels})}, found {sorted(unnamed)} too"
        )
    numbers = np.zeros(256, np.uint8)  # segment numbers count from 1 without a gap
    for number, value in enumerate(source.labels, start=1):
        numbers[value] = number
    codes = [segment_term(name, terms) for name in source.labels.values()]
    segmentation = _segmentation(slices, numbers[labels], source, codes, series)
    with atomic_write(target) as file:
        segmentation.save_as(file, enforce_file_format=True)
    return {name: int(np.count_nonzero(labels == value)) for value, name in source.labels.items()}


def _whole_name(series: str) -> str:
    """Complete the identifier of a series: ITK's is the series' UID with a tail, which ``SaveImaged`` cuts off."""
    folder, name = split_series(series)
    if not name or not Path(folder).is_dir():
        return series
    found = [each for each in list_series(folder) if each.startswith(name)]
    return f"{folder}{SERIES_SEPARATOR}{found[0]}" if len(found) == 1 else series


def place_on_series(prediction: str | Path, series: str | Path, header: ScanHeader) -> np.ndarray:
    """Turn a label map's axes to those of a series and check that every voxel lies on its own.

    Args:
        prediction: NIfTI label map.
        series: name of the series, for messages.
        header: header of the series.

    Returns:
        Whole numbers, axes in the order columns, rows, slices of the series.

    Raises:
        FileNotFoundError: no such prediction.
        ValueError: another shape, voxels elsewhere, or no whole numbers.
    """
    if not Path(prediction).is_file():
        raise FileNotFoundError(f"{prediction}: expected a predicted label map, found no such file")
    try:
        image: Any = nib.load(prediction)
        values = np.asanyarray(image.dataobj)
    except Exception as error:
        raise ValueError(f"{prediction}: expected a NIfTI label map, found {error}") from error
    if values.ndim != 3:
        raise ValueError(f"{prediction}: expected a label map of three axes, found {values.shape}")
    turn = nib.io_orientation(np.linalg.inv(header.affine) @ image.affine)
    if np.isnan(turn).any():
        raise ValueError(f"{prediction}: expected axes along those of {series}, found the affine {image.affine}")
    affine = image.affine @ nib.orientations.inv_ornt_aff(turn, values.shape)
    values = nib.apply_orientation(values, turn)
    if values.shape != header.shape:
        raise ValueError(f"{prediction}: expected the {header.shape} voxels of {series}, found {values.shape}")
    corners = np.array([[*(np.array(index) * (np.array(values.shape) - 1)), 1] for index in np.ndindex(2, 2, 2)]).T
    distance = np.linalg.norm(((affine - header.affine) @ corners)[:3], axis=0).max()
    if distance > TOLERANCE * min(header.spacing):
        raise ValueError(
            f"{prediction}: expected voxels on those of {series}, found them up to {distance:.3g} mm away "
            f"(origins {affine[:3, 3].round(2).tolist()} and {header.affine[:3, 3].round(2).tolist()} mm, RAS)"
        )
    if not (np.isfinite(values).all() and np.array_equal(values, np.clip(np.floor(values), 0, 255))):
        raise ValueError(f"{prediction}: expected whole numbers from 0 to 255, found {values.min()} to {values.max()}")
    return values.astype(np.uint8)


def _read_slices(series: str) -> list[Any]:
    """Read all but the voxels of each slice, in the order of the third axis."""
    import pydicom

    chosen = chosen_slices(series)
    if any(each.frame is not None for each in chosen):
        raise BadScanError(series, "multi-frame", "expected one file a slice, found a file of several frames")
    slices = [pydicom.dcmread(each.file, stop_before_pixels=True) for each in chosen]
    needed = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    if missing := [tag for tag in needed if any(tag not in each for each in slices)]:
        raise BadScanError(series, "attributes missing", f"expected {', '.join(needed)}, found no {', '.join(missing)}")
    for tag in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if len(values := {str(each[tag].value) for each in slices}) > 1:
            raise BadScanError(series, "mixed slices", f"expected one {tag}, found {sorted(values)}")
    return slices


def _segmentation(
    slices: list[Any], segments: np.ndarray, source: SegmentationSource, terms: list[SegmentTerm], series: str
) -> Any:
    """Put the object together; ``segments`` has the axes columns, rows, slices."""
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=source.algorithm[:64], version=source.algorithm_version, family=codes.DCM.ArtificialIntelligence
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=term.category,
            segmented_property_type=term.type,
            anatomic_regions=None if term.region is None else [term.region],
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=name[:64],
            tracking_uid=generate_uid(prefix=None),
        )
        for number, (name, term) in enumerate(zip(source.labels.values(), terms, strict=True), start=1)
    ]
    try:
        return highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=segments.transpose(2, 1, 0),  # slices, rows, columns
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(prefix=None),
            series_number=int(slices[0].get("SeriesNumber") or 0) + 1000,  # behind the scanner's own
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=source.algorithm[:64],
            software_versions=version("models-genesis"),
            device_serial_number="none",
            content_label="SEGMENTATION",
            content_description="Not for diagnostic use",
            series_description=f"Segmentation: {', '.join(source.labels.values())}"[:64],
        )
    except AttributeError as error:
        raise BadScanError(series, "attributes missing", f"expected those of a DICOM image, found: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dicom-seg``."""
    parser.add_argument(
        "--prediction", required=True, metavar="NIFTI", help="label map written by a bundle's inference"
    )
    parser.add_argument("--series", required=True, metavar="FOLDER", help="the DICOM series, folder or folder::series")
    parser.add_argument("--out", required=True, metavar="DCM", help="the DICOM segmentation to write")
    parser.add_argument("--bundle", metavar="FOLDER", help="the bundle that predicted, for labels, name and version")
    parser.add_argument(
        "--labels", metavar="VALUE=NAME", nargs="+", help="what the values mean, not as the bundle says"
    )
    parser.add_argument("--terms", metavar="JSON", help="codes for names that have none here")


def run(arguments: argparse.Namespace) -> int:
    """Write the segmentation and say what it holds."""
    if not arguments.bundle and not arguments.labels:
        raise ValueError("expected --bundle, or --labels such as 1=liver 2=tumour")
    source = read_bundle_source(arguments.bundle) if arguments.bundle else SegmentationSource({})
    if arguments.labels:
        source = SegmentationSource(_parse_labels(arguments.labels), source.algorithm, source.algorithm_version)
    terms = read_terms(arguments.terms) if arguments.terms else None
    voxels = write_dicom_seg(arguments.prediction, arguments.series, arguments.out, source, terms)
    for name, count in voxels.items():
        print(f"{name}: {count:,} voxels")
    print(f"written: {arguments.out}")
    return 0


def _parse_labels(pairs: list[str]) -> dict[int, str]:
    labels = {}
    for pair in pairs:
        value, separator, name = pair.partition("=")
        if not separator or not value.isdecimal() or not 0 < int(value) < 256 or not name:
            raise ValueError(f"--labels: expected VALUE=NAME such as 1=liver, found {pair!r}")
        labels[int(value)] = name
    return labels
