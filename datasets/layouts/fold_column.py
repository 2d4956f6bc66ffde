# SPDX-License-Identifier: Apache-2.0
"""Which split each fold of a given column goes to, and cases of a patient who is in several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..datalist import ScanRecord
from ..splits import SPLITS

WORDS = {
    "training": ("training", "train", "tr"),
    "validation": ("validation", "valid", "val", "dev"),
    "testing": ("testing", "test", "ts"),
}
"""What a column may call the splits themselves, in upper or lower case."""


def parse_fold_names(text: str) -> tuple[str, ...]:
    """Read names of folds, ranges of numbers included.

    Example:
        >>> parse_fold_names("0-2,5"), parse_fold_names("val"), parse_fold_names("")
        (('0', '1', '2', '5'), ('val',), ())
    """
    names: list[str] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        found = re.fullmatch(r"(\d{1,6})-(\d{1,6})", part)
        if found and int(found[2]) < int(found[1]):
            raise ValueError(f"expected folds as '0-4' or '0,2,5', found {text!r}")
        names += map(str, range(int(found[1]), int(found[2]) + 1)) if found else [part]
    return tuple(dict.fromkeys(names))


def split_folds(
    column: str,
    folds: Iterable[str],
    training: Sequence[str] | None = None,
    validation: Sequence[str] | None = None,
    testing: Sequence[str] | None = None,
) -> dict[str, str]:
    """Say which split each fold goes to.

    Without any choice, folds that are called as the splits are (:data:`WORDS`) go there; of numbered folds the first
    is for validation and the others for training, as the first fold of a cross-validation is.

    Args:
        column: what messages call the column.
        folds: the folds that occur.
        training: folds for training; ``None`` for those that no other split has.
        validation: folds for validation.
        testing: folds for testing.

    Returns:
        The split of each fold; ``""`` for one that is in none.

    Raises:
        ValueError: When a fold is in two splits or does not occur, or it is not said which validates.

    Example:
        >>> split_folds("fold", ["0", "1", "2"], testing=["2"])
        {'0': 'training', '1': 'training', '2': 'testing'}
        >>> split_folds("fold", ["0", "1", "2"])
        {'0': 'validation', '1': 'training', '2': 'training'}
    """
    found = sorted(set(folds), key=lambda fold: (not fold.isdecimal(), int(fold) if fold.isdecimal() else 0, fold))
    chosen = {"training": training, "validation": validation, "testing": testing}
    if all(each is None for each in chosen.values()):
        return _unasked(column, found)
    split_of: dict[str, str] = {}
    for split, names in chosen.items():
        for fold in names or ():
            if fold not in found:
                raise ValueError(f"{column}: expected folds among {', '.join(found)}, found {fold!r} for {split}.")
            if split_of.setdefault(fold, split) != split:
                raise ValueError(
                    f"{column}: expected each fold in one split, found {fold} in {split_of[fold]} and {split}."
                )
    return {fold: split_of.get(fold, "training" if training is None else "") for fold in found}


def _unasked(column: str, folds: Sequence[str]) -> dict[str, str]:
    words = {word: split for split, each in WORDS.items() for word in each}
    if all(fold.casefold() in words for fold in folds):
        return {fold: words[fold.casefold()] for fold in folds}
    if all(fold.isdecimal() for fold in folds) and len(folds) > 1:
        return {fold: "validation" if fold == folds[0] else "training" for fold in folds}
    raise ValueError(
        f"{column}: expected several numbered folds, or folds called as the splits are, found {', '.join(folds[:10])}:"
        " say which is which with --validation and --test."
    )


def split_by_fold(
    scans: Sequence[ScanRecord], folds: Mapping[str, str], split_of: Mapping[str, str]
) -> tuple[list[ScanRecord], list[str]]:
    """Put cases into the splits of their folds; cases of a patient whom that would put into several are left out.

    Args:
        scans: all cases; those with a reason stay as they are.
        folds: the fold of each kept case, by the name of its image.
        split_of: see :func:`split_folds`.

    Returns:
        The cases, and a note on patients in several folds of one split.
    """
    of_patient: dict[str, dict[str, str]] = {}
    for scan in scans:
        if not scan.reason:
            of_patient.setdefault(scan.patient, {}).setdefault(folds[scan.name], scan.name)
    several = {patient: each for patient, each in of_patient.items() if len(each) > 1}
    apart = {patient for patient, each in several.items() if len({split_of[fold] for fold in each}) > 1}
    placed = []
    for scan in scans:
        if scan.reason:
            placed.append(scan)
        elif scan.patient in apart:
            found = ", ".join(f"{fold} ({name})" for fold, name in sorted(several[scan.patient].items()))
            detail = f"expected the patient {scan.patient} in folds of one split, found {found}"
            placed.append(replace(scan, reason="patient across folds", detail=detail))
        elif not split_of[folds[scan.name]]:
            detail = f"expected a fold of {' or '.join(SPLITS)}, found {folds[scan.name]}"
            placed.append(replace(scan, reason="fold in no split", detail=detail))
        else:
            placed.append(replace(scan, split=split_of[folds[scan.name]]))
    together = [f"{patient} ({', '.join(sorted(each))})" for patient, each in several.items() if patient not in apart]
    note = f"patients in several folds, here of one split: {len(together)}, such as {', '.join(together[:3])}"
    return placed, [note] if together else []
