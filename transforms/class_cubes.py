# SPDX-License-Identifier: Apache-2.0
"""Cubes or slices that show each class equally often, however small it is: balanced crops for segmentation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.transforms.utils import generate_label_classes_crop_centers, map_classes_to_indices
from monai.utils import convert_data_type, ensure_tuple

from .cube_sampling import cut_cube, drop_axis, window_size

VOXELS_KEY = "class_voxels_{}"
"""Key of the voxels of a class, which :class:`ClassVoxelsd` adds and :class:`RandClassCubed` takes away."""


class ClassVoxelsd(MapTransform):
    """Note where each class of a label map is, once for each case, so that cubes can be drawn without a search.

    The flat indices of class ``c`` go to ``item["class_voxels_c"]`` as an array, so that a cache on disk can map them.
    It is MONAI's ``ClassesToIndicesd`` with arrays instead of a list.

    Args:
        keys: key of the label map, one channel, class numbers.
        num_classes: number of classes with the background.
        max_voxels: most voxels noted of a class, evenly spread over all of its voxels; it bounds the memory.
        allow_missing_keys: whether an item may lack the label.

    Example:
        >>> item = ClassVoxelsd("label", num_classes=2)({"label": np.array([[[0, 1], [1, 0]]])})
        >>> item["class_voxels_0"].tolist(), item["class_voxels_1"].tolist()
        ([0, 3], [1, 2])
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, max_voxels: int = 20_000, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1 or num_classes < 2 or max_voxels < 1:
            raise ValueError(
                "expected one key, num_classes of at least 2 and max_voxels of at least 1, "
                f"got {self.keys}, {num_classes} and {max_voxels}"
            )
        self.num_classes = num_classes
        self.max_voxels = max_voxels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with the voxels of each class."""
        item = dict(data)
        for key in self.key_iterator(item):
            label: np.ndarray = convert_data_type(item[key], np.ndarray)[0]
            voxels = map_classes_to_indices(label, self.num_classes, max_samples_per_class=self.max_voxels)
            for number, indices in enumerate(voxels):
                item[VOXELS_KEY.format(number)] = convert_data_type(indices, np.ndarray, dtype=np.int64)[0]
        return item


class RandClassCubed(RandomizableTransform, MapTransform):
    """Cut a cube or a slice around a voxel of a class that is drawn first: small classes come as often as large ones.

    It is MONAI's ``RandCropByLabelClassesd`` on the voxels that :class:`ClassVoxelsd` noted; it copies the cube alone,
    also from arrays that are mapped from disk. With equal ratios and two classes it is ``RandCropByPosNegLabeld`` with
    ``pos=1, neg=1``. A class that a case lacks is not drawn there.

    Args:
        keys: keys of the image and the label map, all of the same spatial shape.
        cube_size: sides of the cube in voxels, none longer than the image's; with ``slice_axis`` two, of the slice.
        ratios: how often each class is drawn, background first; equal by default.
        allow_missing_keys: whether an item may lack a key.
        slice_axis: axis that slices stand across, which they do not have any more; ``None`` for cubes. See
            :func:`window_size`. The slice is the one that the drawn voxel lies in, so that it shows the drawn class.

    Raises:
        ValueError: when an item lacks the voxels, the image is smaller than the cube, or a slice has not two sides.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int],
        ratios: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
        slice_axis: int | None = None,
    ) -> None:
        RandomizableTransform.__init__(self, prob=1.0)
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.cube_size = tuple(int(side) for side in ensure_tuple(window_size(cube_size, slice_axis)))
        self.slice_axis = slice_axis
        self.ratios = None if ratios is None else [float(ratio) for ratio in ratios]
        self._start: tuple[int, ...] = ()

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw a class and one of its voxels.

        Args:
            data: the item.
        """
        voxels: list[Any] = []
        while (key := VOXELS_KEY.format(len(voxels))) in data:
            voxels.append(data[key])
        if not voxels:
            raise ValueError(f"expected {VOXELS_KEY.format(0)!r} from ClassVoxelsd, found the keys {list(data)}")
        shape = data[self.first_key(dict(data))].shape[1:]
        (centre,) = generate_label_classes_crop_centers(
            self.cube_size, 1, shape, voxels, self.ratios, self.R, allow_smaller=False, warn=False
        )
        self._start = tuple(int(c) - side // 2 for c, side in zip(centre, self.cube_size, strict=True))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with cubes instead of whole arrays, and without the voxels of the classes."""
        self.randomize(data)
        prefix = VOXELS_KEY.format("")
        item = {key: value for key, value in data.items() if not str(key).startswith(prefix)}
        for key in self.key_iterator(item):
            cube = cut_cube(item[key], self._start, self.cube_size)
            item[key] = cube if self.slice_axis is None else drop_axis(cube, self.slice_axis)
        return item
