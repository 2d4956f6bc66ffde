# SPDX-License-Identifier: Apache-2.0
"""Write a scan as a DICOM series, for viewers and archives that take nothing else.

``python tools/write_dicom.py SCAN FOLDER --modality MR`` reads a NIfTI, MetaImage or NRRD file and writes one file a
slice. The same scan gives the same identifiers, so an archive that has it already does not get it twice.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from models_genesis.datasets import ScanReader
from models_genesis.datasets.io.scan_geometry import LPS_TO_RAS

SOP_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}


def write_series(
    folder: Path, volume: NDArray, affine: NDArray[np.float64], modality: str, patient: str, description: str
) -> str:
    """Write a volume as a series of a study that has nothing else.

    Args:
        folder: of the files, which is made; it must not have any files yet, for viewers take a folder for one scan.
        volume: (columns, rows, slices), whole numbers; HU for CT.
        affine: (4, 4), voxel indices to mm in RAS.
        modality: ``"CT"`` or ``"MR"``.
        patient: identifier and name of the patient.
        description: of the study and of the series.

    Returns:
        The series' identifier.

    Raises:
        ValueError: when the volume is not three-dimensional or has values that 16 bits with a sign cannot hold, or the
            affine is sheared, or the folder is not empty.
    """
    if volume.ndim != 3:
        raise ValueError(f"{description}: expected three dimensions, found the shape {volume.shape}")
    values = volume.astype(np.int16)
    if not np.array_equal(values, volume):
        found = f"{volume.dtype} from {volume.min()} to {volume.max()}"
        raise ValueError(f"{description}: expected whole numbers that int16 can hold, found {found}")
    to_lps = LPS_TO_RAS @ affine  # the same both ways
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    axes = to_lps[:3, :3] / spacing
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ValueError(f"{description}: expected axes at right angles, found {axes.T.tolist()}")
    digest = hashlib.sha256(values.tobytes() + affine.tobytes() + f"{modality} {patient} {description}".encode())
    study, series, frame, *instances = (
        generate_uid(entropy_srcs=[digest.hexdigest(), str(number)]) for number in range(3 + values.shape[2])
    )
    folder.mkdir(parents=True, exist_ok=True)
    if found := sorted(folder.iterdir()):
        raise ValueError(f"{folder}: expected an empty folder, found {found[0].name} in it")
    # OHIF 3.10 stores a segmentation mirrored where the numbers of the instances run along the normal of the slices
    along = np.cross(axes[:, 0], axes[:, 1]) @ axes[:, 2] > 0
    for number, instance in enumerate(instances):
        count = len(instances) - number if along else number + 1
        each = _new_file(SOP_CLASSES[modality], instance)
        each.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, for names
        each.StudyInstanceUID, each.SeriesInstanceUID, each.FrameOfReferenceUID = study, series, frame
        each.PatientID = each.PatientName = patient
        each.PatientBirthDate = each.PatientSex = each.AccessionNumber = each.ReferringPhysicianName = ""
        each.StudyID, each.StudyDate, each.StudyTime = "1", "20200101", "120000"
        each.StudyDescription = each.SeriesDescription = description
        each.Modality, each.SeriesNumber, each.InstanceNumber = modality, 1, count
        each.ImageType, each.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "Models Genesis"
        each.PositionReferenceIndicator = ""
        each.ImagePositionPatient = [f"{value:.10g}" for value in (to_lps @ [0, 0, number, 1])[:3]]
        each.ImageOrientationPatient = [f"{value:.10g}" for value in axes[:, :2].T.ravel()]
        each.PixelSpacing = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"]
        each.SliceThickness = each.SpacingBetweenSlices = f"{spacing[2]:.10g}"
        each.Columns, each.Rows = values.shape[:2]
        each.SamplesPerPixel, each.PhotometricInterpretation = 1, "MONOCHROME2"
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 16, 16, 15, 1
        each.WindowCenter, each.WindowWidth = window(values, modality)
        if modality == "CT":
            each.RescaleIntercept, each.RescaleSlope, each.RescaleType = 0, 1, "HU"
        each.PixelData = values[:, :, number].T.astype("<i2").tobytes()
        each.save_as(folder / f"{count:04d}.dcm")
    return str(series)


def window(values: NDArray[np.int16], modality: str) -> tuple[int, int]:
    """Choose centre and width of the grey values that a viewer shows: soft tissue and lung in CT, nearly all in MR.

    Example:
        >>> window(np.arange(101, dtype=np.int16), "MR"), window(np.arange(101, dtype=np.int16), "CT")
        ((50, 99), (-200, 1600))
    """
    if modality == "CT":
        return -200, 1600
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    return round((low + high) / 2), max(round(high - low), 1)


def _new_file(sop_class: str, instance: str) -> FileDataset:
    """Make a file with its header and no content."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # pydicom 2 counts it only where it is
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, PYDICOM_IMPLEMENTATION_UID
    each = FileDataset(None, {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
    each.SOPClassUID, each.SOPInstanceUID = sop_class, instance
    return each


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None takes that of this process.

    Returns:
        0.

    Raises:
        SystemExit: with status 2 and the reason when the scan cannot be read or written.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="the scan's file")
    parser.add_argument("folder", type=Path, help="folder of the series")
    parser.add_argument("--modality", choices=sorted(SOP_CLASSES), default="CT")
    parser.add_argument("--patient", help="identifier (default: the file's name and some digits of its voxels' hash)")
    given = parser.parse_args(arguments)
    name = given.scan.name.split(".")[0]
    try:
        reader = ScanReader()
        volume, header = reader.get_data(reader.read(str(given.scan)))
        affine = np.asarray(header["affine"])
        # files of many patients have one name, such as ct.nii.gz, and an archive would take them for one
        patient = given.patient or f"{name[:50]}-{hashlib.sha256(np.ascontiguousarray(volume)).hexdigest()[:6]}"
        series = write_series(given.folder, np.asarray(volume), affine, given.modality, patient, name[:64])
    except (OSError, ValueError) as error:
        reason = str(error)
        parser.error(reason if str(given.scan) in reason else f"{given.scan}: {reason}")
    print(f"written: {given.folder}, series {series}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
