# SPDX-License-Identifier: Apache-2.0
"""Patients dealt to training, validation and testing by a stated, seeded rule."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable

SPLITS = ("training", "validation", "testing")

RULE = (
    "patients in the order of sha256('{seed}/{patient}'): the first round(test_fraction * n) are testing, the next"
    " max(1, round(validation_fraction * n)) validation (none if the fraction is 0), the rest training"
)
"""The rule in words, written into each data list."""


def split_patients(
    patients: Iterable[str], validation_fraction: float = 0.2, test_fraction: float = 0.0, seed: int = 0
) -> dict[str, str]:
    """Deal each patient to one split.

    The order comes from a hash of the name, not from a generator, so that it is the same on every machine and version,
    and a patient added later moves few of the others.

    Args:
        patients: names of the patients; repeated ones count once.
        validation_fraction: share of the patients for validation, in [0, 1); above 0 at least one patient is taken if
            there are two or more.
        test_fraction: share of the patients for testing, in [0, 1).
        seed: deals differently.

    Returns:
        ``"training"``, ``"validation"`` or ``"testing"`` for each patient. At least one patient is training.

    Raises:
        ValueError: When a share lies outside [0, 1) or both leave nothing for training.

    Example:
        >>> split_patients(["a", "b", "c", "d", "e"])
        {'c': 'validation', 'b': 'training', 'e': 'training', 'd': 'training', 'a': 'training'}
    """
    if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise ValueError(
            "validation_fraction and test_fraction must each lie in [0, 1) and leave patients for training,"
            f" got {validation_fraction} and {test_fraction}."
        )
    order = sorted(set(patients), key=lambda patient: _hash(f"{seed}/{patient}"))
    spare = len(order) - 1
    validation = min(max(round(validation_fraction * len(order)), int(validation_fraction > 0)), max(spare, 0))
    testing = min(round(test_fraction * len(order)), max(spare - validation, 0))
    splits = ["testing"] * testing + ["validation"] * validation + ["training"] * (len(order) - testing - validation)
    return dict(zip(order, splits, strict=True))


def patient_by_pattern(name: str, pattern: str) -> str:
    r"""Read the patient out of a scan's name or path.

    Args:
        name: the name.
        pattern: regular expression whose first group names the patient, wherever it is found.

    Returns:
        The patient's name.

    Raises:
        ValueError: When the pattern is not found, has no group, or its first group is empty.

    Example:
        >>> patient_by_pattern("ct/P012_scan2.nii.gz", r"(P\d+)_")
        'P012'
    """
    found = re.search(pattern, name)
    if found is None or not found.groups() or not found[1]:
        raise ValueError(f"{name}: expected the patient as first group of {pattern!r}, found none.")
    return found[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def add_split_arguments(parser: argparse.ArgumentParser, validation: float, test: float | None = None) -> None:
    """Declare the options of a split by patient.

    Args:
        parser: where to.
        validation: default of ``--validation-fraction``.
        test: default of ``--test-fraction``; ``None`` for no such option.
    """
    parser.add_argument("--validation-fraction", type=float, default=validation, help="share of the patients")
    if test is not None:
        parser.add_argument("--test-fraction", type=float, default=test, help="share of the patients")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
