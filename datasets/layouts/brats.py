# SPDX-License-Identifier: Apache-2.0
"""The raw layouts of BraTS from 2012 to now: four MR sequences a case, found by their names, split by patient."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ...transforms.brats_regions import BRATS_LABELS, brats_sub_challenge, check_brats_convention
from ..datalist import DatasetSummary, ScanRecord
from ..io.file_walk import find_files
from ..splits import RULE, add_split_arguments, split_patients
from .case_checks import found_case

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


def list_brats(
    root: str | Path,
    modalities: Sequence[str] = MODALITIES,
    convention: str = "auto",
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = False,
    expected: str | None = None,
) -> DatasetSummary:
    """Find the cases of BraTS, check their headers, and split them by patient.

    Args:
        root: folder of the cases, see :func:`find_cases`.
        modalities: sequences to list, in the order of the channels; the paper has ``("flair",)``.
        convention: what the labels mean, a key of :data:`~models_genesis.transforms.brats_regions.BRATS_LABELS`;
            ``"auto"`` tells the years and sub-challenges by the names of the files, but not the gliomas after treatment
            of 2024 and later (``"2024"``), and the children's tumours only where a folder's name has the year.
        validation_fraction: share of the patients with labels for validation.
        test_fraction: share of the patients with labels for testing.
        seed: seed of the split.
        progress: whether to show a progress bar.
        expected: the convention to take with ``"auto"`` where the names allow it.

    Returns:
        All cases, those left out with the reason, such as a missing sequence. Cases of patients without any label map
        are for testing and have no ``label``.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds no case, what the labels mean is mixed, unknown or contradicts ``convention``, or for
            an unknown sequence or convention.
    """
    folder = Path(root)
    cases = _cases(folder, modalities)
    convention = _convention(folder, cases, convention, expected)
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
    return DatasetSummary(folder, scans, notes, header)


def brats_images(root: str | Path, modalities: Sequence[str] = MODALITIES) -> list[ScanRecord]:
    """Find the images of BraTS cases, whatever their labels mean: for inference.

    Args:
        root: folder of the cases, see :func:`find_cases`.
        modalities: sequences to list, in the order of the channels.

    Returns:
        All cases, those that lack a sequence or are broken with the reason.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds no case, or for an unknown sequence.
    """
    folder = Path(root)
    return [_check(folder, case, modalities, "testing") for case in _cases(folder, modalities)]


def _cases(folder: Path, modalities: Sequence[str]) -> list[Case]:
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
    return cases


def _convention(root: Path, cases: Sequence[Case], convention: str, expected: str | None = None) -> str:
    """Tell what the labels mean; all cases of a list must mean the same."""
    labelled = [case for case in cases if "seg" in case.files] or list(cases)
    paths = [case_path(root, case) for case in labelled]
    if convention != "auto":
        if convention not in BRATS_LABELS:
            raise ValueError(f"convention: expected 'auto' or one of {list(BRATS_LABELS)}, found {convention!r}.")
        for path in paths:
            check_brats_convention(path, convention)
        return convention
    named = [brats_sub_challenge(path) for path in paths]
    if all(expected in (possible or (case.convention,)) for case, (_, possible) in zip(labelled, named, strict=True)):
        return str(expected)
    found: dict[str, str] = {}
    for case, path, (name, possible) in zip(labelled, paths, named, strict=True):
        _check_meaning(path, case, name, possible)
        # gliomas before treatment are the older and larger set; a cavity in them is refused when it is met
        found.setdefault(case.convention if name in ("", "GLI") else possible[0], case.name)
    if set(found) == {"2023", "2024"}:  # the same but for the cavity, which 2023 has not
        return "2024"
    if len(found) > 1:
        names = ", ".join(f"{name} ({each})" for each, name in sorted(found.items()))
        raise ValueError(
            f"{root}: expected cases of years and sub-challenges with one meaning of the labels, found {names}."
        )
    return next(iter(found))


def _check_meaning(path: str, case: Case, name: str, possible: Sequence[str]) -> None:
    """Refuse to guess where names leave open what the labels mean."""
    if name == "MEN-RT":
        check_brats_convention(path, case.convention)
    if name == "PED" and len(possible) > 1:
        raise ValueError(
            f"{path}: the labels of BraTS-PED mean something else in 2023 (1 non-enhancing, 2 oedema, 3 enhancing) "
            "and from 2024 on (1 enhancing, 2 non-enhancing, 3 cystic, 4 oedema), and the names are the same: give the "
            "convention, 2023 or 2024-ped."
        )
    if not name and (code := re.fullmatch(r"BraTS[-_]([A-Z][A-Z-]*)[-_]\d.*", case.name, re.IGNORECASE)):
        raise ValueError(
            f"{path}: the sub-challenge {code[1]} is not known, nor what its labels mean: give the convention, one of "
            f"{', '.join(BRATS_LABELS)}."
        )


def case_path(root: Path, case: Case) -> str:
    """Give a path with all that tells the sub-challenge: the root's own name and the one above it included."""
    inner = case.files.get("seg", next(iter(case.files.values())))
    return "/".join([*root.resolve().parts[-2:], *Path(inner).parts[:-1], case.name])


def _check(root: Path, case: Case, modalities: Sequence[str], split: str) -> ScanRecord:
    """Decide by its files and headers whether a case is kept."""
    label = case.files.get("seg", "")
    missing = [name for name in modalities if name not in case.files]
    if missing:
        paths = tuple(case.files[name] for name in modalities if name in case.files) or (label or case.name,)
        detail = f"expected {', '.join(modalities)}, found no {', '.join(missing)}"
        return ScanRecord(paths, case.patient, reason="sequence missing", detail=detail, label=label)
    if not label and split != "testing":
        paths = tuple(case.files[name] for name in modalities)
        detail = "expected a label map as other cases of the patient have, found none"
        return ScanRecord(paths, case.patient, reason="label missing", detail=detail)
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


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the BraTS folder that the command line names."""
    names = ("modalities", "convention", "validation_fraction", "test_fraction", "seed")
    return list_brats(arguments.root, progress=True, **{name: getattr(arguments, name) for name in names})
