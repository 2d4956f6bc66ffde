# SPDX-License-Identifier: Apache-2.0
"""One case of a segmentation task, image and label, checked before anything is learned or measured from it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey, convert_data_type, ensure_tuple

Modality = Literal["CT", "MR"]

CT_LOW_HU = -50.0
"""Fat and air lie below, every other tissue above, and MR intensities do not go there."""

CT_LOW_SHARE = 0.005
"""Least share of a CT's voxels below :data:`CT_LOW_HU`, and the share that an MR never reaches."""

CT_PADDING_HU = -1500.0
"""Below lies no tissue and no air, whatever its noise: what scanners write outside of their field of view."""

CT_PADDING_SPREAD = 0.05
"""Share of a CT's voxels that may lie below :data:`CT_PADDING_HU` with another value than the padding's, in a scan
without soft tissue."""

CT_SOFT_TISSUE_HU = (-200.0, 200.0)
"""Where the soft tissue of any patient lies; of one whose HU were shifted down by 1024, dense bone alone."""

CT_SOFT_TISSUE_SHARE = 0.02
"""Least share of a CT's voxels there."""


class BadCaseError(ValueError):
    """A case that cannot be used; the message names it, what was expected and what was found.

    Args:
        case: the case's file or patient.
        reason: short reason, the same for all cases with the same fault.
        detail: what was expected and what was found.
    """

    def __init__(self, case: str, reason: str, detail: str) -> None:
        super().__init__(case, reason, detail)
        self.case = case
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        """Say which case is bad and why."""
        return f"{self.case}: {self.reason}: {self.detail}"


def declared_values(labels: Mapping[Any, str] | Iterable[int]) -> list[int]:
    """Read the values that a label map may have.

    Args:
        labels: the values, or a data list's ``"labels"``: names by value, the values also as text (JSON).

    Returns:
        The values in order.

    Example:
        >>> declared_values({"0": "background", "1": "liver"}), declared_values([4, 0])
        ([0, 1], [0, 4])
    """
    return sorted({int(value) for value in labels})


def space_difference(shape: Iterable[int], affine: np.ndarray, other: np.ndarray) -> float:
    """Measure how far two affines put the same voxel apart.

    Args:
        shape: voxels along each axis.
        affine: ``(N + 1, N + 1)``, voxels to mm.
        other: the same of the other image.

    Returns:
        The largest distance over all voxels (it is one of the corners'), in units of the smaller voxel side.

    Example:
        >>> space_difference((11, 5, 5), np.diag([1.0, 2.0, 2.0, 1.0]), np.diag([1.1, 2.0, 2.0, 1.0]))
        1.0
    """
    shape = tuple(shape)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij")).reshape(len(shape), -1)
    points = np.vstack([corners, np.ones(corners.shape[1])])
    apart = np.linalg.norm(((np.asarray(affine, float) - np.asarray(other, float)) @ points)[:-1], axis=0).max()
    sides = [np.linalg.norm(np.asarray(each, float)[:-1, :-1], axis=0).min() for each in (affine, other)]
    return float(round(apart / max(min(sides), 1e-9), 6))


def check_case(
    item: Mapping[Hashable, Any],
    labels: Mapping[Any, str] | Iterable[int],
    modality: Modality | None = None,
    channels: int | None = None,
    keys: KeysCollection = ("image", "label"),
    tolerance: float = 0.1,
    require_foreground: bool = True,
) -> None:
    """Check a loaded case; the first fault found is an error.

    Whether an image is a CT is guessed from its values: HU have fat and air, at least 0.5 % of the voxels of any scan
    of a patient are below -50; MR intensities are not negative but for the undershoot of a resampling. What is not
    stored in HU (no air, minimum 0) is refused as CT, too. A crop without fat and air needs ``modality=None``.
    Values below -1500 are padding: they are no air, and noise among them, in a scan without soft tissue, means that HU
    were shifted down once more.

    Args:
        item: the case as ``LoadImaged(..., ensure_channel_first=True)`` gives it, before any other transform.
        labels: the label values that may occur, see :func:`declared_values`; 0 is background and always may.
        modality: ``"CT"`` or ``"MR"``; ``None`` for no check.
        channels: channels that the image must have; ``None`` for any.
        keys: keys of the image and of the label; an item without the label's key is checked without.
        tolerance: how far apart the affines may put a voxel, in units of the smaller voxel side.
        require_foreground: whether a label map of background only is a fault.

    Raises:
        BadCaseError: When a channel is missing, image and label differ in shape or space, the label has values that are
            not whole or not declared or no foreground, the image has values that are not finite, or another modality.
    """
    image_key, label_key = ensure_tuple(keys)
    image, name = item[image_key], case_name(item, image_key)
    values: np.ndarray = convert_data_type(image, np.ndarray)[0]
    if channels is not None and values.shape[0] != channels:
        raise BadCaseError(name, "channels missing", f"expected {channels} channels, found {values.shape[0]}")
    if label_key in item:
        try:
            _check_space(name, image, item[label_key], tolerance)
            _check_label(
                name, convert_data_type(item[label_key], np.ndarray)[0], declared_values(labels), require_foreground
            )
        except BadCaseError as error:
            file = _file_of(item[label_key])  # of which the image's name may tell nothing
            raise BadCaseError(name, error.reason, f"{error.detail}, in {file}" if file else error.detail) from None
    check_intensities(name, values, modality)


def case_name(item: Mapping[Hashable, Any], image_key: Hashable = "image") -> str:
    """Name a case: the image's file where it is known, else the patient, else ``"case"``."""
    return _file_of(item[image_key]) or str(item.get("patient", "case"))


def _file_of(image: Any) -> str:
    """Name the file of an image; ``""`` where it is not known."""
    return str(image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") or "") if isinstance(image, MetaTensor) else ""


def _check_space(name: str, image: Any, label: Any, tolerance: float) -> None:
    if len(label.shape) != len(image.shape) or label.shape[0] != 1:
        expected = f"one channel and {len(image.shape) - 1} axes"
        raise BadCaseError(name, "label of another shape", f"expected {expected}, found {tuple(label.shape)}")
    if tuple(label.shape[1:]) != tuple(image.shape[1:]):
        expected, found = (" x ".join(map(str, array.shape[1:])) for array in (image, label))
        raise BadCaseError(name, "label of another shape", f"expected {expected} voxels as the image, found {found}")
    if isinstance(image, MetaTensor) and isinstance(label, MetaTensor):
        apart = space_difference(image.shape[1:], np.asarray(image.affine), np.asarray(label.affine))
        check_space_difference(name, apart, tolerance)


def check_space_difference(name: str, apart: float, tolerance: float, kind: str = "label") -> None:
    """Refuse a label, or a channel, whose affine differs from the image's.

    Args:
        name: what the error calls the case.
        apart: see :func:`space_difference`.
        tolerance: how far apart the affines may put a voxel, in units of the smaller voxel side.
        kind: what is compared with the image.

    Raises:
        BadCaseError: When it is further apart than the tolerance.
    """
    if not apart <= tolerance:
        raise BadCaseError(
            name,
            f"{kind} in another space",
            f"expected the image's affine within {tolerance:g} voxels, found voxels {apart:g} apart",
        )


def label_values(name: str, label: np.ndarray) -> list[int]:
    """List the values of a label map.

    Args:
        name: what the error calls the label map.
        label: its voxels.

    Returns:
        The values in order.

    Raises:
        BadCaseError: When some are not whole numbers.

    Example:
        >>> label_values("liver.nii", np.array([[0.0, 2.0], [1.0, 2.0]]))
        [0, 1, 2]
    """
    # plane by plane: sorting a whole scan takes many times as long, and most planes are background only
    found = np.unique(np.concatenate([np.unique(plane) for plane in np.moveaxis(label, min(1, label.ndim - 1), 0)]))
    odd = [value for value in found.tolist() if not float(value).is_integer()]
    if odd:
        raise BadCaseError(name, "label not whole", f"expected whole numbers, found {_some(odd)}")
    return [int(value) for value in found.tolist()]


def _check_label(name: str, label: np.ndarray, declared: list[int], require_foreground: bool) -> None:
    found = label_values(name, label)
    undeclared = [value for value in found if value != 0 and value not in declared]
    if undeclared:
        raise BadCaseError(name, "undeclared label", f"expected values of {declared}, found {_some(undeclared)}")
    if require_foreground and not any(found):
        raise BadCaseError(name, "no foreground", f"expected voxels of {declared}, found background (0) only")


def check_intensities(name: str, image: np.ndarray, modality: Modality | None) -> None:
    """Refuse values that are not finite, or not those of a modality, see :func:`check_case`.

    Args:
        name: what the error calls the case.
        image: the values.
        modality: ``"CT"`` or ``"MR"``; ``None`` for no check of it.

    Raises:
        BadCaseError: For the first fault.
    """
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        number = int(image.size - np.isfinite(image).sum())
        raise BadCaseError(
            name, "not finite", f"expected finite voxels, found {number} of {image.size} NaN or infinite"
        )
    if modality is None:
        return
    low, padding = (float(np.mean(image < limit)) for limit in (CT_LOW_HU, CT_PADDING_HU))
    share = low - padding if modality == "CT" else low
    if (share >= CT_LOW_SHARE) != (modality == "CT"):
        expected = (
            f"a CT, fat and air below {CT_LOW_HU:g} HU in at least {CT_LOW_SHARE:.1%} of the voxels"
            if modality == "CT"
            else f"an MR, less than {CT_LOW_SHARE:.1%} of the voxels below {CT_LOW_HU:g}"
        )
        found = f"{share:.2%} of the voxels there, values {image.min():g} to {image.max():g}"
        found += f", {padding:.2%} of them padding" if modality == "CT" and padding else ""
        raise BadCaseError(name, f"not {modality}", f"expected {expected}, found {found}")
    if modality == "CT" and padding > CT_PADDING_SPREAD:
        _check_padding(name, image)


def _check_padding(name: str, image: np.ndarray) -> None:
    """Refuse a CT with noise where only padding can be and no soft tissue: -1024 was added twice."""
    values = image[image < CT_PADDING_HU].astype(np.float32)
    others = float(np.count_nonzero(np.abs(values - np.median(values)) > 1)) / image.size
    low, high = CT_SOFT_TISSUE_HU
    soft = float(np.mean((image >= low) & (image <= high)))
    if others > CT_PADDING_SPREAD and soft < CT_SOFT_TISSUE_SHARE:
        raise BadCaseError(
            name,
            "not CT",
            f"expected a CT, soft tissue from {low:g} to {high:g} HU in at least {CT_SOFT_TISSUE_SHARE:.0%} of the "
            f"voxels and padding of one value below {CT_PADDING_HU:g} HU, found {soft:.2%} and {others:.2%} of the "
            f"voxels with others there, {values.min():g} to {values.max():g}: was the rescale intercept added twice? "
            "--modality None switches this check off",
        )


def _some(values: list[Any]) -> str:
    return f"{values[:5]}" + (f" and {len(values) - 5} more" if len(values) > 5 else "")


class CheckSegmentationCased(MapTransform):
    """Check image and label of a case as :func:`check_case` does; a good case passes unchanged.

    It comes right after loading, before the geometry changes. A bad case is an error here; to leave bad cases out
    instead, see :func:`models_genesis.datasets.check_cases`.

    Args:
        keys: keys of the image and of the label.
        labels: the label values that may occur, or a data list's ``"labels"``; 0 always may.
        modality: ``"CT"`` or ``"MR"``; ``None`` for no check.
        channels: channels that the image must have; ``None`` for any.
        tolerance: how far apart the affines may put a voxel, in units of the smaller voxel side.
        require_foreground: whether a label map of background only is a fault.
        allow_missing_keys: whether an item may lack the label.

    Raises:
        ValueError: When ``keys`` are not two, or the modality is another; :class:`BadCaseError` for a bad case.

    Example:
        >>> item = {"image": np.zeros((1, 4, 4, 4)), "label": np.full((1, 4, 4, 4), 3), "patient": "P7"}
        >>> try:
        ...     CheckSegmentationCased(labels=[0, 1])(item)
        ... except ValueError as error:
        ...     print(error)
        P7: undeclared label: expected values of [0, 1], found [3]
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        labels: Mapping[Any, str] | Iterable[int] = (0, 1),
        modality: Modality | None = None,
        channels: int | None = None,
        tolerance: float = 0.1,
        require_foreground: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 2:
            raise ValueError(f"keys: expected those of image and label, found {self.keys}.")
        if modality not in ("CT", "MR", None):
            raise ValueError(f"modality: expected 'CT', 'MR' or None, found {modality!r}.")
        self.labels = declared_values(labels)
        self.modality = modality
        self.channels = channels
        self.tolerance = tolerance
        self.require_foreground = require_foreground

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item as it is, or raise for its first fault."""
        list(self.key_iterator(dict(data)))  # a missing key raises its own error
        check_case(data, self.labels, self.modality, self.channels, self.keys, self.tolerance, self.require_foreground)
        return dict(data)
