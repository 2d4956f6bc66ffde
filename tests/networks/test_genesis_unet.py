# SPDX-License-Identifier: Apache-2.0
"""The U-Net: architecture, shapes, and the ways in which it is run."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.export import Dim
from torch.nn.parallel import DistributedDataParallel

from models_genesis.networks import GenesisEncoder, GenesisUNet

SMALL = {"features": (4, 8, 16)}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small(seed: int = 0, **arguments: Any) -> GenesisUNet:
    """A small network whose running statistics are not the initial ones."""
    torch.manual_seed(seed)
    network = GenesisUNet(**(SMALL | arguments))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


def test_parameter_counts_of_the_paper() -> None:
    network = GenesisUNet()
    assert count(network) == 19_073_665
    assert count(network.encoder) == 7_027_776


@pytest.mark.parametrize(
    ("arguments", "shape", "expected"),
    [
        ({}, (2, 1, 8, 12, 4), (2, 1, 8, 12, 4)),
        ({"in_channels": 3, "out_channels": 2}, (1, 3, 4, 4, 8), (1, 2, 4, 4, 8)),
        ({"features": (6, 4)}, (1, 1, 2, 6, 10), (1, 1, 2, 6, 10)),
        ({"features": (5, 7, 9, 11, 13)}, (1, 1, 16, 16, 32), (1, 1, 16, 16, 32)),
        ({"spatial_dims": 2}, (3, 1, 12, 20), (3, 1, 12, 20)),
        ({"spatial_dims": 2, "features": [4, 8], "out_channels": 5}, (1, 1, 6, 2), (1, 5, 6, 2)),
        ({"act": ["leakyrelu", {"negative_slope": 0.01}], "norm": "instance"}, (1, 1, 8, 8, 8), (1, 1, 8, 8, 8)),
        ({"act": "prelu", "norm": ("group", {"num_groups": 2})}, (1, 1, 8, 8, 8), (1, 1, 8, 8, 8)),
    ],
)
def test_shapes(arguments: dict[str, Any], shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    network = GenesisUNet(**(SMALL | arguments)).eval()
    image = torch.rand(shape)
    assert network(image).shape == expected
    features = (SMALL | arguments)["features"]
    for level, output in enumerate(network.encoder(image)):
        assert output.shape == (shape[0], features[level], *(side // 2**level for side in shape[2:]))


def test_output_is_logits(random_image: torch.Tensor) -> None:
    network = small().eval()
    network.head.bias.data.fill_(-100.0)
    assert network(random_image).max() < -50


@pytest.mark.parametrize(
    ("features", "sides", "divisor", "padded"),
    [
        ((4, 8, 16, 32), (60, 64, 33), 8, (64, 64, 40)),
        ((4, 8), (3, 2, 1), 2, (4, 2, 2)),
        ((4, 8, 16), (16, 16, 6), 4, (16, 16, 8)),
    ],
)
def test_indivisible_sides_say_what_to_pad_to(
    features: tuple[int, ...], sides: tuple[int, ...], divisor: int, padded: tuple[int, ...]
) -> None:
    network = GenesisUNet(features=features).eval()
    message = f"must be divisible by {divisor}, found {list(sides)}: pad the image to {list(padded)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        network(torch.zeros(1, 1, *sides))
    if max(padded) <= 16:
        assert network(torch.zeros(1, 1, *padded)).shape[2:] == padded  # the advice works


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, found 1"),
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, found 4"),
        ({"features": (64,)}, "at least two levels, found (64,)"),
        ({"features": ()}, "at least two levels, found ()"),
        ({"features": (1, 8)}, "features[0] at least 2, found (1, 8)"),
        ({"features": (4, 0, 8)}, "must be positive and features[0] at least 2, found (4, 0, 8)"),
    ],
)
@pytest.mark.parametrize("network", [GenesisUNet, GenesisEncoder])
def test_bad_arguments(network: type, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        network(**arguments)


def test_gradient_reaches_every_parameter(random_image: torch.Tensor) -> None:
    # in evaluation mode: in training a bias before batch norm has, by construction, no effect
    network = small().eval()
    network(random_image).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("arguments", [{}, {"batch_statistics": True}, {"use_checkpointing": True}])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_torchscript_round_trip(arguments: dict[str, Any], spatial_dims: int) -> None:
    network = small(spatial_dims=spatial_dims, **arguments).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch, side in ((2, 8), (1, 12)):
        image = torch.rand(batch, 1, side, *[8] * (spatial_dims - 1))
        torch.testing.assert_close(loaded(image), network(image), atol=1e-6, rtol=1e-5)
    with pytest.raises(torch.jit.Error, match="must be divisible by 4"):
        loaded(torch.rand(1, 1, *[6] * spatial_dims))


@pytest.mark.parametrize("arguments", [{}, {"use_checkpointing": True}])
def test_tracing_keeps_the_shape_free(arguments: dict[str, Any], random_image: torch.Tensor) -> None:
    network = small(**arguments).eval()
    traced = torch.jit.trace(network, random_image)
    image = torch.rand(1, 1, 8, 12, 4)
    torch.testing.assert_close(traced(image), network(image), atol=1e-6, rtol=1e-5)


def test_export_with_dynamic_batch_and_sides(random_image: torch.Tensor) -> None:
    network = small(use_checkpointing=True).eval()
    sides = {axis + 2: 4 * Dim(f"side{axis}", min=2, max=64) for axis in range(3)}
    exported = torch.export.export(network, (random_image,), dynamic_shapes=({0: Dim("batch", max=64), **sides},))
    image = torch.rand(3, 1, 8, 12, 20)
    torch.testing.assert_close(exported.module()(image), network(image), atol=1e-6, rtol=1e-5)


def test_bf16_autocast_and_channels_last_are_close(random_image: torch.Tensor) -> None:
    network = small().eval()
    with torch.inference_mode():
        exact = network(random_image)
        network = network.to(memory_format=torch.channels_last_3d)
        image = random_image.to(memory_format=torch.channels_last_3d)
        last = network(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(image)
    torch.testing.assert_close(last, exact, atol=1e-5, rtol=1e-5)
    assert rounded.dtype == torch.bfloat16
    # bf16 rounds by at most 2^-9. On the longest way 13 layers (10 convolutions, 2 upsamplings, the head) round input,
    # weight and output: to first order, a relative error of at most 13 * 3 * 2^-9 = 0.076.
    assert (rounded.float() - exact).norm() / exact.norm() < 0.076


def test_checkpointing_gives_the_same_numbers_for_less_memory(random_image: torch.Tensor) -> None:
    plain, saving = small(), small(use_checkpointing=True)
    kept = {}
    for network in (plain, saving):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        ):
            loss = network(random_image).square().mean()
        loss.backward()
        kept[network] = sum(sizes)
    assert kept[saving] < kept[plain] / 3
    for (name, one), two in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-7, rtol=1e-5, msg=name)
    for (name, one), two in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, two), name  # recomputing has not updated them a second time


def test_checkpointing_keeps_the_buffer_objects(random_image: torch.Tensor) -> None:
    network = small(use_checkpointing=True)  # DDP and optimizers hold on to them
    before = dict(network.named_buffers())
    network(random_image).sum().backward()
    assert all(before[name] is buffer for name, buffer in network.named_buffers())


@pytest.mark.parametrize("use_checkpointing", [False, True])
def test_distributed_data_parallel(random_image: torch.Tensor, tmp_path: Path, use_checkpointing: bool) -> None:
    bare = small(use_checkpointing=use_checkpointing)
    bare(random_image).square().mean().backward()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(small(use_checkpointing=use_checkpointing))
        wrapped(random_image).square().mean().backward()
        for (name, one), two in zip(bare.named_parameters(), wrapped.parameters(), strict=True):
            torch.testing.assert_close(two.grad, one.grad, msg=name)
    finally:
        dist.destroy_process_group()


def test_compile_with_checkpointing(random_image: torch.Tensor) -> None:
    network = small(use_checkpointing=True)
    expected = small()
    expected(random_image).square().mean().backward()
    torch.compile(network, backend="aot_eager")(random_image).square().mean().backward()
    for (name, one), two in zip(expected.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert network.encoder.levels[0].norm1.num_batches_tracked == 1
