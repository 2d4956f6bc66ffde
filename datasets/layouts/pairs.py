# SPDX-License-Identifier: Apache-2.0
"""Any two folders, one of images and one of label maps of the same file names, split by patient or by a given fold."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord
from ..io.find_scans import find_scans, without_suffix
from ..io.scan_header import BadScanError, read_scan_header
from ..splits import RULE, SPLITS, add_split_arguments, patient_by_pattern, split_patients
from .case_checks import found_case
from .case_table import CaseTable, file_names, read_case_table
from .fold_column import parse_fold_names, split_by_fold, split_folds
from .label_maps import check_label_maps, name_labels

FRACTIONS = (0.2, 0.0)
"""Shares of the patients for validation and for testing, where no fold is given."""


@dataclass(frozen=True)
class PairRules:
    """How :func:`list_pairs` finds partners, patients, labels and splits.

    Attributes:
        root: folder that the list's paths start from; ``None`` for the one that holds both folders.
        label_suffix: what the label maps' names have behind those of the images, such as ``"_seg"``.
        modality: names of the channels, one for each volume of an image's file.
        label_names: what the label values mean; ``None`` makes up names for those that occur.
        table: CSV file with a row for each case; its columns are named by ``file``, ``patient`` and ``fold``.
        file: column that names the image, or the label map; ``""`` finds it.
        patient: column of the patient.
        fold: column of the fold, which then makes the split.
        patient_pattern: pattern whose first group in the image's path names the patient, where no column does. Without
            either the patient is the DICOM patient identifier, else the case.
        training: folds for training; ``None`` for those that no other split has.
        validation: folds for validation, see :func:`~models_genesis.datasets.layouts.fold_column.split_folds`.
        testing: folds for testing.
        validation_fraction: share of the patients for validation, where no fold is given.
        test_fraction: share of the patients for testing, where no fold is given.
        seed: seed of the split by patient.
    """

    root: str | Path | None = None
    label_suffix: str = ""
    modality: Sequence[str] = ("CT",)
    label_names: Mapping[int, str] | None = None
    table: str | Path | None = None
    file: str = ""
    patient: str = ""
    fold: str = ""
    patient_pattern: str = ""
    training: Sequence[str] | None = None
    validation: Sequence[str] | None = None
    testing: Sequence[str] | None = None
    validation_fraction: float = FRACTIONS[0]
    test_fraction: float = FRACTIONS[1]
    seed: int = 0

    def __post_init__(self) -> None:
        folds = any(each is not None for each in (self.training, self.validation, self.testing))
        if self.table is None and (self.file or self.patient or self.fold):
            raise ValueError("expected a table with the columns for file, patient and fold, found none: give --table.")
        if self.table is not None and not (self.patient or self.fold):
            raise ValueError(f"{self.table}: expected a column to take from it, found none: give --patient or --fold.")
        if folds and not self.fold:
            raise ValueError("expected a column of folds with --train, --validation and --test, found no --fold.")
        if self.fold and ((self.validation_fraction, self.test_fraction) != FRACTIONS or self.seed != 0):
            raise ValueError("expected a split by fold or by shares and seed, found both: leave one out.")
        if self.patient and self.patient_pattern:
            raise ValueError("expected one of --patient and --patient-pattern, found both.")
        if not self.modality or not all(self.modality):
            raise ValueError("modality: expected a name for each channel, found none.")


@dataclass(frozen=True)
class _Case:
    """A case by its name below both folders: its images and label maps, one of each where all is well."""

    images: Sequence[str]
    labels: Sequence[str]


def list_pairs(images: str | Path, labels: str | Path, progress: bool = False, **rules: Any) -> DatasetSummary:
    """Put the images of one folder together with the label maps of another, check both, and split them.

    An image and its label map have the same path below the two folders, whatever their formats: ``a/ct1.nii.gz`` and
    ``a/ct1.mha``.

    Args:
        images: folder of the images, in any format that is read here.
        labels: folder of the label maps; the same one where ``label_suffix`` tells them apart.
        progress: whether to show progress bars.
        rules: see :class:`PairRules`.

    Returns:
        All cases, those left out with the reason: no partner, several files of one name, files that differ in shape or
        place, label maps with values that are not whole or without foreground, no row in the table, no patient or fold
        in it, a patient in folds of several splits; and rows of the table without a file.

    Raises:
        FileNotFoundError: When a folder or the table is missing.
        ValueError: When the rules contradict each other, no image has a label map, the label values have a gap, or for
            a table that cannot be used.
    """
    settings = PairRules(**rules)
    folders = (Path(images), Path(labels))
    for folder, what in zip(folders, ("images", "label maps"), strict=True):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected the folder of the {what}, found no such folder.")
    root = _root(folders, settings.root)
    cases = _find_cases(root, folders, settings.label_suffix)
    table = _read_table(root, folders, cases, settings)
    scans, folds = [], dict[str, str]()
    for name, case in tqdm(cases.items(), "headers", disable=None if progress else True):
        found = _check(root, folders, name, case, settings)
        scans += [_with_row(scan, name, table, settings, folds) for scan in found]
    scans, values = check_label_maps(root, scans, _declared(settings), progress)
    scans, rule, notes = _split(scans, folds, settings)
    scans += [
        _without_file(settings, cell, row.number, row.patient) for cell, row in (table.unmatched if table else ())
    ]
    named = name_labels(values, None if settings.label_names is None else dict(settings.label_names))
    header = {
        "name": root.resolve().name,
        "description": f"images of the folder {folders[0].name} with label maps of the folder {folders[1].name}",
        "modality": {str(number): name for number, name in enumerate(settings.modality)},
        "labels": named,
        "in_channels": len(settings.modality),
        "out_channels": len(named),
        **rule,
    }
    return DatasetSummary(
        root, scans, [*notes, *_notes(scans, table, settings), f"the list's paths start from {root}"], header
    )


def _root(folders: tuple[Path, Path], root: str | Path | None) -> Path:
    """Find the folder that both folders lie in, or check the given one."""
    paths = [os.path.abspath(folder) for folder in folders]
    found = Path(os.path.commonpath(paths) if root is None else os.path.abspath(root))
    if outside := [path for path in paths if not Path(path).is_relative_to(found)]:
        raise ValueError(f"{found}: expected a folder that holds images and label maps, found {outside[0]} outside.")
    return found


def _find_cases(root: Path, folders: tuple[Path, Path], suffix: str) -> dict[str, _Case]:
    """Find images and label maps by their paths below their folders, without suffix."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    if paths[0] == paths[1] and not suffix:
        raise ValueError(f"{folders[0]}: expected two folders, or --label-suffix to tell label maps from images.")
    found: list[dict[str, list[str]]] = [{}, {}]
    for number, (folder, other) in enumerate(zip(paths, paths[::-1], strict=True)):
        for scan in find_scans(folder):
            path = (folder / scan).relative_to(root).as_posix()
            name = without_suffix(scan)
            if other != folder and other.is_relative_to(folder) and (root / path).is_relative_to(other):
                continue  # the one folder lies in the other
            if number == 0 and other == folder and name.endswith(suffix):
                continue
            if number == 1:
                if suffix and not name.endswith(suffix):
                    continue
                name = name.removesuffix(suffix)
            found[number].setdefault(name, []).append(path)
    names = sorted({*found[0], *found[1]})
    if not set(found[0]) & set(found[1]):
        shown = [next(iter(each), "none") for each in found]
        hint = "; these are named as nnU-Net's: try `nnunet`" if shown[0].endswith("_0000") else ""
        raise ValueError(
            f"{folders[0]} and {folders[1]}: expected images and label maps of one name, found none among"
            f" {len(found[0])} images (such as {shown[0]}) and {len(found[1])} label maps (such as {shown[1]}){hint}."
        )
    return {name: _Case(found[0].get(name, []), found[1].get(name, [])) for name in names}


def _check(root: Path, folders: tuple[Path, Path], name: str, case: _Case, rules: PairRules) -> list[ScanRecord]:
    """Give the status of a case by its files and their headers; it has no split yet."""
    files = [*case.images, *case.labels]
    if not case.images or not case.labels:
        missing, folder = ("image", folders[0]) if not case.images else ("label", folders[1])
        expected = name + (rules.label_suffix if missing == "label" else "")
        detail = f"expected {folder.name}/{expected} with the suffix of a scan, found none"
        return [ScanRecord(file, reason=f"{missing} missing", detail=detail) for file in files]
    if len(files) > 2:
        detail = f"expected one image and one label map of this name, found {', '.join(files)}"
        return [ScanRecord(image, reason="repeated", detail=detail, label=case.labels[0]) for image in case.images]
    image, label = files
    patient = _patient(root, name, image, rules)
    return [found_case(root, image, patient, "", label, len(rules.modality))]


def _patient(root: Path, name: str, image: str, rules: PairRules) -> str:
    """Name a patient by the pattern, by the DICOM header, or by the case; a table's column comes later."""
    if rules.patient_pattern:
        return patient_by_pattern(image, rules.patient_pattern)
    if (root / image).is_dir():
        try:
            return read_scan_header(str(root / image)).patient or name
        except BadScanError:
            return name  # the check of the case says why
    return name


def _read_table(
    root: Path, folders: tuple[Path, Path], cases: Mapping[str, _Case], rules: PairRules
) -> CaseTable | None:
    if rules.table is None:
        return None
    names = {
        name: {
            each
            for folder, files in zip(folders, (case.images, case.labels), strict=True)
            for file in files
            for each in file_names(root, folder, file)
        }
        for name, case in cases.items()
    }
    return read_case_table(rules.table, names, rules.file, rules.patient, rules.fold)


def _with_row(
    scan: ScanRecord, name: str, table: CaseTable | None, rules: PairRules, folds: dict[str, str]
) -> ScanRecord:
    """Give a case what its row of the table says of it, and note its fold."""
    if table is None:
        return scan
    row = table.rows.get(name)
    file = Path(str(rules.table)).name
    patient = (row.patient if row else "") if rules.patient else scan.patient
    scan = replace(scan, patient=patient)
    if row and row.fold:
        folds[scan.name] = row.fold
        scan = replace(scan, facts={"fold": row.fold})
    if scan.reason:
        return scan
    if row is None:
        detail = f"expected a row of {file} that names it in the column {table.column}, found none"
        return replace(scan, reason="not in the table", detail=detail)
    for column, cell, what in ((rules.patient, row.patient, "patient"), (rules.fold, row.fold, "fold")):
        if column and not cell:
            detail = f"expected the {what} in the column {column}, found an empty cell in row {row.number} of {file}"
            return replace(scan, reason=f"no {what}", detail=detail)
    return scan


def _without_file(rules: PairRules, cell: str, number: int, patient: str) -> ScanRecord:
    detail = f"expected a file of this name, found it in row {number} of {Path(str(rules.table)).name} only"
    return ScanRecord(cell or f"row {number}", patient, reason="file missing", detail=detail)


def _declared(rules: PairRules) -> list[int] | None:
    return None if rules.label_names is None else sorted({0, *rules.label_names})


def _split(
    scans: Sequence[ScanRecord], folds: Mapping[str, str], rules: PairRules
) -> tuple[list[ScanRecord], dict[str, Any], list[str]]:
    """Split the kept cases, and give the rule as the list says it, and notes."""
    if rules.fold:
        choice = (rules.training, rules.validation, rules.testing)
        column = f"{rules.table}, {rules.fold}"
        split_of = split_folds(column, folds.values(), *choice) if folds else {}
        placed, notes = split_by_fold(scans, folds, split_of)
        rule = {
            split or "left out": [fold for fold, each in split_of.items() if each == split]
            for split in (*SPLITS, "")
            if split in split_of.values()
        }
        if all(each is None for each in choice):
            shown = "; ".join(f"{split} {', '.join(each)}" for split, each in rule.items())
            notes = [f"folds: {shown}; --validation and --test choose others", *notes]
        return placed, {"split_rule": {"table": Path(str(rules.table)).name, "column": rules.fold, **rule}}, notes
    shares = {name: getattr(rules, name) for name in ("validation_fraction", "test_fraction", "seed")}
    splits = split_patients([scan.patient for scan in scans if not scan.reason], **shares)
    placed = [scan if scan.reason else replace(scan, split=splits[scan.patient]) for scan in scans]
    return placed, {"split_rule": RULE, **shares}, []


def _notes(scans: Sequence[ScanRecord], table: CaseTable | None, rules: PairRules) -> list[str]:
    notes = []
    if table is not None and not rules.file:
        notes.append(f"the column {table.column} of {Path(str(rules.table)).name} names the files")
    if not (rules.patient or rules.patient_pattern):
        notes.append("each file counts as a patient, or as its DICOM patient; name patients with --patient-pattern, or"
                     " --table and --patient, if some have several")  # fmt: skip
    if any(scan.split for scan in scans) and not any(scan.split == "validation" for scan in scans):
        notes.append("nothing is left for validation")
    return notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets pairs``."""
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--labels", required=True, metavar="DIR", help="folder of the label maps, of the same names")
    parser.add_argument("--root", metavar="DIR", help="folder that the list's paths start from (default: of both)")
    parser.add_argument("--label-suffix", default="", metavar="TEXT", help="behind the label maps' names, such as _seg")
    parser.add_argument("--modality", nargs="+", default=["CT"], metavar="NAME", help="of each channel: CT, MR, FLAIR")
    parser.add_argument(
        "--label-names", nargs="+", type=_label_name, metavar="VALUE=NAME", help="what the label values mean"
    )
    parser.add_argument("--table", metavar="CSV", help="table with a row for each case")
    parser.add_argument("--file", default="", metavar="COLUMN", help="its column of file names (default: found)")
    parser.add_argument("--patient", default="", metavar="COLUMN", help="its column of patients")
    parser.add_argument("--fold", default="", metavar="COLUMN", help="its column of folds, which then make the split")
    parser.add_argument("--patient-pattern", default="", metavar="REGEX", help="its first group names the patient")
    for split, option in (("training", "--train"), ("validation", "--validation"), ("testing", "--test")):
        parser.add_argument(option, dest=split, type=parse_fold_names, metavar="FOLDS", help=f"folds for {split}")
    add_split_arguments(parser, *FRACTIONS)


def _label_name(text: str) -> tuple[int, str]:
    value, separator, name = text.partition("=")
    if not separator or not value.isdecimal() or not name:
        raise argparse.ArgumentTypeError(f"expected VALUE=NAME such as 1=liver, found {text!r}")
    return int(value), name


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the folders that the command line names."""
    rules = {name: getattr(arguments, name) for name in PairRules.__dataclass_fields__}
    if arguments.label_names is not None:
        rules["label_names"] = {0: "background", **dict(arguments.label_names)}
        if len(dict(arguments.label_names)) < len(arguments.label_names):
            raise ValueError("--label-names: expected one name for each value, found a value twice.")
    return list_pairs(arguments.images, arguments.labels, progress=True, **rules)
