# SPDX-License-Identifier: Apache-2.0
"""Telling from the shapes of its tensors which network a weight file was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Count the numbers in ``tensors`` that training changes, that is all but batch norm's buffers.

    Args:
        tensors: a state dict.

    Returns:
        The count.
    """
    return sum(tensor.numel() for name, tensor in tensors.items() if name.rpartition(".")[2] not in _BUFFERS)


def genesis_architecture(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]] | None:
    """Tell the class of the network and the arguments that make it, from a state dict with our names.

    Args:
        tensors: a state dict under bare names.

    Returns:
        ``("GenesisUNet" or "GenesisClassifier", keyword arguments)``, None for any other network. Activation and norm
        do not show in shapes, and are not told.

    Example:
        >>> from models_genesis.networks import GenesisUNet
        >>> genesis_architecture(GenesisUNet(2, 3, 4, features=(8, 16)).state_dict())
        ('GenesisUNet', {'spatial_dims': 2, 'in_channels': 3, 'features': (8, 16), 'out_channels': 4})
    """
    kernels: list[Tensor] = []
    while (name := f"encoder.levels.{len(kernels)}.conv2.weight") in tensors:
        kernels.append(tensors[name])
    first = tensors.get("encoder.levels.0.conv1.weight")
    if first is None or not kernels:
        return None
    arguments: dict[str, Any] = {
        "spatial_dims": first.ndim - 2,
        "in_channels": first.shape[1],
        "features": tuple(kernel.shape[0] for kernel in kernels),
    }
    if "head.weight" in tensors:
        return "GenesisUNet", arguments | {"out_channels": tensors["head.weight"].shape[0]}
    if "hidden.weight" in tensors and "classes.weight" in tensors:
        classes, hidden = tensors["classes.weight"].shape
        return "GenesisClassifier", arguments | {"num_classes": classes, "hidden_channels": hidden}
    return None
