# SPDX-License-Identifier: Apache-2.0
"""nnU-Net's raw layout, version 2: everything from its ``dataset.json``, split as nnU-Net would or by patient."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord
from ..io.json_file import read_json
from ..io.scan_header import SCAN_SUFFIXES
from ..splits import RULE, add_split_arguments, patient_by_pattern, split_patients
from .case_checks import found_case
from .fold_column import split_by_fold
from .label_maps import MOST_VALUES, check_label_maps
from .nnunet_splits import FOLD_RULE, cross_validation, find_splits, read_fold

WRITTEN = (".nii.gz", ".nii")
"""File endings that predictions can have; those of data sets in other formats are written with the first."""

DESCRIBED = ("description", "reference", "licence", "release")
"""What is taken over from ``dataset.json`` as it is."""


@dataclass(frozen=True)
class NnunetDataset:
    """What ``dataset.json`` says.

    Attributes:
        path: the file.
        name: the data set's name, by default that of its folder.
        channels: names of the image channels.
        labels: names by value, background first.
        ending: end of the names of all images and label maps.
        cases: images and label of each case where they are listed; ``None`` where ``imagesTr`` tells.
        content: all of the file.
    """

    path: Path
    name: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    ending: str
    cases: Mapping[str, tuple[Sequence[str], str]] | None
    content: Mapping[str, Any]


def is_nnunet_dataset(content: Mapping[str, Any]) -> bool:
    """Tell a ``dataset.json`` of nnU-Net v2 from one of the Decathlon, whose labels are names by number."""
    return "channel_names" in content or "file_ending" in content


def read_nnunet_dataset(path: str | Path) -> NnunetDataset:
    """Read and check ``dataset.json``.

    Args:
        path: the file.

    Returns:
        What it says.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is none of nnU-Net v2, or of a task that the bundles cannot learn: regions, an ignore label,
            label values with a gap, files of another format.
    """
    file = Path(path)
    content = read_json(file, "nnU-Net's description of a data set")
    if not is_nnunet_dataset(content):
        hint = "; it is one of the Decathlon's, try `msd`" if "modality" in content else ""
        raise ValueError(
            f"{file}: expected 'channel_names' and 'file_ending' as nnU-Net v2 has them, found none{hint}."
        )
    ending = content.get("file_ending")
    if ending not in SCAN_SUFFIXES:
        raise ValueError(f"{file}: expected a 'file_ending' among {', '.join(SCAN_SUFFIXES)}, found {ending!r}.")
    name = str(content.get("name") or file.absolute().parent.name)
    cases = None if "dataset" not in content else _listed(file, content["dataset"])
    return NnunetDataset(file, name, _channels(file, content), _labels(file, content), ending, cases, content)


def _channels(file: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    channels = content.get("channel_names")
    if not isinstance(channels, Mapping) or not channels or not all(str(number).isdecimal() for number in channels):
        raise ValueError(f"{file}: expected 'channel_names' as names by number, found {channels!r}.")
    names = {int(number): str(name) for number, name in channels.items()}
    if sorted(names) != list(range(len(channels))):
        raise ValueError(f"{file}: expected 'channel_names' 0, 1, ... without a gap, found {sorted(names)}.")
    return tuple(names[number] for number in range(len(names)))


def _labels(file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Read the labels; refuse what a label map of one class a voxel cannot say, and what would be learned wrongly."""
    labels = content.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        raise ValueError(f"{file}: expected 'labels' as values by name, found {labels!r}.")
    values: dict[int, str] = {}
    for name, value in labels.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) != 1:
            raise ValueError(
                f"{file}: expected a value for each label, found {name!r} as the region {list(value)}: the bundle"
                " learns one class a voxel, not regions; list one label for each value instead."
            )
        value = value[0] if isinstance(value, Sequence) and not isinstance(value, str) else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{file}: expected a whole number for the label {name!r}, found {value!r}.")
        if str(name).casefold() == "ignore":
            raise ValueError(
                f"{file}: expected labels that all can be learned, found the label 'ignore' ({value}): the bundle would"
                " learn it as a class of its own; leave out the voxels or the cases that have it."
            )
        if value in values:
            raise ValueError(
                f"{file}: expected a name for each value, found {values[value]!r} and {name!r} for {value}."
            )
        values[value] = str(name)
    if sorted(values) != list(range(len(values))) or len(values) > MOST_VALUES:
        raise ValueError(
            f"{file}: expected label values 0, 1, 2, ... without a gap, up to {MOST_VALUES - 1}, found"
            f" {sorted(values)[:10]}."
        )
    if values[0].casefold() != "background":
        raise ValueError(f"{file}: expected 'background' as the label of value 0, found {values[0]!r}.")
    return dict(sorted(values.items()))


def _listed(file: Path, listed: Any) -> dict[str, tuple[Sequence[str], str]]:
    """Read the cases that ``dataset.json`` lists itself; variables of the environment count, as in nnU-Net."""
    cases: dict[str, tuple[Sequence[str], str]] = {}
    for name, entry in listed.items() if isinstance(listed, Mapping) else [("", None)]:
        images: Any = entry.get("images") if isinstance(entry, Mapping) else None
        label: Any = entry.get("label") if isinstance(entry, Mapping) else None
        if not isinstance(images, list) or not all(isinstance(each, str) for each in (*images, label)) or "/" in name:
            raise ValueError(
                f"{file}: expected 'dataset' as images and label by case, found {str({name: entry})[:80]}."
            )
        cases[name] = ([_plain(file, each) for each in images], _plain(file, label))
    used = Counter(path for images, _ in cases.values() for path in images)
    if repeated := [path for path, number in used.items() if number > 1]:
        raise ValueError(f"{file}: expected each image once in 'dataset', found {repeated[0]} several times.")
    return cases


def _plain(file: Path, path: str) -> str:
    """Write a path relative to the data set's folder where it lies in it."""
    folder = file.absolute().parent
    full = Path(os.path.normpath(folder / os.path.expandvars(path)))
    return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else full.as_posix()


def list_nnunet(
    root: str | Path,
    fold: int | None = None,
    splits: str | Path | None = None,
    patient_pattern: str = "",
    validation_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> DatasetSummary:
    """Find the cases that ``dataset.json`` describes, check headers and label maps, and split them.

    With a file of splits (``splits``, or ``splits_final.json`` in the data set's folder or in its folder below
    ``$nnUNet_preprocessed``) the fold of it counts; with ``fold`` alone that of nnU-Net's own cross-validation, which
    it makes where there is no such file; without either, patients are dealt by seed.

    Args:
        root: the folder ``DatasetXXX_Name``, with ``dataset.json``, ``imagesTr``, ``labelsTr`` and perhaps
            ``imagesTs``, and ``labelsTs`` if its label maps are known.
        fold: number of the fold, by default 0 where there is a file of splits.
        splits: JSON file of splits.
        patient_pattern: pattern whose first group in a case's name names the patient; by default the case is.
        validation_fraction: share of the patients for validation, without folds.
        seed: seed of the split by patient.
        progress: whether to show progress bars.

    Returns:
        All cases, those left out with the reason. An image of several channels is a list of their files. Each case has
        the name of its ``prediction`` in nnU-Net's form. Those of ``imagesTs`` are for testing.

    Raises:
        FileNotFoundError: When ``dataset.json`` or the file of splits is missing.
        ValueError: When either cannot be used, see :func:`read_nnunet_dataset`, or the fold does not exist.
    """
    folder = Path(root)
    dataset = read_nnunet_dataset(folder / "dataset.json")
    files = find_splits(folder, splits)
    cases = dict(_training_cases(folder, dataset))
    tests = {name: _files(dataset, "imagesTs", "labelsTs", name) for name in _names(folder / "imagesTs", dataset)}
    scans = [
        _check(folder, dataset, name, images, label, patient_pattern)
        for name, (images, label) in tqdm(cases.items(), "headers", disable=None if progress else True)
    ]
    testing = [
        _check(folder, dataset, name, images, label if (folder / label).is_file() else "", patient_pattern)
        for name, (images, label) in tests.items()
    ]
    scans, _ = check_label_maps(folder, [*scans, *testing], list(dataset.labels), progress)
    trained, testing = scans[: len(cases)], scans[len(cases) :]
    if files is not None or fold is not None:
        chosen, rule, more, notes = _by_fold(files, fold or 0, cases)
    else:
        kept = [scan.patient for scan in trained if not scan.reason]
        dealt = split_patients(kept, validation_fraction, 0.0, seed)
        chosen = {name: dealt.get(scan.patient, "") for name, scan in zip(cases, trained, strict=True)}
        rule = {"split_rule": RULE, "seed": seed, "validation_fraction": validation_fraction, "test_fraction": 0.0}
        more, notes = [], []
    split = {scan.name: chosen[name] for name, scan in zip(cases, trained, strict=True)}
    scans, leaks = _place([*trained, *testing], split, bool(patient_pattern))
    scans = [*scans, *more, *_strangers(folder, dataset, cases, tests)]
    header = {
        "name": dataset.name,
        **{name: dataset.content[name] for name in DESCRIBED if name in dataset.content},
        "modality": {str(number): name for number, name in enumerate(dataset.channels)},
        "labels": {str(value): name for value, name in dataset.labels.items()},
        "in_channels": len(dataset.channels),
        "out_channels": len(dataset.labels),
        **rule,
    }
    return DatasetSummary(folder, scans, [*notes, *leaks, *_notes(dataset, cases, testing)], header)


def nnunet_images(root: str | Path) -> list[ScanRecord]:
    """Find the cases of ``imagesTs``: for inference.

    Args:
        root: the data set's folder, with ``dataset.json``.

    Returns:
        All cases, those that lack a channel or are broken with the reason.

    Raises:
        ValueError: When ``dataset.json`` cannot be used.
    """
    folder = Path(root)
    dataset = read_nnunet_dataset(folder / "dataset.json")
    names = _names(folder / "imagesTs", dataset)
    return [_check(folder, dataset, name, _files(dataset, "imagesTs", "", name)[0], "", "") for name in names]


def _names(folder: Path, dataset: NnunetDataset) -> list[str]:
    """List the cases of a folder of images by their names: those that have a first, or any, channel."""
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(dataset.ending))
    found = (pattern.fullmatch(path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted({match[1] for match in found if match and not match[1].startswith(".")})


def _files(dataset: NnunetDataset, images: str, labels: str, name: str) -> tuple[Sequence[str], str]:
    channels = range(len(dataset.channels))
    return [f"{images}/{name}_{each:04d}{dataset.ending}" for each in channels], f"{labels}/{name}{dataset.ending}"


def _training_cases(folder: Path, dataset: NnunetDataset) -> Iterator[tuple[str, tuple[Sequence[str], str]]]:
    if dataset.cases is not None:
        yield from sorted(dataset.cases.items())
        return
    if not (folder / "imagesTr").is_dir():
        raise FileNotFoundError(f"{folder / 'imagesTr'}: expected the folder of the training images, found none.")
    for name in _names(folder / "imagesTr", dataset):
        yield name, _files(dataset, "imagesTr", "labelsTr", name)


def _check(
    folder: Path, dataset: NnunetDataset, name: str, images: Sequence[str], label: str, pattern: str
) -> ScanRecord:
    ending = dataset.ending if dataset.ending in WRITTEN else WRITTEN[0]
    facts = {"prediction": name + ending}
    image = images[0] if len(images) == 1 else tuple(images)
    patient = patient_by_pattern(name, pattern) if pattern else name
    if len(images) != len(dataset.channels):
        detail = f"expected {len(dataset.channels)} channels as 'channel_names' says, found {len(images)}"
        return ScanRecord(image or name, patient, "", "channels missing", detail, label=label, facts=facts)
    return found_case(folder, image, patient, "", label, facts=facts)


def _by_fold(
    splits: Path | None, fold: int, cases: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any], list[ScanRecord], list[str]]:
    """Give each case the split of a fold; and the rule, cases that the fold names but that are not there, and notes."""
    if splits is None:
        training, validation = cross_validation(list(cases), fold)
        source, notes = FOLD_RULE, [f"fold {fold} of nnU-Net's own cross-validation"]
    else:
        training, validation = read_fold(splits, fold)
        source, notes = splits.name, [f"fold {fold} of {splits}"]
    split_of = {**dict.fromkeys(training, "training"), **dict.fromkeys(validation, "validation")}
    unknown = [
        ScanRecord(name, name, reason="case missing", detail=f"expected a case of this name, found it in {source} only")
        for name in split_of
        if name not in cases
    ]
    return (
        {name: split_of.get(name, "") for name in cases},
        {"split_rule": {"splits": source, "fold": fold}},
        unknown,
        notes,
    )


def _place(scans: Sequence[ScanRecord], split: Mapping[str, str], patients: bool) -> tuple[list[ScanRecord], list[str]]:
    """Put cases into their splits; where patients are named, those whose cases would come into several are left out."""
    folds = {scan.name: split.get(scan.name, "testing") for scan in scans}
    detail = "expected it in the fold's training or validation list"
    placed = [
        scan if scan.reason or folds[scan.name] else replace(scan, reason="in no split", detail=detail)
        for scan in scans
    ]
    if patients:
        return split_by_fold(placed, folds, {each: each for each in folds.values()})
    return [scan if scan.reason else replace(scan, split=folds[scan.name]) for scan in placed], []


def _strangers(
    folder: Path, dataset: NnunetDataset, cases: Mapping[str, Any], tests: Mapping[str, Any]
) -> list[ScanRecord]:
    """Name the scans in the folders that belong to no case: other names, too many channels, labels without images."""
    if dataset.cases is not None:
        cases = {}
    found = []
    for images, labels, names in (("imagesTr", "labelsTr", cases), ("imagesTs", "labelsTs", tests)):
        known = [_files(dataset, images, labels, name) for name in names]
        for place, expected, reason in (
            (images, {each for files, _ in known for each in files}, f"CASE_0000{dataset.ending}"),
            (labels, {label for _, label in known}, f"CASE{dataset.ending}, and images of the case"),
        ):
            if not (folder / place).is_dir() or (dataset.cases is not None and place.endswith("Tr")):
                continue
            for path in sorted((folder / place).iterdir()):
                name = f"{place}/{path.name}"
                if name in expected or path.name.startswith(".") or not path.name.lower().endswith(SCAN_SUFFIXES):
                    continue
                if place == images and re.fullmatch(r".+_\d{4}" + re.escape(dataset.ending), path.name):
                    detail = f"expected the {len(dataset.channels)} channels of 'channel_names', found one more"
                    found.append(ScanRecord(name, reason="channel too many", detail=detail))
                else:
                    detail = f"expected {reason}, found no case of it"
                    found.append(ScanRecord(name, reason="of no case", detail=detail))
    return found


def _notes(dataset: NnunetDataset, cases: Mapping[str, Any], testing: Sequence[ScanRecord]) -> list[str]:
    notes = []
    if "numTraining" in dataset.content and dataset.content["numTraining"] != len(cases):
        notes.append(f"numTraining is {dataset.content['numTraining']}, but {len(cases)} cases are there")
    unlabelled = sum(not scan.reason and not scan.label for scan in testing)
    if unlabelled:
        notes.append(f"{unlabelled} cases are for testing, without label")
    if dataset.ending not in WRITTEN:
        notes.append(f"predictions are written as {WRITTEN[0]}, not as {dataset.ending}")
    return notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets nnunet``."""
    parser.add_argument("--fold", type=int, metavar="N", help="fold of the splits (0 where there is a file of splits)")
    parser.add_argument("--splits", metavar="JSON", help="file of splits (default: splits_final.json, where it is)")
    parser.add_argument("--patient-pattern", default="", metavar="REGEX", help="its first group names the patient")
    add_split_arguments(parser, 0.2)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the data set that the command line names."""
    names = ("fold", "splits", "patient_pattern", "validation_fraction", "seed")
    return list_nnunet(arguments.root, progress=True, **{name: getattr(arguments, name) for name in names})
