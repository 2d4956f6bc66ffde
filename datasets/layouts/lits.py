# SPDX-License-Identifier: Apache-2.0
"""The raw layout of LiTS: ``volume-N.nii`` with ``segmentation-N.nii``, split by index as in the paper."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord
from ..io.file_walk import find_files
from ..splits import RULE, add_split_arguments, split_patients
from .case_checks import found_case

LABELS = {0: "background", 1: "liver", 2: "tumour"}
"""The values of LiTS; for the liver alone, count the tumour to it."""

INDICES: Mapping[str, range] = {"training": range(100), "validation": range(100, 115), "testing": range(115, 130)}
"""The paper's 100 / 15 / 15 volumes by index (arXiv:2004.07882); number 130 is in none."""

FILE_NAME = re.compile(r"(?P<test>test-)?(?P<kind>volume|segmentation)-(?P<index>\d+)\.nii(\.gz)?", re.IGNORECASE)


def list_lits(
    root: str | Path,
    split: Literal["index", "patient"] = "index",
    validation_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int = 0,
    progress: bool = False,
) -> DatasetSummary:
    """Find the volumes of LiTS with their segmentations, read the headers, and split them.

    Args:
        root: folder with ``volume-N.nii`` and ``segmentation-N.nii``, or ``.nii.gz``, at any depth.
        split: ``"index"`` takes :data:`INDICES`, ``"patient"`` deals the volumes by seed (each is one patient).
        validation_fraction: share of the labelled volumes for validation, with ``split="patient"``.
        test_fraction: share of the labelled volumes for testing, with ``split="patient"``.
        seed: seed of the split by patient.
        progress: whether to show a progress bar.

    Returns:
        All volumes found, those left out with the reason. Volumes without a segmentation, those of the challenge's test
        among them, are for testing and have no ``label``.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds no volume of LiTS, or for an unknown ``split``.
    """
    folder = Path(root)
    if split not in ("index", "patient"):
        raise ValueError(f"split: expected 'index' or 'patient', found {split!r}.")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of LiTS, found no such folder.")
    volumes, segmentations = _find(folder, "volume"), _find(folder, "segmentation")
    if not volumes:
        raise ValueError(f"{folder}: expected volume-N.nii or volume-N.nii.gz, found none.")
    splits = dict.fromkeys(volumes, "testing")
    labelled = [name for name in volumes if name in segmentations]
    if split == "patient":
        splits.update(split_patients(labelled, validation_fraction, test_fraction, seed))
    else:
        splits.update({name: _split_of(name) for name in labelled})
    scans = []
    for name, (path, *others) in tqdm(volumes.items(), "headers", disable=None if progress else True):
        label = segmentations.get(name, [""])[0]
        scans.append(_case(folder, name, path, label, splits[name]))
        detail = f"expected one volume of this number, found {path} before"
        scans += [ScanRecord(other, name, reason="repeated", detail=detail) for other in others]
    scans += [
        ScanRecord(path, name, reason="volume missing", detail=f"expected volume-{name}, found the segmentation only")
        for name, (path, *_) in segmentations.items()
        if name not in volumes
    ]
    header = {
        "name": "LiTS",
        "description": "CT of the Liver Tumor Segmentation benchmark (competitions.codalab.org/competitions/17094)",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in LABELS.items()},
        "in_channels": 1,
        "out_channels": len(LABELS),
        "split_rule": RULE if split == "patient" else {name: [each[0], each[-1]] for name, each in INDICES.items()},
        "seed": seed,
    }
    return DatasetSummary(folder, scans, _notes(scans), header)


def _find(root: Path, kind: str) -> dict[str, list[str]]:
    """Find files by name, ``"7"`` or ``"test-7"``, in the order of their numbers."""
    found: dict[tuple[bool, int], list[str]] = {}
    for path in find_files(root, ".nii", ".nii.gz"):
        match = FILE_NAME.fullmatch(path.name)
        if match and match["kind"].lower() == kind:
            found.setdefault((bool(match["test"]), int(match["index"])), []).append(path.relative_to(root).as_posix())
    return {f"test-{index}" if test else str(index): found[test, index] for test, index in sorted(found)}


def _split_of(name: str) -> str:
    """Find the split of an index; ``""`` for none."""
    return next((split for split, indices in INDICES.items() if name.isdigit() and int(name) in indices), "")


def _case(root: Path, name: str, path: str, label: str, split: str) -> ScanRecord:
    if split:
        return found_case(root, path, name, split, label)
    detail = f"expected up to {INDICES['testing'][-1]}, found {name}; --split patient takes all"
    return ScanRecord(path, name, reason="index in no split", detail=detail, label=label)


def _notes(scans: Sequence[ScanRecord]) -> list[str]:
    """Point out volumes whose affine says nothing: numbers 28 to 47 of LiTS came so."""
    odd = [scan.name for scan in scans if scan.split and scan.spacing == "1 x 1 x 1"]
    unlabelled = sum(scan.split == "testing" and not scan.label for scan in scans)
    notes = [f"{unlabelled} volumes have no segmentation and are for testing, without label"] if unlabelled else []
    if odd:
        notes.append(
            f"{len(odd)} volumes have voxels of 1 x 1 x 1 mm, which is probably not so (numbers 28 to 47 of LiTS lack"
            f" their spacing): {', '.join(odd[:3])}, ..."
        )
    return notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets lits``."""
    parser.add_argument(
        "--split", choices=["index", "patient"], default="index", help="100 / 15 / 15 by index, or seed"
    )
    add_split_arguments(parser, 0.15, 0.15)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the LiTS folder that the command line names."""
    names = ("split", "validation_fraction", "test_fraction", "seed")
    return list_lits(arguments.root, progress=True, **{name: getattr(arguments, name) for name in names})
