# SPDX-License-Identifier: Apache-2.0
"""The folds of nnU-Net: those of a ``splits_final.json``, or those that it would make itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..io.json_file import parse_json

FOLDS, SEED = 5, 12345
"""Of the cross-validation that nnU-Net v2 makes for a data set without a file of splits."""

FOLD_RULE = f"the sorted names shuffled by numpy.random.RandomState({SEED}), cut into {FOLDS} folds, as nnU-Net v2"
"""The rule in words, written into the data list."""


def find_splits(root: Path, given: str | Path | None = None) -> Path | None:
    """Find the file of splits of a data set.

    Args:
        root: folder of the raw data set.
        given: the file, if it is named.

    Returns:
        The given file, else ``splits_final.json`` of the folder or of ``$nnUNet_preprocessed``; ``None`` for none.

    Raises:
        FileNotFoundError: When the given file is missing.
        ValueError: When both places have such a file, and they differ.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: expected a file of splits, found no such file.")
        return Path(given)
    preprocessed = os.environ.get("nnUNet_preprocessed", "")
    folders = [root, *([Path(preprocessed) / root.absolute().name] if preprocessed else [])]
    found = [file for folder in folders if (file := folder / "splits_final.json").is_file()]
    if len(found) == 2 and found[0].read_bytes() != found[1].read_bytes():
        raise ValueError(f"{found[0]} and {found[1]}: expected the same splits, found others: name one with --splits.")
    return found[0] if found else None


def read_fold(path: Path, fold: int) -> tuple[list[str], list[str]]:
    """Read a fold of a file of splits.

    Args:
        path: JSON file, a list of folds with the names of the cases under ``train`` and ``val``.
        fold: number of the fold.

    Returns:
        Cases for training, and for validation.

    Raises:
        ValueError: When the file is no such list, has no such fold, or the fold names a case twice.
    """
    content = parse_json(path, "a file of splits")
    if not isinstance(content, list) or not all(_is_fold(each) for each in content):
        raise ValueError(f"{path}: expected a list of folds, each with 'train' and 'val', found {str(content)[:80]}.")
    _check_fold(f"{path}", fold, len(content))
    training, validation = content[fold]["train"], content[fold]["val"]
    names = sorted([*training, *validation])
    if repeated := [name for name, after in pairwise(names) if name == after]:
        raise ValueError(f"{path}: expected each case once in fold {fold}, found {repeated[0]} in it twice.")
    return training, validation


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(
        isinstance(fold.get(key), list) and all(isinstance(name, str) for name in fold[key]) for key in ("train", "val")
    )


def cross_validation(cases: Sequence[str], fold: int) -> tuple[list[str], list[str]]:
    """Split cases as nnU-Net does where there is no file of splits, :data:`FOLD_RULE`.

    Args:
        cases: names of the cases.
        fold: number of the fold, 0 to 4.

    Returns:
        Cases for training, and for validation.

    Raises:
        ValueError: When there is no such fold, or fewer than five cases.

    Example:
        >>> cross_validation(["a", "b", "c", "d", "e"], 0)
        (['b', 'c', 'd', 'e'], ['a'])
    """
    _check_fold("nnU-Net's cross-validation", fold, FOLDS)
    if len(cases) < FOLDS:
        raise ValueError(f"nnU-Net's cross-validation: expected {FOLDS} cases or more, found {len(cases)}.")
    names = sorted(cases)
    # what scikit-learn's KFold(FOLDS, shuffle=True, random_state=SEED) does, which nnU-Net calls
    order = np.arange(len(names))
    np.random.RandomState(SEED).shuffle(order)
    held_out = {int(number) for number in np.array_split(order, FOLDS)[fold]}
    validation = [name for number, name in enumerate(names) if number in held_out]
    return [name for number, name in enumerate(names) if number not in held_out], validation


def _check_fold(where: str, fold: int, number: int) -> None:
    if not 0 <= fold < number:
        raise ValueError(f"{where}: expected a fold from 0 to {number - 1}, found {fold}.")
