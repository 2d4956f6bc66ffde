# SPDX-License-Identifier: Apache-2.0
"""Each backend of the deformation: what it draws depends on the samples alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandomizableTransform
from torch.utils.data import DataLoader, Dataset

from models_genesis.training import DEFORM_ON, BatchDeformation, DeformationBackend

HOUNSFIELD: dict[str, Any] = {"intensity_range": (-1000, 1000), "output_range": (0.0, 1.0), "num_blocks": 100}
CUBES = np.random.RandomState(0).randint(-1100, 1101, (12, 1, 16, 20, 24)).astype(np.int16)


class Cubes(Dataset):
    """Int16 cubes; as in a CubeDataset the random transform is seeded for each."""

    def __init__(self, backend: DeformationBackend, transform: RandomizableTransform | None = None) -> None:
        self.transform = Compose([backend.transform])

    def __len__(self) -> int:
        return len(CUBES)

    def __getitem__(self, index: int) -> Any:
        self.transform.set_random_state(seed=index)
        return self.transform({"image": CUBES[index]})


def batches(deform_on: str, num_workers: int = 0, batch_size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    backend = DeformationBackend(deform_on, "cpu", num_workers, **HOUNSFIELD)
    loader = DataLoader(Cubes(backend), batch_size=batch_size, num_workers=num_workers)
    return [backend.prepare_batch(batch, torch.device("cpu"), False) for batch in loader]


@pytest.mark.parametrize("deform_on", DEFORM_ON)
def test_images_are_deformed_and_targets_are_the_flipped_cubes(deform_on: str) -> None:
    unit = torch.from_numpy((np.clip(CUBES, -1000, 1000).astype(np.float32) + 1000) / 2000)
    deformed, target = (torch.cat(parts) for parts in zip(*batches(deform_on), strict=True))
    assert deformed.dtype == target.dtype == torch.float32 and deformed.shape == target.shape == CUBES.shape
    for cube, original in zip(target, unit, strict=True):
        ways = [original.flip(axes) for axes in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])]
        assert any(torch.allclose(cube, way, atol=1e-6) for way in ways)
    # a cube stays as it is with (1 - 0.5) (1 - 0.9) (1 - 0.9 * 0.99) = 0.0055: three of twelve once in 3e4
    assert (deformed != target).flatten(1).any(dim=1).sum() > 9


@pytest.mark.parametrize("deform_on", DEFORM_ON)
def test_neither_the_run_nor_the_workers_matter(deform_on: str) -> None:
    first = batches(deform_on)
    torch.manual_seed(1)
    for again in (batches(deform_on), *([batches(deform_on, num_workers=2)] if deform_on != "device" else [])):
        for pair, other in zip(first, again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(pair, other, strict=True))


def test_in_the_step_every_seed_of_the_batch_counts() -> None:
    prepare = BatchDeformation(**HOUNSFIELD)
    images = torch.from_numpy(CUBES[:3])
    seeds = torch.tensor([5, 2**62, 7])
    first = prepare({"image": images, "deform_seed": seeds}, "cpu")[0]
    assert torch.equal(prepare({"image": images, "deform_seed": seeds.clone()}, "cpu")[0], first)
    for row in range(3):
        other = seeds.clone()
        other[row] += 1
        assert not torch.equal(prepare({"image": images, "deform_seed": other}, "cpu")[0], first)
    assert images.dtype == torch.int16 and np.array_equal(images.numpy(), CUBES[:3])


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"deform_on: expected one of \('cpu', 'device', 'step'\), found 'gpu'"):
        DeformationBackend("gpu")
    with pytest.raises(ValueError, match="num_workers: deform_on='device' expected 0, found 2"):
        DeformationBackend("device", num_workers=2)
    with pytest.raises(ValueError, match=r"deform_seed: expected in each batch, found \['image'\]"):
        BatchDeformation()({"image": torch.zeros(1, 1, 16, 16, 16)}, "cpu")
    with pytest.raises(ValueError, match="variant: expected one of"):
        DeformationBackend("step", variant="colour")
