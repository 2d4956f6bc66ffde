# SPDX-License-Identifier: Apache-2.0
"""A scan as it is cached: checked, clipped to its intensity range, and in the smallest type that keeps it exact.

:class:`ClipHounsfieldd` and then :class:`ScaleHounsfieldd` are how every stage of every bundle prepares CT: training
clips the cached scan and scales the cubes cut from it, validation and inference do both to whole scans.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, convert_data_type, convert_to_dst_type

logger = logging.getLogger(__name__)

INT16 = np.iinfo(np.int16)


class ClipHounsfield(Transform):
    """Check a scan and clip it to its intensity range: int16 where that is exact, float32 elsewhere.

    CT voxels are integers in HU, so int16 keeps them exactly in a quarter of the memory of float64. A scan with other
    values after clipping (resampled, or scaled by its header) becomes float32, which is logged; nothing is rounded to
    integers. The paper clips to [-1000, 1000] HU (arXiv:2004.07882, section on pre-training).

    Args:
        intensity_range: lowest and highest value kept, in the scan's units (HU for CT).
        spatial_dims: number of spatial dimensions that the scan must have.
        round_values: whether values are rounded to whole numbers, so that a resampled scan is int16 too; an error of
            half a HU is far below the noise of CT.

    Raises:
        ValueError: When the range is empty or not finite.

    Example:
        >>> ClipHounsfield()(np.array([[[[-1024.0, 40.0, 3071.0]]]]))
        array([[[[-1000,    40,  1000]]]], dtype=int16)
    """

    def __init__(
        self,
        intensity_range: tuple[float, float] = (-1000.0, 1000.0),
        spatial_dims: int = 3,
        round_values: bool = False,
    ) -> None:
        low, high = intensity_range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"intensity_range must be two finite numbers, low < high, got {intensity_range}.")
        self.intensity_range = (float(low), float(high))
        self.spatial_dims = spatial_dims
        self.round_values = round_values

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Check and clip one scan.

        Args:
            img: scan of shape ``(C, X[, Y, Z])``, any real type; of a MetaTensor, messages name the file.

        Returns:
            The clipped scan, of the same kind and shape, int16 or float32.

        Raises:
            ValueError: When the scan has another number of dimensions, no voxels, values that are not finite, or an
                affine without a volume (a spacing of zero).
        """
        name = img.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "scan") if isinstance(img, MetaTensor) else "scan"
        volume: np.ndarray = convert_data_type(img, np.ndarray)[0]
        if volume.ndim != self.spatial_dims + 1 or volume.size == 0:
            raise ValueError(
                f"{name}: expected channels and {self.spatial_dims} spatial dimensions, found shape {volume.shape}."
            )
        if volume.dtype.kind not in "biuf":
            raise ValueError(f"{name}: expected real numbers, found {volume.dtype}.")
        if isinstance(img, MetaTensor):
            check_affine(convert_data_type(img.affine, np.ndarray)[0], name)
        clipped = self._clip(volume, name)
        return convert_to_dst_type(clipped, dst=img, dtype=clipped.dtype)[0]

    def _clip(self, volume: np.ndarray, name: str) -> np.ndarray:
        """Clip plane by plane, so that a float64 scan needs no second copy of its size."""
        exact = np.empty(volume.shape, dtype=np.int16)
        inexact = non_finite = 0
        for target, plane in zip(_planes(exact), _planes(volume), strict=True):
            values = self._clip_plane(plane)
            if values.dtype.kind == "f":
                non_finite += values.size - int(np.isfinite(values).sum())
                if non_finite == 0:
                    inexact += int(((values != np.rint(values)) | (values < INT16.min) | (values > INT16.max)).sum())
                if non_finite or inexact:
                    continue
            target[...] = values
        if non_finite:
            raise ValueError(f"{name}: expected finite voxels, found {non_finite} of {volume.size} NaN or infinite.")
        if not inexact:
            return exact
        logger.info("%s: %d of %d voxels are no int16 numbers; kept as float32.", name, inexact, volume.size)
        del exact
        rough = np.empty(volume.shape, dtype=np.float32)
        for target, plane in zip(_planes(rough), _planes(volume), strict=True):
            target[...] = self._clip_plane(plane)
        return rough

    def _clip_plane(self, plane: np.ndarray) -> np.ndarray:
        """Clip one plane; NaN and infinity stay, so that they can be counted. The result is int16 or a float type."""
        low, high = self.intensity_range
        if plane.dtype.kind in "bu" or plane.dtype.kind == "i":
            integral = low.is_integer() and high.is_integer() and INT16.min <= low and high <= INT16.max
            plane = plane.astype(np.int64 if integral else np.float64)
            return np.clip(plane, int(low), int(high)).astype(np.int16) if integral else np.clip(plane, low, high)
        plane = plane.astype(np.promote_types(plane.dtype, np.float32), copy=False)
        plane = np.rint(plane) if self.round_values else plane
        return np.where(np.isfinite(plane), np.clip(plane, low, high), plane)


class ClipHounsfieldd(MapTransform):
    """Dictionary form of :class:`ClipHounsfield`.

    Args:
        keys: keys of the scans.
        intensity_range: lowest and highest value kept, in the scan's units (HU for CT).
        spatial_dims: number of spatial dimensions that each scan must have.
        allow_missing_keys: whether an item may lack a key.
        round_values: whether values are rounded to whole numbers.
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensity_range: tuple[float, float] = (-1000.0, 1000.0),
        spatial_dims: int = 3,
        allow_missing_keys: bool = False,
        round_values: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clip = ClipHounsfield(intensity_range, spatial_dims, round_values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with its scans checked and clipped."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.clip(item[key])
        return item


class ScaleHounsfield(Transform):
    """Map an intensity range to [0, 1] as float32; values outside count as its nearest end.

    MONAI's ``ScaleIntensityRange`` subtracts in the scan's own type, so that of an int16 scan every voxel from 31,768
    HU on (metal) wraps around to the value of air. Here each voxel is computed in float64 and rounded once.

    Args:
        intensity_range: lowest and highest value, in the scan's units (HU for CT); they become 0 and 1.

    Raises:
        ValueError: When the range is empty or not finite.

    Example:
        >>> ScaleHounsfield()(np.array([[-32768, 0, 500, 32767]], dtype=np.int16))
        array([[0.  , 0.5 , 0.75, 1.  ]], dtype=float32)
    """

    def __init__(self, intensity_range: tuple[float, float] = (-1000.0, 1000.0)) -> None:
        low, high = intensity_range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"intensity_range must be two finite numbers, low < high, got {intensity_range}.")
        self.intensity_range = (float(low), float(high))

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Scale one scan or cube.

        Args:
            img: shape ``(C, X[, Y, Z])``, any real type; it is not changed.

        Returns:
            The scaled image, of the same kind and shape, float32.
        """
        low, high = self.intensity_range
        volume: np.ndarray = convert_data_type(img, np.ndarray)[0]
        scaled = np.empty(volume.shape, dtype=np.float32)
        for target, plane in zip(_planes(scaled), _planes(volume), strict=True):
            target[...] = (np.clip(plane.astype(np.float64), low, high) - low) / (high - low)
        return convert_to_dst_type(scaled, dst=img, dtype=np.float32)[0]


class ScaleHounsfieldd(MapTransform):
    """Dictionary form of :class:`ScaleHounsfield`.

    Args:
        keys: keys of the scans.
        intensity_range: lowest and highest value, in the scan's units (HU for CT); they become 0 and 1.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        intensity_range: tuple[float, float] = (-1000.0, 1000.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scale = ScaleHounsfield(intensity_range)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with its scans scaled."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.scale(item[key])
        return item


def whole_number_dtype(intensity_range: tuple[float, float]) -> str:
    """Name the smallest signed integer type, of at least 16 bits, in which a scan of this range can be written.

    Args:
        intensity_range: lowest and highest value.

    Returns:
        ``"int16"`` or ``"int32"``.

    Example:
        >>> whole_number_dtype((-1000, 1000)), whole_number_dtype((-1024, 64000))
        ('int16', 'int32')
    """
    low, high = intensity_range
    return "int16" if INT16.min <= low and high <= INT16.max else "int32"


def check_affine(affine: np.ndarray, name: str = "scan") -> None:
    """Refuse an affine that maps voxels to no volume.

    Args:
        affine: ``(N + 1, N + 1)``, voxels to mm.
        name: what messages call the scan.

    Raises:
        ValueError: When it holds NaN or infinity, a spacing of zero, or is singular.

    Example:
        >>> check_affine(np.diag([1.0, 1.0, 0.0, 1.0]), "a.nii.gz")
        Traceback (most recent call last):
            ...
        ValueError: a.nii.gz: expected spacings above zero, found 1.0 x 1.0 x 0.0 mm.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:-1, :-1]
    if not np.isfinite(affine).all():
        raise ValueError(f"{name}: expected a finite affine, found {np.asarray(affine).tolist()}.")
    spacing = np.linalg.norm(matrix, axis=0)
    if not (spacing > 0).all():
        raise ValueError(f"{name}: expected spacings above zero, found {' x '.join(map(str, spacing.tolist()))} mm.")
    # the volume of a voxel over that of a box with the same sides: 1 for right angles, 0 for axes in one plane
    if abs(np.linalg.det(matrix / spacing)) < 1e-3:
        raise ValueError(f"{name}: expected three independent axes, found the affine {np.asarray(affine).tolist()}.")


def _planes(volume: np.ndarray) -> np.ndarray:
    """View a channel-first array as planes of its first spatial axis, to be looped over; the memory is shared."""
    return np.moveaxis(volume, 1, 0)
