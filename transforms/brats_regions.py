# SPDX-License-Identifier: Apache-2.0
"""The labels of BraTS, which changed over the years, to whole tumour, tumour core and enhancing tumour, and back."""

from __future__ import annotations

import re
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
    "2024-ped": {0: "background", 1: _ENHANCING, 2: "non-enhancing tumour", 3: "cystic component", 4: _OEDEMA},
    "msd": {0: "background", 1: _OEDEMA, 2: _CORE, 3: _ENHANCING},
}
"""What each label means, by convention: ``"2013"`` is 2012 to 2016, ``"2018"`` 2017 to 2022, ``"2023"`` from then on
(adults, Africa, meningioma, GoAT, and children in 2023 alone), ``"2024"`` the gliomas after treatment and the
metastases, where 4 is a resection cavity, ``"2024-ped"`` the tumours of children from 2024 on (arXiv:2404.15009), and
``"msd"`` Task01_BrainTumour of the Medical Segmentation Decathlon."""

_SUB_CHALLENGES: dict[str, tuple[str, ...]] = {
    "GLI": ("2023", "2024"),
    "SSA": ("2023",),
    "AFRICA": ("2023",),
    "MEN": ("2023",),
    "MET": ("2024", "2023"),
    "METS": ("2024", "2023"),
    "GOAT": ("2023",),
    "PED": ("2024-ped", "2023"),
    "PEDS": ("2024-ped", "2023"),
    "MEN-RT": (),
}
"""Conventions that each sub-challenge from 2023 on has used, the usual one first.

Metastases: 1 to 3 as in ``"2023"``, and 4 only where there is a cavity. Radiotherapy of meningiomas has one label, the
gross tumour volume, which no convention has (arXiv:2405.18383)."""

_SUB_CHALLENGE = re.compile(
    r"BraTS[-_ ]?(?P<year>20\d\d(?!\d))?[-_ ]?(?P<name>MEN-RT|[A-Za-z]+?)"
    r"(?=[-_ ]?(?P<after>20\d\d(?!\d))|[-_ ]|$)",
    re.IGNORECASE,
)


def brats_sub_challenge(path: str) -> tuple[str, tuple[str, ...]]:
    """Tell by names which sub-challenge a file is of, and what its labels can mean.

    Args:
        path: a case's name, or a path: the last part that names a sub-challenge counts, and a year that is given with
            one in a folder's name.

    Returns:
        Its short name, ``""`` for none or an unknown one, and keys of :data:`BRATS_LABELS`, the usual one first.
        Children's tumours have two, for 2023 numbered the labels otherwise than 2024 and later, under the same names.

    Example:
        >>> brats_sub_challenge("BraTS-SSA-00002-000")
        ('SSA', ('2023',))
        >>> brats_sub_challenge("BraTS-PED-00001-000")
        ('PED', ('2024-ped', '2023'))
        >>> brats_sub_challenge("BraTS-PEDs2024_Training/BraTS-PED-00001-000")
        ('PED', ('2024-ped',))
    """
    found, years = "", set[str]()
    for part in re.split(r"[/\\]", path):
        for match in _SUB_CHALLENGE.finditer(part):
            if match["name"].upper() in _SUB_CHALLENGES:
                found = match["name"].upper()
                years |= {year for year in (match["year"], match["after"]) if year}
    conventions = _SUB_CHALLENGES.get(found, ())
    if found.startswith("PED"):
        found = "PED"
        if len(years) == 1:
            conventions = ("2023",) if years == {"2023"} else ("2024-ped",)
    return found, conventions


def check_brats_convention(path: str, convention: str) -> None:
    """Refuse a convention that the name of a case contradicts.

    Args:
        path: see :func:`brats_sub_challenge`.
        convention: a key of :data:`BRATS_LABELS`.

    Raises:
        ValueError: when labels of this sub-challenge mean something else, or are not those of any convention.

    Example:
        >>> check_brats_convention("BraTS-PED-00001-000", "2018")
        Traceback (most recent call last):
        ValueError: BraTS-PED-00001-000: expected the label convention 2024-ped or 2023 of BraTS-PED, found 2018.
    """
    name, possible = brats_sub_challenge(path)
    if name == "MEN-RT":
        raise ValueError(
            f"{path}: BraTS-MEN-RT has one label, the gross tumour volume, and none of the regions of BraTS; train it "
            "as a separate task with a dataset.json (genesis_msd_segmentation)."
        )
    if name and convention not in possible:
        raise ValueError(
            f"{path}: expected the label convention {' or '.join(possible)} of BraTS-{name}, found {convention}."
        )


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
        label: ``(1, X, Y, Z)``, of a slice ``(1, X, Y)``, or ``(X, Y, Z)`` with more than one X, whole numbers.
        convention: what the labels mean, a key of :data:`BRATS_LABELS`. It cannot be told from the values: a 4 is
            enhancing tumour in 2018, and a resection cavity in 2024.
        regions: some of :data:`BRATS_REGIONS`, one channel each in that order.

    Returns:
        ``(R, X, Y, Z)``, of a slice ``(R, X, Y)``, 0 or 1, uint8; of the kind that came in.

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
    if array.ndim == 4 or (array.ndim == 3 and array.shape[0] == 1):
        array = array[0]
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
    enhancing tumour becomes label 1 (2 in ``"msd"`` and ``"2024-ped"``), what of the whole tumour is left oedema. Of
    the whole tumour alone, all becomes oedema, for no label stands for the tumour as a whole.

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
