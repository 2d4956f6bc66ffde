# SPDX-License-Identifier: Apache-2.0
"""A task of the Medical Segmentation Decathlon: everything from its ``dataset.json``, split by patient."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..datalist import DatasetSummary, ScanRecord
from ..io.json_file import read_json
from ..splits import RULE, add_split_arguments, split_patients
from .case_checks import found_case

DESCRIBED = ("name", "description", "reference", "licence", "release", "tensorImageSize")
"""What is taken over from ``dataset.json`` as it is."""


def list_msd(
    root: str | Path, validation_fraction: float = 0.2, seed: int = 0, progress: bool = False
) -> DatasetSummary:
    """Read a task's ``dataset.json``, check its files by their headers, and split its training list.

    Args:
        root: folder of the task, with ``dataset.json``.
        validation_fraction: share of the training list for validation.
        seed: seed of the split.
        progress: whether to show a progress bar.

    Returns:
        All cases, those left out with the reason. The list says the task's channels (``modality``, ``in_channels``) and
        labels (``labels``, ``out_channels`` with the background); an image of several channels is one path. A case is a
        patient, by its file name. The task's ``test`` list is for testing and has no ``label``.

    Raises:
        FileNotFoundError: When the folder or its ``dataset.json`` is missing.
        ValueError: When ``dataset.json`` is no such description.
    """
    folder = Path(root)
    content = _read(folder / "dataset.json")
    modality = {str(number): str(name) for number, name in sorted(content["modality"].items(), key=_number)}
    labels = {str(int(value)): str(name) for value, name in sorted(content["labels"].items(), key=_number)}
    training = [(_path(entry["image"]), _path(entry["label"])) for entry in content["training"]]
    splits = split_patients([_patient(image) for image, _ in training], validation_fraction, 0.0, seed)
    tests = [(_path(entry["image"] if isinstance(entry, dict) else entry), "") for entry in content.get("test", [])]
    cases = [(image, label, splits[_patient(image)]) for image, label in training]
    cases += [(image, label, "testing") for image, label in tests]
    scans = [
        found_case(folder, image, _patient(image), split, label, len(modality))
        for image, label, split in tqdm(cases, "headers", disable=None if progress else True)
    ]
    header = {
        **{name: content[name] for name in DESCRIBED if name in content},
        "modality": modality,
        "labels": labels,
        "in_channels": len(modality),
        "out_channels": max(map(int, labels)) + 1,
        "split_rule": RULE,
        "seed": seed,
        "validation_fraction": validation_fraction,
        "test_fraction": 0.0,
    }
    return DatasetSummary(folder, scans, _notes(content, scans), header)


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _path(path: str) -> str:
    """Write a path of ``dataset.json`` without its leading ``./``."""
    return Path(path).as_posix()


def _patient(image: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", Path(image).name)


def _read(path: Path) -> dict[str, Any]:
    """Read and check ``dataset.json``."""
    content = read_json(path, "the description of a task")
    for key in ("modality", "labels"):
        value = content.get(key)
        if not isinstance(value, Mapping) or not value or not all(str(number).isdigit() for number in value):
            hint = "; it is of nnU-Net v2, try `nnunet`" if "channel_names" in content else ""
            raise ValueError(f"{path}: expected {key!r} as names by number, found {value!r}{hint}.")
    entries = content.get("training")
    complete = isinstance(entries, list) and all(
        isinstance(entry, Mapping) and all(isinstance(entry.get(key), str) for key in ("image", "label"))
        for entry in entries
    )
    if not complete or not entries:
        raise ValueError(f"{path}: expected 'training' as a list of image and label, found {str(entries)[:80]}.")
    return dict(content)


def _notes(content: Mapping[str, Any], scans: Sequence[ScanRecord]) -> list[str]:
    """Point out lists that are shorter or longer than the description says."""
    notes = []
    for number, listed in (("numTraining", "training"), ("numTest", "test")):
        if number in content and int(content[number]) != len(content.get(listed, [])):
            notes.append(f"{number} is {content[number]}, but {listed!r} lists {len(content.get(listed, []))}")
    unlabelled = sum(scan.split == "testing" for scan in scans)
    return notes + ([f"{unlabelled} cases are for testing, without label"] if unlabelled else [])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets msd``."""
    add_split_arguments(parser, 0.2)


def list_scans(arguments: argparse.Namespace) -> DatasetSummary:
    """List the task that the command line names."""
    return list_msd(arguments.root, arguments.validation_fraction, arguments.seed, progress=True)
