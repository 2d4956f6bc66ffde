# SPDX-License-Identifier: Apache-2.0
"""Where the deformations run: in the loader, on the CPU or on the device, or on whole batches in the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from monai.engines.utils import default_prepare_batch
from monai.transforms import Compose, EnsureTyped
from monai.utils.enums import CommonKeys
from torch import Tensor

from ...transforms.batch_deform import BatchGenesisDeform
from ...transforms.device_deform import RandDeformSeedd, RandGenesisDeformOnDeviced
from ...transforms.genesis_deform import RandGenesisDeformd

__all__ = ["DEFORM_ON", "BatchDeformation", "DeformationBackend", "prepare_pinned_batch"]

DEFORM_ON = ("cpu", "device", "step")


class DeformationBackend:
    """What a loader and a trainer need so that cubes are deformed on the chosen backend.

    - ``"cpu"``: one by one in the loader's workers, by compiled loops.
    - ``"device"``: one by one in the loader, on the device, after the cube was copied there. MONAI's pattern for random
      transforms on a GPU, so ``num_workers`` must be 0.
    - ``"step"``: the whole batch at once on the device, as the first part of a training step.

    In each the deformations depend on the samples' seeds alone, so on a
    :class:`~models_genesis.datasets.CubeDataset` they are the same for any number of workers, after a
    resume, and in each validation. The backends draw from the same distribution, but not the same numbers.

    Args:
        deform_on: one of the three.
        device: where the network trains; used by ``"device"``.
        num_workers: worker processes of the loader.
        kinds_key: key under which each item of a batch has the map of what was done to its voxels once the batch is
            prepared, see :data:`~models_genesis.transforms.VOXEL_KINDS`; None: no map.
        deform: arguments of the deformation, see :class:`~models_genesis.transforms.RandGenesisDeformd`.

    Attributes:
        transform: the last random transform of the dataset; needs the cube as ``"image"``.
        prepare_batch: the trainer's and evaluator's argument of that name.

    Raises:
        ValueError: for another backend, or for workers with ``"device"``.

    Example:
        >>> sorted(DeformationBackend("step").transform.set_random_state(0)({"image": np.zeros((1, 16, 16, 16))}))
        ['deform_seed', 'image']
    """

    def __init__(
        self,
        deform_on: str = "cpu",
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        kinds_key: str | None = None,
        **deform: Any,
    ) -> None:
        self.prepare_batch: Callable[..., Any] = prepare_pinned_batch
        if deform_on == "cpu":
            self.transform: Any = RandGenesisDeformd(CommonKeys.IMAGE, CommonKeys.LABEL, kinds_key=kinds_key, **deform)
        elif deform_on == "device":
            if num_workers > 0:
                raise ValueError(
                    f"num_workers: deform_on='device' expected 0, found {num_workers}: forked workers cannot use a GPU"
                )
            self.transform = Compose(
                [
                    EnsureTyped(CommonKeys.IMAGE, device=torch.device(device), track_meta=False),
                    RandGenesisDeformOnDeviced(CommonKeys.IMAGE, CommonKeys.LABEL, kinds_key=kinds_key, **deform),
                ]
            )
        elif deform_on == "step":
            self.transform = RandDeformSeedd()
            self.prepare_batch = BatchDeformation(self.transform.seed_key, kinds_key, **deform)
        else:
            raise ValueError(f"deform_on: expected one of {DEFORM_ON}, found {deform_on!r}")


def _pinned(tensor: Tensor, device: torch.device | str | None, non_blocking: bool) -> tuple[Tensor, bool]:
    """A tensor from which a copy to a GPU does not wait for what the GPU does, and whether the copy may run ahead."""
    if device is None or torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor, non_blocking
    return tensor.pin_memory(), True


def prepare_pinned_batch(
    batchdata: dict[str, Any],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Any:
    """MONAI's ``default_prepare_batch``, but the copies to a GPU do not wait for the work that it still has.

    The tensors are pinned here rather than by the loader: a worker process that is forked while pinned tensors are
    garbage aborts when it frees them.

    Args:
        batchdata: ``"image"`` and ``"label"``.
        device: where the network is.
        non_blocking: see ``torch.Tensor.to``.
        kwargs: further arguments of ``torch.Tensor.to``.

    Returns:
        Images and labels on the device.
    """
    pinned = dict(batchdata)
    for key in (CommonKeys.IMAGE, CommonKeys.LABEL):
        if isinstance(pinned.get(key), Tensor):
            pinned[key], non_blocking = _pinned(pinned[key], device, non_blocking)
    return default_prepare_batch(pinned, device, non_blocking, **kwargs)


class BatchDeformation:
    """A MONAI ``prepare_batch`` that moves a batch of cubes to the device and deforms it there at once.

    The generator is seeded by all seeds of the batch, so the deformations depend on which samples it holds alone.

    Args:
        seed_key: key of the samples' seeds, int64 on the host.
        kinds_key: key under which the batch gets the map of what was done to each voxel; None: no map.
        deform: arguments of :class:`~models_genesis.transforms.BatchGenesisDeform` but for seed and device.
    """

    def __init__(self, seed_key: str = "deform_seed", kinds_key: str | None = None, **deform: Any) -> None:
        self.seed_key = seed_key
        self.kinds_key = kinds_key
        self.arguments = {**deform, "record_kinds": kinds_key is not None}
        self.deform = BatchGenesisDeform(**self.arguments)

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Deform a batch.

        Args:
            batchdata: ``"image"`` (B, C, x[, y[, z]]) and the seeds (B,).
            device: where the network is; None: where the images are.
            non_blocking: see ``torch.Tensor.to``.
            kwargs: further arguments of ``torch.Tensor.to``.

        Returns:
            The deformed images and their targets, float32.

        Raises:
            ValueError: when the batch has no seeds.
        """
        if self.seed_key not in batchdata:
            raise ValueError(
                f"{self.seed_key}: expected in each batch, found {sorted(batchdata)}; the dataset's last random "
                "transform must be the one of the same backend"
            )
        images, non_blocking = _pinned(batchdata[CommonKeys.IMAGE], device, non_blocking)
        images = images.to(device=device, non_blocking=non_blocking, **kwargs)
        if self.deform.generator.device != images.device:
            self.deform = BatchGenesisDeform(**self.arguments, device=images.device)
        seeds = torch.as_tensor(batchdata[self.seed_key]).tolist()
        (words,) = np.random.SeedSequence(seeds).generate_state(1, np.uint64).tolist()
        self.deform.generator.manual_seed(words >> 1)
        deformed, target = self.deform(images)
        if self.kinds_key is not None:
            batchdata[self.kinds_key] = self.deform.kinds
        return deformed, target
