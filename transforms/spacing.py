# SPDX-License-Identifier: Apache-2.0
"""Resampling to a spacing, of items that hold paths, numbers or other scans under a scan's name."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd
from monai.utils.enums import PostFix


class Spacingd(MonaiSpacingd):
    """MONAI's ``Spacingd``, to which the scans alone are shown.

    After it has resampled the NIfTI file of ``image``, MONAI 1.6.1 takes every entry whose key begins with ``image_``
    for a dictionary of metadata, and calls its ``update``: of a path (``image_path``, which MONAI Label puts into each
    item), of another scan (``image_seg``), and of a dictionary that belongs to something else. Here only
    ``image_meta_dict`` is brought up to date, in a copy.

    Args:
        args: see ``monai.transforms.Spacingd``.
        kwargs: see ``monai.transforms.Spacingd``.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "scan.nii.gz"})
        >>> item = Spacingd("image", pixdim=(0.5, 1, 1))({"image": image, "image_path": "scan.nii.gz"})
        >>> item["image"].shape, item["image_path"]
        (torch.Size([1, 3, 2, 2]), 'scan.nii.gz')
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Resample the scans of an item.

        Args:
            data: the item, which is not changed; what else it holds is returned as it is.
            lazy: see ``monai.transforms.Spacingd``.

        Returns:
            The item with other scans, their metadata up to date.

        Raises:
            KeyError: see ``monai.transforms.Spacingd``.
        """
        # none of these names begins with another and an underscore
        names = {key: str(self.keys.index(key)) for key in self.key_iterator(data)}
        renamed = copy.copy(self)
        renamed.keys = tuple(map(str, range(len(self.keys))))
        renamed.allow_missing_keys = True
        found = MonaiSpacingd.__call__(renamed, {name: data[key] for key, name in names.items()}, lazy)
        result: dict[Hashable, Any] = {**data, **{key: found[name] for key, name in names.items()}}
        for key in names:
            scan, meta_key = result[key], PostFix.meta(str(key))
            if isinstance(scan, MetaTensor) and isinstance(result.get(meta_key), dict):
                result[meta_key] = {**result[meta_key], **scan.meta}
        return result
