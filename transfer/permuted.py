# SPDX-License-Identifier: Apache-2.0
"""Weights whose features are gone and whose scale is not: a control for what pretraining is said to bring."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..networks.weight_container import sha256_of
from ..networks.weight_files import read_weights, save_weights
from ..networks.weight_settings import settings_of_weights
from ..training.engines.model_settings import save_trained_weights


def permute_tensor(tensor: Tensor, generator: np.random.Generator) -> Tensor:
    """Shuffle all values of a tensor among all of its places.

    Args:
        tensor: any shape.
        generator: draws the permutation.

    Returns:
        A tensor of the same shape and dtype, with the same values.
    """
    order = torch.from_numpy(generator.permutation(tensor.numel()))
    return tensor.detach().cpu().reshape(-1)[order].reshape(tensor.shape)


def permute_weights(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Shuffle the values within each kernel; keep each layer's scale, and let normalization start afresh.

    - Kernels (two dimensions or more): shuffled over all places, so that mean, variance and norm are kept exactly and
      no filter is left.
    - Vectors that are learnt (biases, scales and shifts of normalization): the entries of the vectors of one layer
      are shuffled by one permutation, so that a scale stays with its shift. They hold no spatial feature, but which
      channel is strong is learnt as well, and it belongs to kernels that are gone.
    - Running statistics: means 0 and variances 1, as in a new network, and no batches counted. Those of the pretrained
      network describe feature maps that its shuffled kernels no longer make, and would only be wrong; in training
      batch statistics count from the first step.

    Args:
        tensors: a state dict.
        seed: seed of the permutations.

    Returns:
        The state dict of the control. Each tensor's permutation depends on the seed and on its layer's name alone.
    """
    permuted = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind == "running_mean" or kind == "num_batches_tracked":
            permuted[name] = torch.zeros_like(tensor)
        elif kind == "running_var":
            permuted[name] = torch.ones_like(tensor)
        elif tensor.is_floating_point():
            key = layer if tensor.ndim < 2 else name
            permuted[name] = permute_tensor(tensor, _generator(seed, key))
        else:
            permuted[name] = tensor
    return permuted


def _generator(seed: int, name: str) -> np.random.Generator:
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng((seed, word))


def permuted_file(weights: str | Path, target: str | Path, seed: int) -> int:
    """Write the permuted control of a weight file.

    The settings next to the weights (``model.json``) go with it, so that a training takes the width of both alike.

    Args:
        weights: the file.
        target: the file to write.
        seed: seed of the permutations.

    Returns:
        Number of tensors.

    Raises:
        FileNotFoundError: no such file.
        ModelSettingsError: the settings next to the weights cannot be read, or describe other weights.
        ValueError: the file cannot be read as weights, or both paths are one file.
    """
    if Path(target).exists() and Path(weights).exists() and Path(target).samefile(weights):
        raise ValueError(f"{target} holds the weights to permute: name another file to write")
    tensors = permute_weights(read_weights(weights).tensors, seed)
    if settings := settings_of_weights(weights):
        source = {"file": Path(weights).name, "sha256": sha256_of(weights), "seed": seed}
        save_trained_weights(tensors, target, settings, {"permuted_from": source})
    else:
        save_weights(tensors, target)
    return len(tensors)
