# SPDX-License-Identifier: Apache-2.0
"""The classifier."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch.export import Dim

from models_genesis.networks import GenesisClassifier, GenesisUNet

SMALL = {"features": (4, 8), "hidden_channels": 16}


def test_parameter_count() -> None:
    # encoder, 512 -> 1024 and 1024 -> 1 with biases
    expected = 7_027_776 + 512 * 1024 + 1024 + 1024 + 1
    assert sum(parameter.numel() for parameter in GenesisClassifier().parameters()) == expected


@pytest.mark.parametrize(
    ("arguments", "shape", "classes"),
    [
        ({}, (2, 1, 8, 8, 8), 1),
        ({"num_classes": 3, "in_channels": 2}, (1, 2, 9, 2, 5), 3),  # sides need not be divisible
        ({"spatial_dims": 2, "num_classes": 2, "dropout": 0.5}, (4, 1, 8, 6), 2),
        ({"norm": "instance", "act": "prelu"}, (1, 1, 8, 8, 8), 1),
    ],
)
def test_shapes(arguments: dict[str, Any], shape: tuple[int, ...], classes: int) -> None:
    assert GenesisClassifier(**(SMALL | arguments)).eval()(torch.rand(shape)).shape == (shape[0], classes)


def test_encoder_has_the_names_of_the_unet() -> None:
    unet = {name for name in GenesisUNet(features=(4, 8)).state_dict() if name.startswith("encoder.")}
    classifier = {name for name in GenesisClassifier(**SMALL).state_dict() if name.startswith("encoder.")}
    assert unet == classifier and len(unet) == 28


def test_head_is_pool_linear_relu_linear(random_image: torch.Tensor) -> None:
    network = GenesisClassifier(**SMALL, num_classes=2, dropout=0.5).eval()
    pooled = network.encoder(random_image)[-1].mean(dim=(2, 3, 4))
    hidden = (pooled @ network.hidden.weight.T + network.hidden.bias).clamp(min=0)
    expected = hidden @ network.classes.weight.T + network.classes.bias
    torch.testing.assert_close(network(random_image), expected)


def test_gradient_reaches_every_parameter(random_image: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = GenesisClassifier(**SMALL).eval()
    network(random_image).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_torchscript_and_export(random_image: torch.Tensor) -> None:
    network = GenesisClassifier(**SMALL, use_checkpointing=True).eval()
    image = torch.rand(3, 1, 6, 9, 4)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(image), network(image))
    dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO, 4: Dim.AUTO},)
    exported = torch.export.export(network, (random_image,), dynamic_shapes=dynamic)
    torch.testing.assert_close(exported.module()(image), network(image))


def test_bad_dropout() -> None:
    with pytest.raises(ValueError, match="dropout probability"):
        GenesisClassifier(**SMALL, dropout=1.5)
