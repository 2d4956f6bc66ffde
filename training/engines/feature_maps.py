# SPDX-License-Identifier: Apache-2.0
"""Reading a network's features while it stays exactly as it is: mode, statistics, gradients and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["feature_maps", "undisturbed", "with_random_weights", "with_statistics_of"]


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients; afterwards modes and random states are what they were.

    Args:
        network: the network.
    """
    modes = [(module, module.training) for module in network.modules()]
    devices = sorted({tensor.device.index or 0 for tensor in network.parameters() if tensor.is_cuda})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def _sources(network: nn.Module) -> list[nn.Module]:
    """The parts of a Genesis network whose outputs are its features; none for any other network."""
    levels = getattr(getattr(network, "encoder", None), "levels", None)
    if not isinstance(levels, nn.ModuleList):
        return []
    decoder = getattr(network, "decoder", None)
    return [*levels, decoder] if isinstance(decoder, nn.Module) else list(levels)


def feature_maps(network: nn.Module, images: Tensor, inferer: Inferer | None = None) -> list[Tensor]:
    """Give the features that a network has of some images.

    Of a :class:`~models_genesis.networks.GenesisUNet` these are the outputs of all encoder levels and of the decoder,
    of a :class:`~models_genesis.networks.GenesisClassifier` those of the encoder's levels. Of any other network it is
    the input of the convolution that runs last, which is the head of most.

    Args:
        network: in evaluation mode, see :func:`undisturbed`.
        images: (B, C, ...), on the network's device.
        inferer: runs the network, in the precision of the training; None: as it is.

    Returns:
        Maps (B, features, ...), float32, of possibly different resolutions.

    Raises:
        ValueError: when the network has no convolution.
    """
    found: dict[int, Tensor] = {}
    sources = _sources(network)

    def keep(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[number] = output

        return hook

    def keep_input(module: nn.Module, args: Any) -> None:
        found[0] = args[0]

    with ExitStack() as stack:
        for number, module in enumerate(sources):
            stack.callback(module.register_forward_hook(keep(number)).remove)
        for module in network.modules() if not sources else ():
            if isinstance(module, _ConvNd):
                stack.callback(module.register_forward_pre_hook(keep_input).remove)
        (SimpleInferer() if inferer is None else inferer)(images, network)
    if not found:
        raise ValueError(f"{type(network).__name__}: expected convolutions to read features from, found none")
    return [found[number].float() for number in sorted(found)]


def with_random_weights(network: nn.Module, images: list[Tensor], seed: int) -> None:
    """Draw a network's weights again as at initialisation, and let batch norm see some images.

    Args:
        network: changed in place; hand a copy. Random states stay as they are.
        images: batches, on the network's device.
        seed: of the weights.

    Raises:
        ValueError: when a layer does not know how to draw its weights.
    """
    with undisturbed(network):
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif next(module.parameters(recurse=False), None) is not None:
                raise ValueError(f"{name} ({type(module).__name__}): expected a method reset_parameters, found none")
        with_statistics_of(network, images)


def with_statistics_of(network: nn.Module, images: list[Tensor]) -> None:
    """Take the running statistics of batch norm from some images; nothing else is changed.

    Args:
        network: changed in place; hand a copy. Random states stay as they are.
        images: batches, on the network's device.
    """
    with undisturbed(network):
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # the mean over all batches
                module.train()
        for batch in images:
            network(batch)
