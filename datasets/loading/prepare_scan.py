# SPDX-License-Identifier: Apache-2.0
"""One scan checked, loaded and prepared: plain arrays, or the reason why it is not used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, Transform
from monai.utils import convert_data_type, ensure_tuple
from torch import Tensor

from ..io.root_cause import root_cause
from ..io.scan_header import BadScanError, ScanHeader, read_scan_header, root_cause_message

logger = logging.getLogger(__name__)

AFFINE_SUFFIX = "_affine"
"""Behind a scan's key: the ``(4, 4)`` affine of the prepared scan, voxels to mm in RAS."""


@dataclass(frozen=True)
class LeftOut:
    """A scan that is not used, and why."""

    scan: str
    reason: str


def leave_out(bad: BadScanError, on_bad_scan: Literal["raise", "skip"], error: Exception | None = None) -> LeftOut:
    """Raise the error of a bad scan, or warn of it.

    Args:
        bad: the scan, and what is wrong with it.
        on_bad_scan: ``"raise"`` or ``"skip"``.
        error: what it comes from.

    Raises:
        BadScanError: With ``"raise"``.
    """
    if on_bad_scan == "raise":
        raise bad from error
    logger.warning("left out: %s", bad)
    return LeftOut(bad.scan, str(bad))


def no_cubes(scan: str) -> BadScanError:
    """Make the error of a scan without an admissible cube."""
    return BadScanError(scan, "no cubes", "expected an admissible start, found none")


class PrepareScan(Transform):
    """Check, load and prepare an entry: plain arrays come out, or :class:`LeftOut`.

    Args:
        preprocessing: deterministic transforms, the first of which loads the entry.
        image_key: key of the scan.
        starts_key: key of the admissible starts that the preprocessing may add.
        on_bad_scan: ``"raise"`` or ``"skip"``.
        channels: channels of an image that is one file.
    """

    def __init__(
        self,
        preprocessing: Callable | Sequence[Callable],
        image_key: str,
        starts_key: str,
        on_bad_scan: Literal["raise", "skip"],
        channels: int = 1,
    ) -> None:
        self.preprocessing = preprocessing if callable(preprocessing) else Compose(preprocessing)
        self.image_key = image_key
        self.starts_key = starts_key
        self.on_bad_scan = on_bad_scan
        self.channels = channels

    def name(self, entry: Mapping[str, Any]) -> str:
        """Name an entry's scan in messages."""
        return str(ensure_tuple(entry[self.image_key])[0])

    def predicted_bytes(self, entry: Mapping[str, Any]) -> int:
        """Predict from the header what the scan takes at 2 bytes a voxel; 0 where it is bad."""
        try:
            return sum(2 * channels * int(np.prod(header.shape)) for header, channels in self._headers(entry))
        except BadScanError:
            return 0

    def _headers(self, entry: Mapping[str, Any]) -> list[tuple[ScanHeader, int]]:
        """Read the headers of an image's files, each with the number of its channels."""
        paths = ensure_tuple(entry[self.image_key])
        channels = self.channels if len(paths) == 1 else 1
        return [(read_scan_header(str(path), channels), channels) for path in paths]

    def __call__(self, data: Mapping[str, Any]) -> dict[str, np.ndarray] | LeftOut:
        """Prepare one scan.

        Raises:
            BadScanError: When the scan is bad and ``on_bad_scan="raise"``.
        """
        name = self.name(data)
        try:
            self._headers(data)
            arrays = plain_arrays(self.preprocessing(dict(data)))
        except MemoryError:
            raise
        except Exception as error:
            cause = root_cause(error, BadScanError)
            if not isinstance(cause, BadScanError):
                text = root_cause_message(cause) if name not in str(cause) else str(cause).removeprefix(f"{name}: ")
                cause = BadScanError(name, "cannot be prepared", text)
            return self._bad(cause, error)
        return arrays if has_starts(arrays, self.starts_key) else self.empty(data)

    def empty(self, data: Mapping[str, Any]) -> LeftOut:
        """Treat a scan without an admissible cube."""
        return self._bad(no_cubes(self.name(data)))

    def _bad(self, bad: BadScanError, error: Exception | None = None) -> LeftOut:
        return leave_out(bad, self.on_bad_scan, error)


def plain_arrays(item: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    """Keep the arrays of an item, as contiguous numpy arrays; a MetaTensor gives its affine besides.

    Example:
        >>> import torch
        >>> arrays = plain_arrays({"image": MetaTensor(torch.zeros(1, 2, 2, 2)), "patient": "a"})
        >>> {name: array.shape for name, array in arrays.items()}
        {'image': (1, 2, 2, 2), 'image_affine': (4, 4)}
    """
    arrays = {}
    for key, value in item.items():
        if isinstance(value, np.ndarray | Tensor):
            arrays[str(key)] = np.ascontiguousarray(convert_data_type(value, np.ndarray)[0])
        if isinstance(value, MetaTensor):
            arrays[f"{key}{AFFINE_SUFFIX}"] = convert_data_type(value.affine, np.ndarray, dtype=np.float64)[0]
    return arrays


def has_starts(arrays: Mapping[str, Any], starts_key: str | None) -> bool:
    """Say whether a cube may be drawn from a prepared scan."""
    return starts_key is None or starts_key not in arrays or len(arrays[starts_key]) > 0
