# SPDX-License-Identifier: Apache-2.0
"""Scans without physical units, such as MR, brought to common ones before their intensity range is cut out.

The choices are those of the fine-tuning bundles for MR, so that weights are pretrained on the numbers, but for scale
and offset, that fine-tuning shows them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, NormalizeIntensity, ScaleIntensity, Transform
from monai.utils import ImageMetaKey, convert_to_dst_type

from .hounsfield import whole_number_dtype

_RANGES: dict[str, list[float]] = {
    "none": [-1000, 1000],
    "zscore": [-3, 5],
    "minmax": [0, 1],
    "full_scale": [0, 1],
}


def default_intensity_range(normalise: str) -> list[float]:
    """Give the intensity range that becomes [0, 1] where none is stated.

    Args:
        normalise: ``"none"``, ``"zscore"``, ``"minmax"`` or ``"full_scale"``.

    Returns:
        The lowest and the highest value, after the normalisation: HU for ``"none"``; of z-scores three standard
        deviations below the mean to five above it, for bright tissue is rarer and further from the mean than dark.

    Raises:
        ValueError: for another normalisation.

    Example:
        >>> default_intensity_range("zscore")
        [-3, 5]
    """
    if normalise not in _RANGES:
        raise ValueError(f"normalise: expected one of {list(_RANGES)}, found {normalise!r}")
    return list(_RANGES[normalise])


def restored_dtype(normalise: str, intensity_range: tuple[float, float]) -> str:
    """Name the type in which restored scans are written: whole numbers in the scan's own units, else float32.

    Args:
        normalise: how the scan was normalised; normalised values are written as they are.
        intensity_range: lowest and highest value.

    Example:
        >>> restored_dtype("none", (-1000, 1000)), restored_dtype("zscore", (-3, 5))
        ('int16', 'float32')
    """
    return whole_number_dtype(intensity_range) if normalise == "none" else "float32"


class _CheckFullScale(Transform):
    """Refuse values that are no shares of a full scale."""

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        low, high = float(img.min()), float(img.max())
        if not 0 <= low <= high <= 1:
            name = img.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "scan") if isinstance(img, MetaTensor) else "scan"
            raise ValueError(
                f"{name}: expected shares of full scale in [0, 1], as pictures and radiographs are read, found "
                f"{low:g} to {high:g}"
            )
        return img


class NormaliseScan(Transform):
    """Normalise each channel of a scan, before it is clipped to its intensity range.

    Args:
        normalise: ``"none"`` leaves the scan as it is (CT, in HU); ``"zscore"`` subtracts the mean of the voxels that
            are not zero and divides by their standard deviation, zeros stay zero; ``"minmax"`` maps the lowest voxel to
            0 and the highest to 1; ``"full_scale"`` is for pictures and radiographs, which are read as shares of the
            full scale that their file states: they stay as they are, and anything outside of [0, 1] is refused.

    Raises:
        ValueError: for another normalisation.

    Example:
        >>> import numpy as np
        >>> NormaliseScan("minmax")(np.array([[[[10, 20, 30]]]]))
        array([[[[0. , 0.5, 1. ]]]], dtype=float32)
    """

    def __init__(self, normalise: str = "none") -> None:
        default_intensity_range(normalise)
        steps = {
            "zscore": NormalizeIntensity(nonzero=True, channel_wise=True),
            "minmax": ScaleIntensity(minv=0.0, maxv=1.0, channel_wise=True),
            "full_scale": _CheckFullScale(),
        }
        self.step = steps.get(normalise)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Normalise one scan.

        Args:
            img: shape ``(C, X[, Y, Z])``, any real type.

        Returns:
            The scan, of the same kind and shape; float32 if it was normalised.

        Raises:
            ValueError: for ``"full_scale"``, when a value lies outside of [0, 1].
        """
        if self.step is None:
            return img
        # MONAI's steps give a MetaTensor for an array where they go through it channel by channel
        return convert_to_dst_type(self.step(img), img, dtype=torch.float32)[0]


class NormaliseScand(MapTransform):
    """Dictionary form of :class:`NormaliseScan`.

    Args:
        keys: keys of the scans.
        allow_missing_keys: whether an item may lack a key.
        kwargs: arguments of :class:`NormaliseScan`.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = NormaliseScan(**kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with its scans normalised."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key])
        return item
