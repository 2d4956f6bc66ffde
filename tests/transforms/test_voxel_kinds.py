# SPDX-License-Identifier: Apache-2.0
"""The map of what was done to each voxel, against what the images themselves show, on all backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models_genesis.training import DEFORM_ON, DeformationBackend
from models_genesis.transforms import VOXEL_KINDS, RandGenesisDeform, voxel_kind_map

SHAPE = (20, 24, 16)
KEPT, MAPPED, SHUFFLED, PAINTED, MASKED = range(5)
# two equal channels, in which each voxel has an intensity of its own; noise differs between channels
IMAGE = (np.arange(np.prod(SHAPE)).reshape(1, *SHAPE) / np.prod(SHAPE)).astype(np.float32).repeat(2, axis=0)


def run(backend: str, count: int, kinds_key: str | None = "kinds", **deform: Any) -> tuple[np.ndarray, ...]:
    """Deformed images, targets and kinds of several samples."""
    deformation = DeformationBackend(backend, kinds_key=kinds_key, num_blocks=200, **deform)
    deformation.transform.set_random_state(3)
    items = [deformation.transform({"image": torch.from_numpy(IMAGE)}) for _ in range(count)]
    batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}
    deformed, target = deformation.prepare_batch(batch)
    kinds = batch[kinds_key] if kinds_key else torch.zeros(0)
    return deformed.numpy(), target.numpy(), kinds.numpy()


@pytest.mark.parametrize("backend", DEFORM_ON)
def test_kinds_are_what_the_images_show(backend: str) -> None:
    deformed, target, kinds = run(backend, 24, nonlinear_prob=0.0, paint_prob=0.7)
    assert kinds.shape == (24, 1, *SHAPE) and kinds.dtype == np.uint8
    # equal noise in both channels: once in 2**24 voxels
    noisy = deformed[:, 0] != deformed[:, 1]
    np.testing.assert_array_equal(kinds[:, 0] == PAINTED, noisy)
    np.testing.assert_array_equal(kinds[:, 0] == SHUFFLED, ~noisy & (deformed[:, 0] != target[:, 0]))
    np.testing.assert_array_equal(kinds[:, 0] == KEPT, ~noisy & (deformed[:, 0] == target[:, 0]))
    assert set(np.unique(kinds)) == {KEPT, SHUFFLED, PAINTED}


@pytest.mark.parametrize("backend", DEFORM_ON)
def test_mapped_are_those_of_a_sample_with_a_curve(backend: str) -> None:
    deformed, target, kinds = run(backend, 24, nonlinear_prob=0.5, shuffle_prob=0.0, paint_prob=0.5)
    noisy = deformed[:, 0] != deformed[:, 1]
    # the ends of a rising curve and a crossing stay where they are, so a sample is judged as a whole
    curved = [
        bool((one[0] != whole[0])[~there].any()) for one, whole, there in zip(deformed, target, noisy, strict=True)
    ]
    assert 3 < sum(curved) < 21  # of 24 with rate 1/2: less often than once in 5,000
    for mine, there, has_curve in zip(kinds[:, 0], noisy, curved, strict=True):
        assert np.all(mine[there] == PAINTED) and np.all(mine[~there] == (MAPPED if has_curve else KEPT))


@pytest.mark.parametrize("backend", DEFORM_ON)
def test_masking_hides_painting_and_all_else(backend: str) -> None:
    deformed, _, kinds = run(backend, 6, mask_prob=1.0, mask_patch=4, mask_ratio=0.5, mask_value=1.0, reverse_prob=0)
    np.testing.assert_array_equal(kinds[:, 0] == MASKED, (deformed == 1.0).all(axis=1))  # none else
    assert np.all((kinds == MASKED).sum(axis=(1, 2, 3, 4)) == np.prod(SHAPE) / 2)
    assert set(np.unique(kinds)) >= {SHUFFLED, PAINTED, MASKED}


@pytest.mark.parametrize("backend", DEFORM_ON)
def test_recording_changes_nothing(backend: str) -> None:
    for one, other in zip(run(backend, 5)[:2], run(backend, 5, kinds_key=None)[:2], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("variant", ["shuffle", "genesis"])
def test_the_replay_moves_what_the_image_moved(backend: str, dtype: Any, variant: str) -> None:
    image = np.arange(np.prod(SHAPE)).reshape(1, *SHAPE).astype(dtype)
    deform = RandGenesisDeform(
        variant, shuffle_prob=1.0, nonlinear_prob=0.0, num_blocks=200, intensity_range=(0, 8000), backend=backend
    ).set_random_state(0)
    for _ in range(6):
        deformed, target = deform(image)
        kinds = deform.kinds(SHAPE)
        visible = kinds != PAINTED
        np.testing.assert_array_equal((kinds == SHUFFLED)[visible], (deformed != target)[visible])
        assert deform.parameters is not None
        np.testing.assert_array_equal(kinds, voxel_kind_map(SHAPE, deform.parameters, 200, backend=backend))
    assert VOXEL_KINDS == ("kept", "mapped", "shuffled", "painted", "masked")
    with pytest.raises(RuntimeError, match="randomize"):
        RandGenesisDeform().kinds(SHAPE)
