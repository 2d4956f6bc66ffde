# SPDX-License-Identifier: Apache-2.0
"""Resampling to a spacing, of items that hold paths or numbers next to their scans."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Spacingd as MonaiSpacingd


class Spacingd(MonaiSpacingd):
    """MONAI's ``Spacingd``, to which only scans and their metadata are shown.

    After it has resampled the NIfTI file of ``image``, MONAI 1.6.1 takes every entry whose key begins with ``image_``
    for a dictionary of metadata, and calls its ``update``. MONAI Label puts the file's path into each item, as
    ``image_path``, so that its inference fails with ``'str' object has no attribute 'update'``.

    Args:
        args: see ``monai.transforms.Spacingd``.
        kwargs: see ``monai.transforms.Spacingd``.

    Example:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "scan.nii.gz"})
        >>> item = Spacingd("image", pixdim=(0.5, 1, 1))({"image": image, "image_path": "scan.nii.gz"})
        >>> item["image"].shape, item["image_path"]
        (torch.Size([1, 3, 2, 2]), 'scan.nii.gz')
    """

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Resample the scans of an item.

        Args:
            data: the item; what else it holds is returned as it is.
            lazy: see ``monai.transforms.Spacingd``.

        Returns:
            The item with other scans, their metadata up to date.
        """
        seen: dict[Hashable, Any] = {
            key: value for key, value in data.items() if key in self.keys or isinstance(value, dict)
        }
        return {**data, **super().__call__(seen, lazy)}
