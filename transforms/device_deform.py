# SPDX-License-Identifier: Apache-2.0
"""The deformations where the image lives, for loaders whose random transforms run on a GPU."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple_rep
from monai.utils.enums import TransformBackends
from torch import Tensor

from .batch_deform import BatchGenesisDeform
from .local_shuffle import draw_seed

__all__ = ["RandDeformSeedd", "RandGenesisDeformOnDeviced"]


class RandGenesisDeformOnDeviced(RandomizableTransform, MapTransform):
    """Deform tensors as :class:`RandGenesisDeformd` does, but on their own device (arXiv:2004.07882, section 3).

    ``self.R`` gives one seed; the draws come from a generator on the device, so the results are not those of
    :class:`RandGenesisDeformd` for the same random state, though their distribution is.

    Args:
        keys: keys of the images, tensors (C, x[, y[, z]]) of one spatial shape; put ``EnsureTyped(device=...)`` before.
        target_keys: keys of the targets, one for each image.
        allow_missing_keys: whether a missing key is passed over.
        kinds_key: key under which the item gets the map of what was done to each voxel, see
            :attr:`BatchGenesisDeform.kinds`; None: no map.
        deform: arguments of :class:`BatchGenesisDeform` but for seed and device.

    Example:
        >>> import torch
        >>> deform = RandGenesisDeformOnDeviced("image").set_random_state(0)
        >>> sorted(deform({"image": torch.zeros(1, 16, 16, 16)}))
        ['image', 'label']
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        target_keys: KeysCollection = "label",
        allow_missing_keys: bool = False,
        kinds_key: str | None = None,
        **deform: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.target_keys = ensure_tuple_rep(target_keys, len(self.keys))
        if len(set(self.target_keys)) != len(self.keys):
            raise ValueError(f"target_keys: expected one key for each of {self.keys}, found {self.target_keys}")
        self.kinds_key = kinds_key
        self.arguments = {**deform, "record_kinds": kinds_key is not None}
        self.deform = BatchGenesisDeform(**self.arguments)
        self.seed = 0

    def randomize(self, data: Any | None = None) -> None:
        """Draw the seed of all further draws."""
        super().randomize(None)
        self.seed = draw_seed(self.R) >> 1

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with deformed images and their targets; all keys share the parameters."""
        d = dict(data)
        self.randomize()
        first = self.first_key(d)
        for key, target_key in self.key_iterator(d, self.target_keys):
            image: Tensor = d[key]
            if image.shape[1:] != (shape := d[first].shape[1:]):
                raise ValueError(
                    f"{key}: expected the spatial shape of {first}, {tuple(shape)}, found {tuple(image.shape[1:])}"
                )
            if self.deform.generator.device != image.device:
                self.deform = BatchGenesisDeform(**self.arguments, device=image.device)
            self.deform.generator.manual_seed(self.seed)
            deformed, target = self.deform(image.unsqueeze(0))
            d[key], d[target_key] = deformed[0], target[0]
            if self.kinds_key is not None and self.deform.kinds is not None:
                d[self.kinds_key] = self.deform.kinds[0]
        return d


class RandDeformSeedd(RandomizableTransform):
    """Add a seed to an item, for the deformation of the whole batch later.

    Args:
        seed_key: key of the seed, an int64 of 63 random bits.

    Example:
        >>> sorted(RandDeformSeedd().set_random_state(0)({"scan": 3}))
        ['deform_seed', 'scan']
    """

    def __init__(self, seed_key: str = "deform_seed") -> None:
        super().__init__(1.0)
        self.seed_key = seed_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with a seed."""
        return {**data, self.seed_key: np.int64(draw_seed(self.R) >> 1)}
