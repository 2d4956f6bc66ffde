# SPDX-License-Identifier: Apache-2.0
"""A scan's values checked against its modality, before a network learns from something that is not in HU."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import convert_data_type

from .segmentation_case import Modality, case_name, check_intensities


class CheckModalityd(MapTransform):
    """Refuse scans whose values are not those of a modality; a good one passes unchanged.

    It comes right after loading. A CT whose DICOM files lost their rescale slope and intercept, or that was stored from
    0 upward, has no air at -1000 HU: a network would learn from it, or score it, as if all of it were bone. See
    :func:`check_case` for what counts as CT.

    Args:
        keys: keys of the scans.
        modality: ``"CT"`` or ``"MR"``; ``None`` for no check but that values are finite.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: When the modality is another; :class:`BadCaseError` for a scan that is not of it.

    Example:
        >>> try:
        ...     CheckModalityd("image", "CT")({"image": np.full((1, 4, 4, 4), 1024), "patient": "P7"})
        ... except ValueError as error:
        ...     print(str(error)[:25])
        P7: not CT: expected a CT
    """

    def __init__(
        self, keys: KeysCollection, modality: Modality | None = "CT", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if modality not in ("CT", "MR", None):
            raise ValueError(f"modality: expected 'CT', 'MR' or None, found {modality!r}.")
        self.modality = modality

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Return the item as it is, or raise for its first bad scan."""
        for key in self.key_iterator(dict(data)):
            values: np.ndarray = convert_data_type(data[key], np.ndarray)[0]
            check_intensities(case_name(data, key), values, self.modality)
        return dict(data)
