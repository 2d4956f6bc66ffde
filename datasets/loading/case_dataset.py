# SPDX-License-Identifier: Apache-2.0
"""Whole cases for validation and inference, where one broken file need not end the work."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from monai.data import Dataset, MetaTensor
from monai.utils import ensure_tuple

from ...transforms.segmentation_case import BadCaseError
from ..io.case_names import OUTPUT_FILE, OUTPUT_NAME, PREDICTION, output_names
from ..io.root_cause import root_cause
from ..io.scan_header import BadScanError, root_cause_message

logger = logging.getLogger(__name__)

CASE_KEY = "case"
"""Key of a case's name in an item."""

ERROR_KEY = "error"
"""Key of the message in the item of a case that cannot be prepared."""


class CaseDataset(Dataset):
    """MONAI's ``Dataset`` that names its cases, and either raises for a broken one or hands on what was wrong with it.

    Items get their name as ``"case"``, the path of the image (of its first channel), and as ``"output_name"`` what
    their results are called, see :func:`~models_genesis.datasets.output_names`; the ``"prediction"`` of an entry says
    which file that is to be. With ``on_bad_case="skip"`` a case that cannot be loaded or prepared gives an item of its
    names and an ``"error"`` alone, which :class:`~models_genesis.training.CaseEvaluator` counts as failed; the work
    goes on with the next case.

    Args:
        data: entries of a data list.
        transform: loads and prepares an entry.
        on_bad_case: ``"raise"`` an error that names the case, or ``"skip"`` it.
        root: folder of the data set, below which cases of one name keep their path.

    Raises:
        ValueError: when there are no entries, two images that predictions would be saved for under one name, or a
            prediction that is no NIfTI file below the output folder.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable | Sequence[Callable],
        on_bad_case: Literal["raise", "skip"] = "raise",
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_bad_case not in ("raise", "skip"):
            raise ValueError(f"on_bad_case must be 'raise' or 'skip', got {on_bad_case!r}.")
        if len(data) == 0:
            raise ValueError("expected cases, found an empty data list.")
        super().__init__(list(data), transform)
        self.on_bad_case = on_bad_case
        self.predictions = [entry.get(PREDICTION) for entry in self.data]
        self.output_names = output_names([case_path(entry) for entry in self.data], root, self.predictions)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Prepare a case.

        Args:
            index: its number.

        Returns:
            The prepared item with its name, or name and error.

        Raises:
            BadCaseError: when it is broken and ``on_bad_case="raise"``.
        """
        name = case_path(self.data[index])
        results = self.output_names[index]
        try:
            item = {**super().__getitem__(index), CASE_KEY: name, OUTPUT_NAME: results}
        except Exception as error:
            bad = _first_cause(name, error)
            if self.on_bad_case == "raise":
                raise bad from error
            return {CASE_KEY: name, OUTPUT_NAME: results, ERROR_KEY: str(bad)}
        for value in item.values():
            if isinstance(value, MetaTensor):
                value.meta[OUTPUT_NAME] = results
                if self.predictions[index] is not None:
                    value.meta[OUTPUT_FILE] = self.predictions[index]
        return item


def case_path(entry: Mapping[str, Any]) -> str:
    """Name an entry by the path of its image, or of the image's first channel."""
    return str(ensure_tuple(entry["image"])[0])


def _first_cause(name: str, error: BaseException) -> BadCaseError:
    """Say in one line what lies at the bottom of MONAI's chain of errors."""
    error = root_cause(error, BadCaseError, BadScanError)
    if isinstance(error, BadScanError):
        return BadCaseError(name, error.reason, error.detail if error.scan == name else f"{error.scan}: {error.detail}")
    if isinstance(error, BadCaseError):
        return error if name in str(error) else BadCaseError(name, error.reason, f"{error.case}: {error.detail}")
    return BadCaseError(name, "cannot be prepared", root_cause_message(error))
