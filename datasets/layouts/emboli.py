# SPDX-License-Identifier: Apache-2.0
"""Angiograms with masks of their emboli to a candidate table: what FUMPE and CAD-PE have in common."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import LoadImage
from numpy.typing import NDArray
from scipy.spatial import KDTree
from tqdm import tqdm

from ..candidates.table import read_candidates
from ..datalist import DatasetSummary, ScanRecord
from ..io.atomic_write import atomic_text
from ..io.scan_header import BadScanError, read_scan_header, root_cause_message
from ..io.scan_reader import ScanReader
from ..splits import RULE, add_split_arguments, split_patients
from .candidate_list import add_candidates
from .embolus_detector import DetectorRules, Embolus, emboli_of, vessel_candidates

HIT_MM = 3.0
"""A detected candidate no further than this from an embolus shows it."""

MARGIN_MM = 8.0
"""A detected candidate further than this from every embolus shows none; between the two it is left out."""

PLAUSIBLE_HU = (-250.0, 350.0)
"""Most voxels of a mask lie in this range: a mask that does not belong to its scan, or is turned, shows otherwise."""

CANDIDATE_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class", "patient", "lesion", "kind")
ANNOTATION_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm", "lesion")


@dataclass(frozen=True)
class EmbolismCase:
    """An angiogram and where its mask comes from.

    Attributes:
        image: path of the scan relative to the root.
        patient: the patient, who is the series too.
        read_mask: gives the mask, (X, Y, Z) along the scan's axes, or raises OSError or ValueError.
        facts: what else the data list says.
    """

    image: str
    patient: str
    read_mask: Callable[[], NDArray]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Found:
    """What one case gave."""

    scan: ScanRecord
    candidates: list[list[Any]]
    annotations: list[list[Any]]
    missed: int = 0
    between: int = 0
    small: int = 0


def list_emboli(
    root: Path,
    out: Path,
    name: str,
    cases: Sequence[EmbolismCase],
    left_out: Sequence[ScanRecord] = (),
    rules: DetectorRules | None = None,
    min_mm3: float = 8.0,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> DatasetSummary:
    """Make candidates of angiograms with masks: positives of the masks, negatives by a simple detector.

    Each embolus gives a positive candidate at its middle (kind ``mask``); so does each candidate of the detector within
    ``HIT_MM`` of it (kind ``detected``). Those further than ``MARGIN_MM`` from every embolus are negatives, those
    between are left out and counted.

    Args:
        root: folder of the data set.
        out: folder for ``candidates.csv`` and ``annotations.csv``.
        name: what the data list calls the data set.
        cases: the angiograms.
        left_out: scans that have no mask, and the like.
        rules: of the detector, see :func:`~models_genesis.datasets.layouts.embolus_detector.vessel_candidates`.
        min_mm3: least volume of an embolus.
        validation_fraction: share of the patients for validation.
        test_fraction: share of the patients for testing.
        seed: seed of the split.
        progress: whether to show a progress bar.

    Returns:
        All scans, those left out with the reason; the data list names both tables.

    Raises:
        ValueError: When no angiogram can be used, or a share is out of range.
    """
    found = [
        _look_at(root, case, rules or DetectorRules(), min_mm3)
        for case in tqdm(cases, "angiograms", disable=None if progress else True)
    ]
    kept = [case for case in found if not case.scan.reason]
    scans = [case.scan for case in found] + list(left_out)
    if not kept:
        reasons = "; ".join(f"{scan.name}: {scan.reason}: {scan.detail}" for scan in scans[:3])
        raise ValueError(f"{root}: expected angiograms with masks, found none of {len(scans)} ({reasons}).")
    splits = split_patients([case.scan.patient for case in kept], validation_fraction, test_fraction, seed)
    scans = [scan if scan.reason else replace(scan, split=splits[scan.patient]) for scan in scans]
    tables = {
        "candidates": (CANDIDATE_COLUMNS, [row for case in kept for row in case.candidates]),
        "annotations": (ANNOTATION_COLUMNS, [row for case in kept for row in case.annotations]),
    }
    for table, (columns, rows) in tables.items():
        with atomic_text(out / f"{table}.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
    header = {
        "name": name,
        "description": f"CT angiograms of {name} with candidates from its masks and from a simple detector",
        "modality": {"0": "CT"},
        "split_rule": RULE,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "detector": vars(rules or DetectorRules()),
    }
    summary = DatasetSummary(root, scans, _notes(kept), header)
    return add_candidates(summary, read_candidates(out / "candidates.csv"), {"annotations": out / "annotations.csv"})


def _notes(kept: Sequence[_Found]) -> list[str]:
    emboli = sum(len(case.annotations) for case in kept)
    missed = sum(case.missed for case in kept)
    negatives = sum(row[4] == 0 for case in kept for row in case.candidates)
    notes = [
        f"the detector found {emboli - missed} of {emboli} emboli, with {negatives / len(kept):.1f} false ones a scan"
    ]
    between, small = sum(case.between for case in kept), sum(case.small for case in kept)
    if between:
        notes.append(f"{between} candidates between {HIT_MM:g} and {MARGIN_MM:g} mm from an embolus are left out")
    if small:
        notes.append(f"{small} parts of the masks are too small for an embolus")
    return notes


def _look_at(root: Path, case: EmbolismCase, rules: DetectorRules, min_mm3: float) -> _Found:
    """Read a scan and its mask, and find their candidates."""
    path = str(root / case.image)
    base = ScanRecord(case.image, case.patient, facts={"seriesuid": case.patient, **case.facts})
    try:
        header = read_scan_header(path)
        volume = LoadImage(reader=ScanReader, dtype=None, image_only=True)(path)
    except BadScanError as error:
        return _Found(replace(base, reason=error.reason, detail=error.detail), [], [])
    except (OSError, ValueError, RuntimeError) as error:
        return _Found(replace(base, reason="unreadable", detail=root_cause_message(error)), [], [])
    named = str(case.facts.get("mask", "its mask"))
    try:
        mask = case.read_mask()
    except BadScanError as error:
        return _Found(replace(base, reason=f"mask {error.reason}", detail=f"{named}: {error.detail}"), [], [])
    except (OSError, ValueError, RuntimeError) as error:
        return _Found(replace(base, reason="mask unreadable", detail=f"{named}: {root_cause_message(error)}"), [], [])
    hu, affine = np.asarray(volume), np.asarray(volume.affine, np.float64)
    fault = _fault(hu, mask)
    if fault:
        return _Found(replace(base, reason="mask does not fit", detail=f"{fault}, in {named}"), [], [])
    spacing = tuple(float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
    emboli, numbers, small = emboli_of(mask, spacing, min_mm3)
    places = vessel_candidates(hu, spacing, rules)
    candidates: list[list[Any]] = []

    def add(voxel: Sequence[float], lesion: int, kind: str) -> None:
        row = [case.patient, *_lps(voxel, affine), int(lesion > 0), case.patient, lesion or "", kind]
        if row[:4] not in [other[:4] for other in candidates]:
            candidates.append(row)

    for embolus in emboli:
        add(embolus.center, embolus.lesion, "mask")
    lesions, distances = _nearest(numbers, places, affine)
    for place, lesion, distance in zip(places.tolist(), lesions, distances, strict=True):
        if distance <= HIT_MM or distance > MARGIN_MM:
            add(place, int(lesion) if distance <= HIT_MM else 0, "detected")
    hit = set(lesions[distances <= HIT_MM].tolist())
    return _Found(
        replace(base, **ScanRecord.geometry(header)),
        candidates,
        [_annotation(case.patient, embolus, affine) for embolus in emboli],
        missed=sum(embolus.lesion not in hit for embolus in emboli),
        between=int(((distances > HIT_MM) & (distances <= MARGIN_MM)).sum()),
        small=small,
    )


def _fault(hu: NDArray, mask: NDArray) -> str:
    """Say why a mask cannot be that of a scan; ``""`` where it can."""
    if mask.shape != hu.shape:
        return f"expected {' x '.join(map(str, hu.shape))} voxels, found {' x '.join(map(str, mask.shape))}"
    low, high = PLAUSIBLE_HU
    inside = hu[mask > 0]
    if inside.size and not ((inside >= low) & (inside <= high)).mean() > 0.5:
        return f"expected {low:g} to {high:g} HU in most voxels of emboli, found a median of {np.median(inside):g}"
    return ""


def _nearest(
    numbers: NDArray[np.int32], places: NDArray[np.int64], affine: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest embolus of each place, and its distance in mm."""
    voxels = np.argwhere(numbers > 0)
    if not len(voxels) or not len(places):
        return np.zeros(len(places), np.int64), np.full(len(places), np.inf)
    linear = affine[:3, :3].T
    distance, index = KDTree(voxels @ linear).query(places @ linear)
    return numbers[tuple(voxels[index].T)].astype(np.int64), np.asarray(distance)


def _lps(voxel: Sequence[float], affine: NDArray[np.float64]) -> list[float]:
    ras = affine[:3, :3] @ np.asarray(voxel, float) + affine[:3, 3]
    return [round(float(side), 4) for side in ras * (-1, -1, 1)]


def _annotation(uid: str, embolus: Embolus, affine: NDArray[np.float64]) -> list[Any]:
    return [uid, *_lps(embolus.center, affine), round(embolus.diameter_mm, 4), embolus.lesion]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the commands ``fumpe`` and ``cadpe`` have in common."""
    rules = DetectorRules()
    parser.add_argument("--tables", metavar="DIR", help="folder for candidates.csv and annotations.csv (that of --out)")
    parser.add_argument("--min-mm3", type=float, default=8.0, help="least volume of an embolus")
    parser.add_argument("--contrast-hu", type=float, default=rules.contrast_hu, help="blood with contrast, at least")
    parser.add_argument("--max-candidates", type=int, default=rules.max_candidates, help="most detected in a scan")
    add_split_arguments(parser, 0.2, 0.2)


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read what the commands have in common."""
    names = ("min_mm3", "validation_fraction", "test_fraction", "seed")
    return {
        "out": Path(arguments.tables or Path(arguments.out).parent),
        "rules": DetectorRules(contrast_hu=arguments.contrast_hu, max_candidates=arguments.max_candidates),
        **{name: getattr(arguments, name) for name in names},
    }
