# SPDX-License-Identifier: Apache-2.0
"""The labels of BraTS, which changed over the years, to whole tumour, tumour core and enhancing tumour, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_data_type, convert_to_dst_type

BRATS_REGIONS = ("whole tumour", "tumour core", "enhancing tumour")
"""The channels, in this order; each lies inside the one before."""

_CORE, _OEDEMA, _ENHANCING, _CAVITY = (
    "necrosis or non-enhancing tumour",
    "oedema",
    "enhancing tumour",
    "resection cavity",
)

BRATS_LABELS: dict[str, dict[int, str]] = {
    "2013": {0: "background", 1: "necrosis", 2: _OEDEMA, 3: "non-enhancing tumour", 4: _ENHANCING},
    "2018": {0: "background", 1: _CORE, 2: _OEDEMA, 4: _ENHANCING},
    "2023": {0: "background", 1: _CORE, 2: _OEDEMA, 3: _ENHANCING},
    "2024": {0: "background", 1: _CORE, 2: _OEDEMA, 3: _ENHANCING, 4: _CAVITY},
    "msd": {0: "background", 1: _OEDEMA, 2: _CORE, 3: _ENHANCING},
}
"""What each label means, by convention: ``"2013"`` is 2012 to 2016, ``"2018"`` 2017 to 2022, ``"2023"`` from then on,
``"2024"`` the gliomas after treatment, and ``"msd"`` Task01_BrainTumour of the Medical Segmentation Decathlon."""


def brats_label_values(convention: str, regions: Sequence[str] = BRATS_REGIONS) -> dict[str, tuple[int, ...]]:
    """List the label values that make up each region.

    Args:
        convention: a key of :data:`BRATS_LABELS`.
        regions: some of :data:`BRATS_REGIONS`; the paper has ``("whole tumour",)``.

    Returns:
        Label values by region, the outer region first. A resection cavity belongs to none, as the challenge counts it.

    Raises:
        ValueError: for another convention or region.

    Example:
        >>> brats_label_values("2018")
        {'whole tumour': (1, 2, 4), 'tumour core': (1, 4), 'enhancing tumour': (4,)}
    """
    if convention not in BRATS_LABELS:
        raise ValueError(f"convention: expected one of {list(BRATS_LABELS)}, found {convention!r}.")
    unknown = [region for region in regions if region not in BRATS_REGIONS]
    if isinstance(regions, str) or unknown or not regions:
        raise ValueError(f"regions: expected a list of some of {list(BRATS_REGIONS)}, found {regions!r}.")
    names = BRATS_LABELS[convention]
    whole = tuple(value for value, name in names.items() if name not in ("background", _CAVITY))
    core = tuple(value for value in whole if names[value] != _OEDEMA)
    nested = (whole, core, tuple(value for value in core if names[value] == _ENHANCING))
    return {region: values for region, values in zip(BRATS_REGIONS, nested, strict=True) if region in regions}


def brats_regions(label: NdarrayOrTensor, convention: str, regions: Sequence[str] = BRATS_REGIONS) -> NdarrayOrTensor:
    """Turn labels into the nested regions that BraTS is measured by.

    MONAI's ``ConvertToMultiChannelBasedOnBratsClasses`` gives the same for ``"2018"`` and, with ``et_label=3``, for
    ``"2023"``, as channels core, whole, enhancing; the conventions of 2013 (non-enhancing tumour has a label of its
    own, which it would drop) and of the Decathlon (1 is oedema) are not for it.

    Args:
        label: ``(1, X, Y, Z)`` or ``(X, Y, Z)``, whole numbers.
        convention: what the labels mean, a key of :data:`BRATS_LABELS`. It cannot be told from the values: a 4 is
            enhancing tumour in 2018, and a resection cavity in 2024.
        regions: some of :data:`BRATS_REGIONS`, one channel each in that order.

    Returns:
        ``(R, X, Y, Z)``, 0 or 1, uint8; of the kind that came in.

    Raises:
        ValueError: for another convention or region, several channels, or a value that the convention does not know.

    Example:
        >>> import numpy as np
        >>> brats_regions(np.array([[[[0, 1, 2, 4]]]]), "2018")[:, 0, 0].tolist()
        [[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    """
    values = brats_label_values(convention, regions)
    array: torch.Tensor = convert_data_type(label, torch.Tensor)[0]
    if array.ndim == 4 and array.shape[0] != 1:
        raise ValueError(f"label: expected one channel, found shape {tuple(label.shape)}.")
    array = array.reshape(array.shape[-3:])
    known = torch.tensor(list(BRATS_LABELS[convention]), dtype=array.dtype, device=array.device)
    if not bool(torch.isin(array, known).all()):
        found = [value for value in torch.unique(array).tolist() if value not in known.tolist()]
        raise ValueError(f"label: expected values of {known.tolist()} (BraTS {convention}), found {found}.")
    channels = [
        torch.isin(array, torch.tensor(region, dtype=array.dtype, device=array.device)) for region in values.values()
    ]
    return convert_to_dst_type(torch.stack(channels).to(torch.uint8), dst=label, dtype=torch.uint8)[0]


def brats_labels(masks: NdarrayOrTensor, convention: str, regions: Sequence[str] = BRATS_REGIONS) -> NdarrayOrTensor:
    """Turn predicted regions back into one label map, to be saved or handed in.

    Where the regions are not nested the inner one wins: enhancing tumour before core before whole. The core outside the
    enhancing tumour becomes label 1 (2 in ``"msd"``), what of the whole tumour is left oedema. Of the whole tumour
    alone, all becomes oedema, for no label stands for the tumour as a whole.

    Args:
        masks: ``(R, X, Y, Z)``, 0 or 1 (or False and True), a channel for each region.
        convention: what the labels mean, a key of :data:`BRATS_LABELS`.
        regions: what the channels are, some of :data:`BRATS_REGIONS` in that order.

    Returns:
        ``(1, X, Y, Z)``, uint8, of the kind that came in.

    Raises:
        ValueError: for another convention or region, or another number of channels.

    Example:
        >>> import numpy as np
        >>> brats_labels(np.array([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]).reshape(3, 1, 1, 4), "2018").tolist()
        [[[[2, 1, 4, 4]]]]
    """
    chosen = brats_label_values(convention, regions)
    if len(masks.shape) != 4 or masks.shape[0] != len(chosen):
        raise ValueError(f"masks: expected ({len(chosen)}, X, Y, Z) for {list(chosen)}, found {tuple(masks.shape)}.")
    _, core, enhancing = brats_label_values(convention).values()
    inside = dict(zip(BRATS_REGIONS, (core, enhancing, ()), strict=True))
    positive = convert_data_type(masks, torch.Tensor)[0] > 0.5
    label = torch.zeros(positive.shape[1:], dtype=torch.uint8, device=positive.device)
    for mask, (region, values) in zip(positive, chosen.items(), strict=True):
        label[mask] = next(value for value in values if value not in inside[region])
    return convert_to_dst_type(label[None], dst=masks, dtype=torch.uint8)[0]


class BratsRegions(Transform):
    """Turn BraTS labels into nested channels, see :func:`brats_regions`.

    Args:
        convention: what the labels mean, a key of :data:`BRATS_LABELS`; a data list of
            ``python -m models_genesis.datasets brats`` says it as ``"label_convention"``.
        regions: some of :data:`BRATS_REGIONS`, one channel each in that order.

    Raises:
        ValueError: for another convention or region.
    """

    def __init__(self, convention: str = "2018", regions: Sequence[str] = BRATS_REGIONS) -> None:
        brats_label_values(convention, regions)
        self.convention = convention
        self.regions = tuple(regions)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return the regions, ``(R, X, Y, Z)``, uint8."""
        return brats_regions(img, self.convention, self.regions)


class BratsRegionsd(MapTransform):
    """Dictionary form of :class:`BratsRegions`.

    Args:
        keys: keys of the label maps.
        convention: what the labels mean, a key of :data:`BRATS_LABELS`.
        regions: some of :data:`BRATS_REGIONS`, one channel each in that order.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        convention: str = "2018",
        regions: Sequence[str] = BRATS_REGIONS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.regions = BratsRegions(convention, regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with its labels as regions."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.regions(item[key])
        return item


class BratsLabelsd(MapTransform):
    """Turn predicted regions back into one label map, see :func:`brats_labels`.

    Args:
        keys: keys of the regions.
        convention: what the labels mean, a key of :data:`BRATS_LABELS`.
        regions: what the channels are, some of :data:`BRATS_REGIONS` in that order.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: for another convention or region.
    """

    def __init__(
        self,
        keys: KeysCollection,
        convention: str = "2018",
        regions: Sequence[str] = BRATS_REGIONS,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        brats_label_values(convention, regions)
        self.convention = convention
        self.regions = tuple(regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with its regions as labels."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = brats_labels(item[key], self.convention, self.regions)
        return item
