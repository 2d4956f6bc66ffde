# SPDX-License-Identifier: Apache-2.0
"""The network gives what the original gives for the same weights (shared/reference/README.md has the recipe)."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models_genesis.networks import GenesisUNet, load_pretrained

TOLERANCE = 1e-5  # the issue's; float32 sums of up to 768 * 27 terms in another order differ by about 1e-6


def recipe(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Fill one parameter by the reference's recipe; ``name`` is the original's without ``module.``."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if "running" in name:
        return torch.ones(shape) if name.endswith("var") else torch.zeros(shape)
    index, code = np.arange(math.prod(shape), dtype=np.float64), sum(map(ord, name))
    wave = np.sin(0.7391 * index + 0.113 * code) * np.cos(0.0173 * index + 0.071 * code)
    if name.endswith("bn1.weight"):
        values = 1 + 0.2 * wave
    elif name.endswith("bias"):
        values = 0.1 * wave
    else:
        fan = shape[0] if "up_conv" in name else math.prod(shape[1:])
        values = 1.5 * wave * math.sqrt(2 / fan)
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, torch.Tensor]:
    with np.load(shared / "reference" / "unet3d_reference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    index = np.arange(2 * 64 * 32 * 32, dtype=np.float64)
    values = 0.5 + 0.5 * np.sin(0.0137 * index) * np.cos(0.00071 * index)
    return torch.from_numpy(values.astype(np.float32).reshape(2, 1, 64, 32, 32))


@pytest.fixture(scope="module")
def filled(original_shapes: dict[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory) -> GenesisUNet:
    """The full network, filled through a file with the original's names: the name mapping is under test as well."""
    state = {name: recipe(name.removeprefix("module."), shape) for name, shape in original_shapes.items()}
    path = tmp_path_factory.mktemp("parity") / "filled.pt"
    torch.save({"epoch": 1, "state_dict": state, "optimizer_state_dict": {}}, path)
    network = GenesisUNet(batch_statistics=True)
    load_pretrained(network, path, strict=True)
    path.unlink()
    return network


def test_output_and_bottleneck_equal_the_original(
    filled: GenesisUNet, image: torch.Tensor, reference: dict[str, torch.Tensor]
) -> None:
    # In float64, so that how a processor rounds does not count. The reference is float32: at the bottleneck, whose
    # values reach 3.8 after norms over few voxels, its rounding is 3.6e-5; a wrong layer differs by tenths.
    exact = copy.deepcopy(filled).double().eval()
    with torch.inference_mode():
        levels = exact.encoder(image.double())
        output = torch.sigmoid(exact.head(exact.decoder(levels)))
    torch.testing.assert_close(levels[-1].float(), reference["bottleneck"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.float(), reference["output"], atol=TOLERANCE, rtol=0)


def test_running_statistics_equal_the_original(
    filled: GenesisUNet, image: torch.Tensor, reference: dict[str, torch.Tensor]
) -> None:
    first = filled.encoder.levels[0].train()
    with torch.no_grad():
        first(image)
    torch.testing.assert_close(first.norm1.running_mean, reference["running_mean_first"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(first.norm1.running_var, reference["running_var_first"], atol=TOLERANCE, rtol=0)
