# SPDX-License-Identifier: Apache-2.0
"""Any folder tree of scans, or of pictures and radiographs, surveyed by its headers and split by patient."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datalist import NAME_EXCLUDED, OWN_RESULT, DatasetSummary, ScanRecord, smaller_than
from ..io.find_scans import find_pictures, find_scans, without_suffix
from ..io.picture_file import PICTURE_SUFFIXES
from ..io.radiograph import RADIOGRAPHS
from ..io.scan_header import SCAN_SUFFIXES, SERIES_SEPARATOR, BadScanError, ScanHeader, read_scan_header
from ..io.scan_writer import is_written_here
from ..splits import RULE, patient_by_pattern, split_patients

logger = logging.getLogger(__name__)

LABEL_PATTERN = r"(^|[/_.\-])(segmentations?|seg|labels?|labels(Tr|Ts)|masks?|gt|annotations?)(?=[/_.\-]|\d*\.|\d*$)"
"""What label maps are called in the usual data sets; searched in the relative path, in upper and lower case."""


@dataclass(frozen=True)
class FolderRules:
    """What :func:`list_folder` keeps, and how it splits.

    Attributes:
        spatial_dims: 3 for scans; 2 for images of two dimensions, which are PNG, JPEG and radiographs in DICOM, each
            file an image by itself.
        min_size: least voxels to the right, forward and upward, by default 64, 64 and 32; of images columns and rows,
            by default 64 and 64.
        exclude: pattern of relative paths to leave out, by default :data:`LABEL_PATTERN`; ``""`` for none.
        modality: DICOM modality to keep, several with commas between, or ``"any"``; files that do not say their
            modality are kept. By default CT; of images DX and CR, the radiographs that are read.
        patient_pattern: pattern whose first group in the relative path names the patient. By default the patient is the
            DICOM patient identifier, else the first folder below the one that holds all scans, else the file's name.
        validation_fraction: share of the patients for validation.
        test_fraction: share of the patients for testing.
        seed: seed of the split.
    """

    spatial_dims: int = 3
    min_size: Sequence[int] | None = None
    exclude: str = LABEL_PATTERN
    modality: str | None = None
    patient_pattern: str = ""
    validation_fraction: float = 0.2
    test_fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Fill in what depends on the number of dimensions, and check it."""
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims: expected 2 or 3, found {self.spatial_dims}.")
        if self.min_size is None:
            object.__setattr__(self, "min_size", (64, 64, 32)[: self.spatial_dims])
        if self.modality is None:
            object.__setattr__(self, "modality", ",".join(RADIOGRAPHS) if self.spatial_dims == 2 else "CT")
        if len(self.least) != self.spatial_dims:
            raise ValueError(f"min_size: expected {self.spatial_dims} sizes, found {list(self.least)}.")

    @property
    def least(self) -> tuple[int, ...]:
        """The least size along each axis."""
        return tuple(self.min_size or ())

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities to keep; empty for any."""
        names = tuple(name.strip() for name in (self.modality or "").split(","))
        return () if "any" in names else names


def list_folder(root: str | Path, progress: bool = False, **rules: Any) -> DatasetSummary:
    """Find the scans below a folder, read their headers, and split them by patient.

    Args:
        root: the folder.
        progress: whether to show a progress bar.
        rules: see :class:`FolderRules`.

    Returns:
        All scans found, those left out with the reason.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds no scan, or a rule is out of range.
    """
    settings = FolderRules(**rules)
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of scans, found no such folder.")
    images = (find_scans if settings.spatial_dims == 3 else find_pictures)(folder)
    # each scan as it is found: a folder of DICOM, all of whose headers were read to find it, is still known then
    checked = [_check(folder, image, settings) for image in tqdm(images, "scans", disable=None if progress else True)]
    if not checked:
        expected = ", ".join(SCAN_SUFFIXES if settings.spatial_dims == 3 else PICTURE_SUFFIXES)
        flat = settings.spatial_dims == 3 and next(find_pictures(folder), None)
        hint = f", but {flat}: images of two dimensions are listed with --spatial-dims 2" if flat else ""
        raise ValueError(f"{folder}: expected scans ({expected} or DICOM), found none{hint}.")
    kept = [image for image, _, scan in checked if not scan.reason]
    identifiers = {image: header.patient for image, header, _ in checked if header}
    patients, by_file = _patients(folder, kept, identifiers, settings)
    splits = split_patients(patients.values(), settings.validation_fraction, settings.test_fraction, settings.seed)
    scans = [
        ScanRecord(**{**vars(scan), "patient": patients[image], "split": splits[patients[image]]})
        if image in patients
        else scan
        for image, _, scan in checked
    ]
    header = {
        "name": folder.resolve().name,
        "description": f"scans found below {folder.resolve().name}, split by patient",
        "modality": {"0": settings.modality},
        "split_rule": RULE,
        "seed": settings.seed,
        "validation_fraction": settings.validation_fraction,
        "test_fraction": settings.test_fraction,
    }
    return DatasetSummary(folder, scans, _notes(scans, by_file), header)


def _check(root: Path, image: str, rules: FolderRules) -> tuple[str, ScanHeader | None, ScanRecord]:
    """Decide by its name and header whether a scan is kept."""
    if rules.exclude and re.search(rules.exclude, image, re.IGNORECASE):
        return image, None, ScanRecord(image, reason=NAME_EXCLUDED, detail="matches the pattern of --exclude")
    try:
        header = read_scan_header(os.path.normpath(root / image))
    except BadScanError as error:
        return image, None, ScanRecord(image, reason=error.reason, detail=error.detail)
    if is_written_here(root / image):
        detail = "expected a scan, found a prediction or a restored scan"
        return image, None, ScanRecord(image, reason=OWN_RESULT, detail=detail)
    geometry = ScanRecord.geometry(header)
    reason = detail = ""
    shape = header.ras_shape[: rules.spatial_dims]
    if "LOCALIZER" in header.image_type.upper():
        reason, detail = "localizer", f"DICOM image type {header.image_type}"
    elif rules.modalities and header.modality not in ("", *rules.modalities):
        reason, detail = "other modality", f"expected {rules.modality}, found {header.modality}"
    elif rules.spatial_dims == 3 and shape[2] < rules.least[2]:
        reason, detail = "too few slices", f"expected at least {rules.least[2]}, found {shape[2]}"
    elif small := smaller_than(shape, rules.least):
        reason, detail = "too small", small
    return image, header, ScanRecord(image, reason=reason, detail=detail, **geometry)


def _patients(
    root: Path, images: Sequence[str], identifiers: dict[str, str], rules: FolderRules
) -> tuple[dict[str, str], int]:
    """Name the patient of each scan: by pattern, by DICOM identifier, by folder or by file name, in this order.

    Returns:
        The names, and of how many scans they are names of files.
    """
    folders = [image.split(SERIES_SEPARATOR)[0] for image in images]
    common = os.path.commonpath([os.path.dirname(folder) or "." for folder in folders]) if folders else "."
    patients, by_file = {}, 0
    for image, folder in zip(images, folders, strict=True):
        if rules.patient_pattern:
            patients[image] = patient_by_pattern(image, rules.patient_pattern)
        elif identifiers[image]:
            patients[image] = identifiers[image]
        else:
            below = Path(os.path.relpath(folder, common)).parts or (root.resolve().name,)  # the root is the series
            alone = len(below) == 1 and not (root / folder).is_dir()
            patients[image] = without_suffix(below[0]) if alone else below[0]
            by_file += alone
    return patients, by_file


def _notes(scans: Sequence[ScanRecord], by_file: int) -> list[str]:
    """Point out a split that is probably not what was meant; ``by_file`` scans have no patient but their file."""
    patients = Counter(scan.patient for scan in scans if scan.split)
    notes = []
    if len(patients) == 1:
        notes.append(f"all scans count as one patient ({next(iter(patients))}), so nothing is left for validation;")
    elif patients and patients.most_common(1)[0][1] > max(sum(patients.values()) / 2, 2):
        name, number = patients.most_common(1)[0]
        notes.append(f"{number} of {sum(patients.values())} scans count as one patient ({name});")
    notes = [f"{note} name patients with --patient-pattern if they differ" for note in notes]
    if by_file > 1:
        notes.append(
            f"{by_file} scans count as a patient each, named by their files; name patients with --patient-pattern if"
            " some have several scans, which else may train and validate"
        )
    return notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets folder``."""
    rules = FolderRules()
    parser.add_argument(
        "--spatial-dims", type=int, choices=(2, 3), default=rules.spatial_dims,
        help="3 lists scans; 2 lists pictures (PNG, JPEG) and radiographs (DICOM), each file by itself",
    )  # fmt: skip
    parser.add_argument(
        "--min-size", type=_sizes, metavar="X,Y[,Z]", help="least size in voxels; 64,64,32 or 64,64 where not given"
    )
    parser.add_argument("--exclude", default=rules.exclude, metavar="REGEX", help="relative paths to leave out")
    parser.add_argument(
        "--modality", help="DICOM modality to keep: MR, ... or any, several with commas; CT, or DX,CR, where not given"
    )
    parser.add_argument("--patient-pattern", default="", metavar="REGEX", help="its first group names the patient")
    parser.add_argument("--validation-fraction", type=float, default=rules.validation_fraction)
    parser.add_argument("--test-fraction", type=float, default=rules.test_fraction)
    parser.add_argument("--seed", type=int, default=rules.seed, help="seed of the split")


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the folder that the command line names."""
    names = FolderRules.__dataclass_fields__
    return list_folder(arguments.root, progress=True, **{name: getattr(arguments, name) for name in names})


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise ValueError(f"expected two or three sizes, found {text}")
    return sizes
