# SPDX-License-Identifier: Apache-2.0
"""The raw layouts of BraTS from 2012 to now: four MR sequences a case, found by their names, split by patient."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..transforms.brats_regions import BRATS_LABELS
from .case_checks import found_case
from .datalist import FoundScan, Survey
from .file_walk import find_files
from .splits import RULE, add_split_arguments, split_patients

MODALITIES = ("flair", "t1", "t1ce", "t2")
"""The sequences in the order of the channels; what else they were called is in :data:`NAMES`."""

NAMES = {
    "flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", "seg": "seg", "segm": "seg",
    "t2f": "flair", "t1n": "t1", "t1c": "t1ce", "t2w": "t2",
    "mr_flair": "flair", "mr_t1": "t1", "mr_t1c": "t1ce", "mr_t2": "t2", "ot": "seg",
}  # fmt: skip
"""Sequence, or ``seg``, by what the files call it: 2017 to 2022, from 2023 on, and until 2016."""

NIFTI_NAME = re.compile(r"(?P<case>.+?)[_-](?P<part>flair|t1ce|t1|t2|segm?|t2f|t1n|t1c|t2w)\.nii(\.gz)?", re.IGNORECASE)
METAIMAGE_NAME = re.compile(r"VSD\..*\.(?P<part>MR_Flair|MR_T1c|MR_T1|MR_T2|OT)\..*mha", re.IGNORECASE)


@dataclass
class Case:
    """The files of one case.

    Attributes:
        name: the case's name.
        patient: the patient's name: that of the case without the number of the visit.
        convention: what its labels mean by default, a key of ``BRATS_LABELS``.
        files: path of each sequence, and of the label map as ``seg``.
    """

    name: str
    patient: str
    convention: str
    files: dict[str, str] = field(default_factory=dict)


def find_cases(root: Path) -> list[Case]:
    """Find the cases below a folder by the names of their files.

    Args:
        root: folder with, at any depth, ``<id>_flair.nii.gz`` (2017 to 2022), ``<id>-t2f.nii.gz`` (from 2023 on), or
            ``VSD.Brain.*.MR_Flair.*.mha`` in a folder for each sequence (until 2016), and the like.

    Returns:
        The cases in the order of their paths.

    Raises:
        ValueError: When two files stand for the same sequence of a case.
    """
    cases: dict[Path, Case] = {}
    for path in find_files(root, ".nii", ".nii.gz", ".mha"):
        nifti, metaimage = NIFTI_NAME.fullmatch(path.name), METAIMAGE_NAME.fullmatch(path.name)
        match = nifti or metaimage
        if match is None:
            continue
        part, relative = match["part"].lower(), path.relative_to(root)
        key = relative.parent / match["case"] if nifti else _case_folder(relative)
        convention = "2013" if metaimage else "2023" if part in ("t2f", "t1n", "t1c", "t2w") else "2018"
        case = cases.setdefault(key, Case(key.name, _patient(key, bool(metaimage)), convention))
        case.convention = max(case.convention, convention)  # `-seg` tells no year
        if NAMES[part] in case.files:
            raise ValueError(f"{path}: expected one file a sequence, found {case.files[NAMES[part]]} too.")
        case.files[NAMES[part]] = relative.as_posix()
    return _adopt_labels(cases)


def _case_folder(path: Path) -> Path:
    """Name the folder of a case until 2016: that of the file, or the one above where each sequence has a folder."""
    return path.parent.parent if path.parent.name.lower() == path.stem.lower() else path.parent


def _patient(key: Path, metaimage: bool) -> str:
    """Name the patient of a case.

    Cases until 2016 are numbered in each of the folders HG and LG; some years number the visits of a patient:
    ``Brats18_CBICA_AAB_1``, ``BraTS-GLI-00005-001``.
    """
    if metaimage:
        grade = key.parent.name if key.parent.name.upper() in ("HG", "LG", "HGG", "LGG") else ""
        return f"{grade}_{key.name}" if grade else key.name
    if found := re.fullmatch(r"(BraTS-\w+-\d+)-\d+|(Brats1[789]_.+)_\d+", key.name, re.IGNORECASE):
        return found[1] or found[2]
    return key.name


def _adopt_labels(cases: dict[Path, Case]) -> list[Case]:
    """Give a label map of another name to the only case in its folder: 2020 has one such, ``W39_..._Segm.nii``."""
    for key, case in list(cases.items()):
        if list(case.files) == ["seg"]:
            others = [other for at, other in cases.items() if at.parent == key.parent and at != key]
            if len(others) == 1 and "seg" not in others[0].files:
                others[0].files["seg"] = case.files["seg"]
                del cases[key]
    return list(cases.values())


def survey_brats(
    root: str | Path,
    modalities: Sequence[str] = MODALITIES,
    convention: str = "auto",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> Survey:
    """Find the cases of BraTS, check their headers, and split them by patient.

    Args:
        root: folder of the cases, see :func:`find_cases`.
        modalities: sequences to list, in the order of the channels; the paper has ``("flair",)``.
        convention: what the labels mean, a key of :data:`~models_genesis.transforms.brats_regions.BRATS_LABELS`;
            ``"auto"`` tells the years by the names of the files, but not the gliomas after treatment of 2024 and later
            (``"2024"``).
        validation_fraction: share of the patients with labels for validation.
        test_fraction: share of the patients with labels for testing.
        seed: seed of the split.
        progress: whether to show a progress bar.

    Returns:
        All cases, those left out with the reason, such as a missing sequence. Cases of patients without any label map
        are for testing and have no ``label``.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds no case, the years are mixed, or for an unknown sequence or convention.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of BraTS, found no such folder.")
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(f"modalities: expected some of {MODALITIES}, each once, found {tuple(modalities)}.")
    cases = find_cases(folder)
    if not cases:
        raise ValueError(
            f"{folder}: expected cases such as <id>_flair.nii.gz, <id>-t2f.nii.gz or VSD.*.mha, found none."
        )
    convention = _convention(folder, cases, convention)
    labelled = {case.patient for case in cases if "seg" in case.files}
    splits = {case.patient: "testing" for case in cases}
    splits.update(split_patients(labelled, validation_fraction, test_fraction, seed))
    scans = [
        _check(folder, case, modalities, splits[case.patient])
        for case in tqdm(cases, "headers", disable=None if progress else True)
    ]
    unlabelled = sum(scan.split == "testing" and not scan.label for scan in scans)
    header = {
        "name": "BraTS",
        "description": "MR of gliomas of the Brain Tumor Segmentation challenge, skull-stripped",
        "modality": {str(number): name for number, name in enumerate(modalities)},
        "labels": {str(value): name for value, name in BRATS_LABELS[convention].items()},
        "label_convention": convention,
        "in_channels": len(modalities),
        "out_channels": 3,
        "split_rule": RULE,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
    }
    notes = [f"{unlabelled} cases have no label map and are for testing, without label"] if unlabelled else []
    return Survey(folder, scans, notes, header)


def _convention(root: Path, cases: Sequence[Case], convention: str) -> str:
    """Tell what the labels mean; all cases of a list must mean the same."""
    if convention != "auto":
        if convention not in BRATS_LABELS:
            raise ValueError(f"convention: expected 'auto' or one of {list(BRATS_LABELS)}, found {convention!r}.")
        return convention
    found = sorted({case.convention for case in cases})
    if len(found) > 1:
        names = ", ".join(f"{next(case.name for case in cases if case.convention == each)} ({each})" for each in found)
        raise ValueError(f"{root}: expected cases of years with one meaning of the labels, found {names}.")
    return found[0]


def _check(root: Path, case: Case, modalities: Sequence[str], split: str) -> FoundScan:
    """Decide by its files and headers whether a case is kept."""
    label = case.files.get("seg", "")
    missing = [name for name in modalities if name not in case.files]
    if missing:
        paths = tuple(case.files[name] for name in modalities if name in case.files) or (label or case.name,)
        detail = f"expected {', '.join(modalities)}, found no {', '.join(missing)}"
        return FoundScan(paths, case.patient, reason="sequence missing", detail=detail, label=label)
    if not label and split != "testing":
        paths = tuple(case.files[name] for name in modalities)
        detail = "expected a label map as other cases of the patient have, found none"
        return FoundScan(paths, case.patient, reason="label missing", detail=detail)
    images = [case.files[name] for name in modalities]
    return found_case(root, images if len(images) > 1 else images[0], case.patient, split, label)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets brats``."""
    parser.add_argument(
        "--modalities", type=lambda text: tuple(text.split(",")), default=MODALITIES, metavar="NAMES",
        help="sequences in the order of the channels, such as flair for the paper's one",
    )  # fmt: skip
    parser.add_argument("--convention", choices=["auto", *BRATS_LABELS], default="auto", help="what the labels mean")
    add_split_arguments(parser, 0.2, 0.2)


def survey(arguments: argparse.Namespace) -> Survey:
    """Survey the BraTS folder that the command line names."""
    names = ("modalities", "convention", "validation_fraction", "test_fraction", "seed")
    return survey_brats(arguments.root, progress=True, **{name: getattr(arguments, name) for name in names})
