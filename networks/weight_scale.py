# SPDX-License-Identifier: Apache-2.0
"""Giving pretrained convolutions the scale that they had at initialisation, without changing what the network does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .norm_pairs import find_norm_pairs, unwrapped

__all__ = ["PRETRAINED_SCALES", "Rescaling", "eps_change", "rescale"]

PRETRAINED_SCALES = ("kept", "initial")
"""The scale of pretrained weights: it is kept, or becomes that of the fresh network."""

# in front of a norm these scale with the convolution's output, or with its square
_BIAS, _MEAN, _VARIANCE = "bias", "running_mean", "running_var"


@dataclass(frozen=True)
class Rescaling:
    """What :func:`rescale` gives.

    Args:
        tensors: the tensors to load instead of those of the file, and those of the network that change with them.
        factors: s by the name of the convolution's weight.
        kept: for every other convolution the reason why its scale is what the file has.
        eps_change: largest :func:`eps_change` of all channels whose variance is known.
    """

    tensors: dict[str, Tensor]
    factors: dict[str, float]
    kept: dict[str, str]
    eps_change: float


def eps_change(variance: Tensor, eps: float, factor: float) -> Tensor:
    """Tell how much a rescaled convolution changes its normalised output through the norm's eps.

    A norm turns c into (c - mean) / sqrt(v + eps). With s c in place of c it gives (c - mean) / sqrt(v + eps / s^2),
    the same but for eps. In standard deviations of the normalised channel the two differ by
    ``|sqrt(v / (v + eps)) - sqrt(v / (v + eps / s^2))|``, which is less than ``eps |1 / s^2 - 1| / (2 v)``.

    Args:
        variance: v of each channel before the convolution was rescaled.
        eps: the norm's.
        factor: s.

    Returns:
        The difference for each channel, 0 for a channel without variance.

    Example:
        >>> round(eps_change(torch.tensor(0.04), 1e-5, 0.25).item(), 4)
        0.0019
    """
    v = variance.double()
    difference = (v / (v + eps)).sqrt() - (v / (v + eps / factor**2)).sqrt()
    return torch.where(v > 0, difference.abs(), torch.zeros_like(v))


def _aliases(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each tensor all of its names; some networks, such as DynUNet, have one layer under two names."""
    state = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    names: dict[int, list[str]] = {}
    for name, tensor in state:
        names.setdefault(id(tensor), []).append(name)
    return {name: tuple(names[id(tensor)]) for name, tensor in state}


def rescale(network: nn.Module, loaded: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> Rescaling:
    """Rescale the convolutions among the tensors that will be loaded.

    A convolution before a batch or instance norm may be multiplied by any s > 0, if its bias and the norm's running
    mean are too, and the running variance by s^2: the norm divides s out again. Here s is the norm (root of the sum of
    squares) of the network's weight over that of the loaded one. Optimisers whose steps do not depend on the scale of
    the gradient, such as Adam, change the two by the same amount in a step, so a weight that pretraining has made five
    times larger learns five times slower. The norm's eps alone does not scale, see :func:`eps_change`; it is not
    changed, since weight files do not hold it.

    Args:
        network: the fresh network, wrapped or not; it stays as it is.
        loaded: tensors of the file by bare name, as they will be loaded.
        fresh: tensors of the network by bare name.

    Returns:
        Tensors and factors.
    """
    pairs, kept = find_norm_pairs(network)
    modules = dict(unwrapped(network).named_modules())
    aliases = _aliases(unwrapped(network))
    kept = {f"{name}.weight": reason for name, reason in kept.items()}
    tensors = dict(loaded)
    factors: dict[str, float] = {}
    change = 0.0
    for convolution, norm in pairs.items():
        weight = f"{convolution}.weight"
        if weight not in loaded:
            kept[weight] = "it is not loaded"
            continue
        initial, found = (float(torch.linalg.vector_norm(t.double())) for t in (fresh[weight], loaded[weight]))
        if initial == 0 or found == 0:
            kept[weight] = f"a norm of 0 has no scale: {found} in the file, {initial} in the fresh network"
            continue
        s = initial / found
        factors[weight] = s
        scaled = {weight: s, f"{convolution}.{_BIAS}": s, f"{norm}.{_MEAN}": s, f"{norm}.{_VARIANCE}": s * s}
        variance = loaded.get(f"{norm}.{_VARIANCE}", fresh.get(f"{norm}.{_VARIANCE}"))
        if variance is not None:
            change = max(change, float(eps_change(variance, float(modules[norm].eps), s).max()))
        for name, factor in scaled.items():
            names = aliases.get(name, ())  # none for a convolution without bias, or a norm without running statistics
            for alias in [alias for alias in names if alias in loaded] or names:
                tensors[alias] = (tensors.get(alias, fresh[alias]).double() * factor).to(fresh[alias].dtype)
    return Rescaling(tensors, factors, kept, change)
