# SPDX-License-Identifier: Apache-2.0
"""LIDC-IDRI to nodule cubes with the readers' consensus, from DICOM and XML or from ready cubes, split by patient."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord
from ..io.csv_file import read_csv
from ..io.dicom_series import chosen_slices, load_slices
from ..io.file_walk import find_files
from ..io.scan_header import BadScanError, ScanHeader, read_scan_header, root_cause_message
from ..splits import RULE, add_split_arguments, split_patients
from .image_folder import find_scans
from .lidc_cubes import (
    CUBE_SIZE,
    READY_AFFINE,
    Cube,
    CubeRules,
    cube_bounds,
    cube_mark,
    cut_series_cube,
    has_mark,
    share_in_cube,
    write_cube,
)
from .lidc_nodules import RULE as MATCHING_RULE
from .lidc_nodules import Nodule, consensus, match_outlines, outline
from .lidc_xml import Readings, read_lidc_xml

READY_NAME = "<patient>_*.npz"


@dataclass(frozen=True)
class LidcRules:
    """What :func:`list_lidc` takes for a nodule, and how it cuts and splits.

    Attributes:
        consensus: share of the readers who outlined a nodule that a voxel needs, in (0, 1].
        min_readers: readers who must have outlined a nodule, of up to four.
        cube: size and spacing of the cubes.
        validation_fraction: share of the patients for validation.
        test_fraction: share of the patients for testing.
        seed: seed of the split.
    """

    consensus: float = 0.5
    min_readers: int = 2
    cube: CubeRules = field(default_factory=CubeRules)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.consensus <= 1:
            raise ValueError(f"consensus: expected a share above 0, at most 1, found {self.consensus}.")
        if not 1 <= self.min_readers <= 4:
            raise ValueError(f"min_readers: expected 1 to 4, found {self.min_readers}.")


def list_lidc(
    root: str | Path,
    cubes: str | Path,
    layout: Literal["auto", "dicom", "ready"] = "auto",
    progress: bool = False,
    **rules: Any,
) -> DatasetSummary:
    """Find the nodules of LIDC-IDRI, write a cube and a label map for each, and split them by patient.

    A file that is there already and was made of the same readings by the same rules is not written again, so an
    interrupted run goes on where it stopped.

    Args:
        root: for ``"dicom"``, a folder with CT series and, anywhere in it, the XML files with the readings; for
            ``"ready"``, a folder with ``<patient>_*.npz`` (``image`` and ``mask``, 51 voxels of 1 mm a side) and, if
            there is one, ``labels.csv`` with their ratings.
        cubes: folder for ``images/*.nii.gz`` and ``labels/*.nii.gz``; the data list's paths start from it.
        layout: ``"auto"`` takes ``"ready"`` where there are ``.npz`` files.
        progress: whether to show a progress bar.
        rules: see :class:`LidcRules`.

    Returns:
        All nodules, and all series that give none, those left out with the reason.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds no series or no readings, or a rule is out of range.
    """
    settings = LidcRules(**rules)
    folder, out = Path(root), Path(cubes)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of LIDC-IDRI, found no such folder.")
    ready, notes = sorted(folder.glob("*.npz")), list[str]()
    if layout == "ready" or (layout == "auto" and ready):
        if not ready:
            raise ValueError(f"{folder}: expected ready cubes {READY_NAME}, found none.")
        scans = list(_ready_cubes(folder, ready, out, progress))
    else:
        readings, notes = find_readings(folder)
        scans = list(_dicom_cubes(folder, readings, notes, out, settings, progress))
    patients = [scan.patient for scan in scans if not scan.reason]
    splits = split_patients(patients, settings.validation_fraction, settings.test_fraction, settings.seed)
    scans = [scan if scan.reason else replace(scan, split=splits[scan.patient]) for scan in scans]
    header = {
        "name": "LIDC-IDRI nodules",
        "description": "CT cubes around lung nodules with the consensus of the readers (doi 10.7937/K9/2015.LO9QL9SX)",
        "licence": "CC BY 3.0",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "nodule"},
        "in_channels": 1,
        "out_channels": 2,
        **({} if ready and layout != "dicom" else _made(settings)),
        "split_rule": RULE,
        "seed": settings.seed,
        "validation_fraction": settings.validation_fraction,
        "test_fraction": settings.test_fraction,
    }
    return DatasetSummary(out, scans, notes, header)


def _made(rules: LidcRules) -> dict[str, Any]:
    return {
        "nodules": {
            "matching": MATCHING_RULE,
            "consensus": rules.consensus,
            "min_readers": rules.min_readers,
            "size": list(rules.cube.size),
            "spacing": "native" if rules.cube.spacing is None else list(rules.cube.spacing),
        }
    }


def find_readings(root: Path) -> tuple[dict[str, Readings], list[str]]:
    """Read the XML files below a folder.

    Args:
        root: the folder; XML files of another kind are passed over.

    Returns:
        The readings by DICOM series identifier, and a note on each file that is broken, on ratings that were left out,
        and on several files of one series: where they say the same the first counts, else none.
    """
    found: dict[str, Readings] = {}
    sources: dict[str, Path] = {}
    contradicted: set[str] = set()
    notes = []
    for path in find_files(root, ".xml"):
        try:
            readings = read_lidc_xml(path)
        except ValueError as error:
            notes.append(f"not read: {error}")
            continue
        if readings is None:
            continue
        notes += readings.notes
        series = readings.series
        if series not in found:
            found[series], sources[series] = readings, path
        elif _same_readings(found[series], readings):
            notes.append(f"{path}: the same readings as {sources[series]}, which counts")
        else:
            notes.append(
                f"{path}: other readings of the series {series} than {sources[series]}: neither counts; remove one"
            )
            contradicted.add(series)
    return {series: readings for series, readings in found.items() if series not in contradicted}, notes


def _same_readings(one: Readings, other: Readings) -> bool:
    def content(readings: Readings) -> list[Any]:
        return [
            (each.reader, each.ratings, [(c.slice, c.inclusion, c.points.tolist()) for c in each.contours])
            for each in readings.nodules
        ]

    return one.readers == other.readers and content(one) == content(other)


def _dicom_cubes(
    root: Path, readings: Mapping[str, Readings], notes: Sequence[str], out: Path, rules: LidcRules, progress: bool
) -> Iterator[ScanRecord]:
    """List the CT series below a folder and write the cubes of each."""
    series = list(find_scans(root))
    if not readings or not series:
        raise ValueError(
            f"{root}: expected CT series in DICOM and XML files with readings (or ready cubes {READY_NAME}),"
            f" found {len(series)} series and {len(readings)} files with readings."
            + "".join(f"\n  {note}" for note in notes[:10])
        )
    for scan in tqdm(series, "series", disable=None if progress else True):
        yield from _series_cubes(root, scan, readings, out, rules)


def _series_cubes(
    root: Path, scan: str, readings: Mapping[str, Readings], out: Path, rules: LidcRules
) -> Iterator[ScanRecord]:
    path = os.path.normpath(root / scan)
    try:
        header = read_scan_header(path)
        if header.modality != "CT":
            yield ScanRecord(
                scan, header.patient, "", "other modality", f"expected CT, found {header.modality or 'none'}"
            )
            return
        if header.series not in readings:
            detail = f"expected one XML file of the series {header.series}, found none that counts"
            yield ScanRecord(scan, header.patient, reason="no readings", detail=detail)
            return
        nodules = find_nodules(readings[header.series], header, rules.consensus)
    except BadScanError as error:
        yield ScanRecord(scan, reason=error.reason, detail=error.detail)
        return
    except ValueError as error:
        yield ScanRecord(scan, header.patient, reason="readings do not fit", detail=str(error))
        return
    if not nodules:
        detail = "expected a nodule of 3 mm or more, found none outlined"
        yield ScanRecord(scan, header.patient, reason="no nodule", detail=detail)
    for number, nodule in enumerate(nodules):
        yield _nodule_cube(f"{scan}, nodule {number}", path, header, number, nodule, out, rules)


def find_nodules(readings: Readings, header: ScanHeader, level: float = 0.5) -> list[Nodule]:
    """Match the outlines of a series and take the consensus of each nodule.

    Args:
        readings: the series' XML.
        header: the series' header.
        level: see :func:`~models_genesis.datasets.layouts.lidc_nodules.consensus`.

    Returns:
        The nodules in the order of their first outlines.

    Raises:
        ValueError: When an outline lies outside of the series.
    """
    slices = {identifier: index for index, identifier in enumerate(header.slices)}
    outlines = [outline(reading, slices) for reading in readings.nodules]
    for each in outlines:
        if len(each.inside) and (each.inside.min() < 0 or (each.inside.max(0) >= header.shape).any()):
            found = each.inside.max(0).tolist()
            raise ValueError(f"expected outlines within {header.shape} voxels, found one up to {found}.")
    groups = match_outlines(outlines, header.spacing)
    return [consensus([outlines[index] for index in group], level) for group in groups]


def _nodule_cube(
    name: str, path: str, header: ScanHeader, number: int, nodule: Nodule, out: Path, rules: LidcRules
) -> ScanRecord:
    """Write a nodule's cube, unless it is there or does not count."""
    if nodule.readers < rules.min_readers:
        detail = f"expected at least {rules.min_readers}, found {nodule.readers}"
        return ScanRecord(name, header.patient, reason="too few readers", detail=detail)
    if not len(nodule.voxels):
        detail = f"expected voxels that {rules.consensus:.0%} of {nodule.readers} readers share, found none"
        return ScanRecord(name, header.patient, reason="no consensus", detail=detail)
    stem = f"{header.patient}_{header.series.rpartition('.')[2][-8:]}_nodule{number:02d}"
    image, label = f"images/{stem}.nii.gz", f"labels/{stem}.nii.gz"
    bounds = cube_bounds(nodule.voxels, header.shape, header.spacing, rules.cube)
    mark = cube_mark(header.series, header.affine, header.slices, nodule.voxels, bounds, rules.cube)
    if not (has_mark(out / image, mark) and has_mark(out / label, mark)):
        slices = chosen_slices(path)
        try:
            cube = cut_series_cube(
                lambda first, last: load_slices(path, slices[first:last]),
                header.affine,
                nodule.voxels,
                bounds,
                rules.cube,
            )
        except BadScanError as error:
            return ScanRecord(name, header.patient, reason=error.reason, detail=error.detail)
        write_cube(out, image, label, cube, mark)
    volume = len(nodule.voxels) * abs(float(np.linalg.det(header.affine[:3, :3])))
    facts = {
        "readers": nodule.readers,
        "volume_mm3": round(volume, 1),
        "diameter_mm": round((6 * volume / np.pi) ** (1 / 3), 2),
        "share_in_cube": round(share_in_cube(nodule.voxels, bounds), 4),
        **nodule.ratings,
    }
    spacing = rules.cube.spacing or header.spacing
    geometry = {
        "shape": " x ".join(map(str, rules.cube.size)),
        "spacing": " x ".join(f"{side:.4g}" for side in spacing),
    }
    return ScanRecord(image, header.patient, label=label, facts=facts, **geometry)


def _ready_cubes(root: Path, files: Sequence[Path], out: Path, progress: bool) -> Iterator[ScanRecord]:
    """Write ready cubes as NIfTI; the number before the first underscore is the patient."""
    table = root / "labels.csv"
    rows: dict[str, dict[str, str]] = {}
    if table.is_file():
        rows = {row["name"]: row for row in read_csv(table, ("name",), "the ratings of the cubes")}
    for path in tqdm(files, "cubes", disable=None if progress else True):
        yield _ready_cube(path, rows.get(path.stem, {}), out)


def _ready_cube(path: Path, row: Mapping[str, str], out: Path) -> ScanRecord:
    patient = path.stem.partition("_")[0]
    facts = {name: float(value) for name, value in row.items() if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value)}
    facts.pop("patient_index", None)
    if not patient.isdigit():
        return ScanRecord(path.name, reason="no patient", detail=f"expected {READY_NAME}, found no number")
    try:
        content = np.load(path)
        image, mask = content["image"], content["mask"]
    except Exception as error:  # bytes of any kind raise errors of any kind
        return ScanRecord(
            path.name,
            patient,
            reason="unreadable",
            detail=f"expected image and mask, found {root_cause_message(error)}",
        )
    if image.shape != (51, 51, 51) or mask.shape != image.shape:
        detail = f"expected image and mask of 51 x 51 x 51 voxels, found {image.shape} and {mask.shape}"
        return ScanRecord(path.name, patient, reason="other shape", detail=detail)
    if image.dtype != np.int16 or not np.isin(mask, (0, 1)).all() or not mask.any():
        detail = f"expected int16 and a mask of 0 and 1, found {image.dtype} and values {np.unique(mask)[:5].tolist()}"
        return ScanRecord(path.name, patient, reason="no nodule", detail=detail)
    names = (f"images/{path.stem}.nii.gz", f"labels/{path.stem}.nii.gz")
    cube = Cube(image, mask.astype(np.uint8), READY_AFFINE)
    mark = cube_mark(image, cube.label, READY_AFFINE)
    if not all(has_mark(out / name, mark) for name in names):
        write_cube(out, *names, cube, mark)
    return ScanRecord(names[0], patient, label=names[1], facts=facts, shape="51 x 51 x 51", spacing="1 x 1 x 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets lidc``."""
    rules = LidcRules()
    parser.add_argument("--cubes", metavar="DIR", help="folder for the cubes (default: that of --out)")
    parser.add_argument("--layout", choices=["auto", "dicom", "ready"], default="auto", help="what --root holds")
    parser.add_argument("--size", type=_numbers(int), default=CUBE_SIZE, metavar="X,Y,Z", help="voxels of a cube")
    parser.add_argument(
        "--spacing", type=_numbers(float), metavar="X,Y,Z", help="voxel sides in mm (default: the scan's)"
    )
    parser.add_argument("--consensus", type=float, default=rules.consensus, help="share of the readers a voxel needs")
    parser.add_argument("--min-readers", type=int, default=rules.min_readers, help="readers who outlined the nodule")
    add_split_arguments(parser, rules.validation_fraction, rules.test_fraction)


def _numbers(kind: type) -> Any:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(","))

    parse.__name__ = "numbers"
    return parse


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the LIDC-IDRI folder that the command line names, and write its cubes."""
    names = ("consensus", "min_readers", "validation_fraction", "test_fraction", "seed")
    return list_lidc(
        arguments.root,
        arguments.cubes or Path(arguments.out).parent,
        arguments.layout,
        progress=True,
        cube=CubeRules(arguments.size, arguments.spacing),
        **{name: getattr(arguments, name) for name in names},
    )
