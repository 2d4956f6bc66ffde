# SPDX-License-Identifier: Apache-2.0
"""How much of an image shuffling moves: the closed form against enumeration, and against what each backend does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from models_genesis.transforms import (
    PAPER_MOVED_SHARE,
    VOXEL_KINDS,
    BatchGenesisDeform,
    RandGenesisDeform,
    blocks_for_share,
    expected_moved_share,
    local_pixel_shuffle,
)

SHUFFLE_ONLY = {"variant": "shuffle", "shuffle_prob": 1.0, "flip_prob": 0.0}


@pytest.mark.parametrize(("shape", "largest"), [((7,), 3), ((4, 5), 2), ((2, 3, 4), 2)])
def test_two_blocks_by_enumeration(shape, largest):
    """Of the later block that covers a voxel, all but one in its volume of the outcomes move the voxel."""
    blocks = []
    fraction = largest / min(shape)
    for sides in itertools.product(*(range(1, int(n * fraction) + 1) for n in shape)):
        corners = list(itertools.product(*(range(n - a + 1) for n, a in zip(shape, sides, strict=True))))
        for corner in corners:
            cover = np.zeros(shape, bool)
            cover[tuple(slice(c, c + a) for c, a in zip(corner, sides, strict=True))] = True
            kinds = np.prod([int(n * fraction) for n in shape])
            blocks.append((cover, 1 - 1 / np.prod(sides), 1 / kinds / len(corners)))
    one = sum(p * np.where(cover, moves, 0).mean() for cover, moves, p in blocks)
    assert expected_moved_share(shape, 1, fraction) == pytest.approx(one, abs=1e-12)
    two = 0.0
    for (first, a, p), (second, b, q) in itertools.product(blocks, repeat=2):
        two += p * q * np.where(second, b, np.where(first, a, 0)).mean()
    assert expected_moved_share(shape, 2, fraction) == pytest.approx(two, abs=1e-12)


def test_the_paper_s_cube_and_a_slice_move_the_same_share():
    assert pytest.approx(0.785, abs=5e-4) == PAPER_MOVED_SHARE
    for shape in ((64, 64), (128, 128), (224, 160), (512, 512)):
        blocks = blocks_for_share(shape)
        errors = [abs(expected_moved_share(shape, n) - PAPER_MOVED_SHARE) for n in (blocks - 1, blocks, blocks + 1)]
        assert errors[1] == min(errors) < 1e-3
    # what the paper's number would do to a slice: nothing stays but what a block's permutation leaves
    assert expected_moved_share((128, 128)) > 0.95


def within_five_errors(shares: np.ndarray, expected: float) -> bool:
    """The images are independent: their mean lies within five of its standard errors but once in 1.7 million."""
    error = shares.std(ddof=1) / np.sqrt(len(shares))
    assert error < 2e-3  # fine enough to tell the share from one that is a hundredth off
    return bool(abs(shares.mean() - expected) < 5 * error)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize(("shape", "blocks"), [((64, 64, 32), 10_000), ((128, 128), blocks_for_share((128, 128)))])
def test_one_by_one_the_share_is_as_computed(backend, shape, blocks):
    places = np.arange(np.prod(shape), dtype=np.int32).reshape(1, *shape)
    images = 20 if len(shape) == 3 else 200
    shares = np.array(
        [(local_pixel_shuffle(places, s, blocks, backend=backend) != places).mean() for s in range(images)]
    )
    assert within_five_errors(shares, PAPER_MOVED_SHARE)


@pytest.mark.parametrize("kind", ["one by one", "batch"])
def test_the_chain_moves_that_share_of_a_slice(kind):
    shape, blocks = (96, 96), blocks_for_share((96, 96))
    moved = VOXEL_KINDS.index("shuffled")
    if kind == "batch":  # that of "step" and of "device"
        deform = BatchGenesisDeform(**SHUFFLE_ONLY, num_blocks=blocks, record_kinds=True, backend="torch")
        deform(torch.zeros((200, 1, *shape)))
        assert deform.kinds is not None
        shares = (deform.kinds == moved).flatten(1).double().mean(dim=1).numpy()
    else:
        single = RandGenesisDeform(**SHUFFLE_ONLY, num_blocks=blocks).set_random_state(0)
        shares = np.array([0.0] * 200)
        for number in range(200):
            single(np.zeros((1, *shape), np.float32))
            shares[number] = (single.kinds(shape) == moved).mean()
    assert within_five_errors(shares, PAPER_MOVED_SHARE)


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_plane_is_shuffled_as_a_volume_of_one_slice(backend):
    image = np.random.default_rng(0).normal(size=(2, 48, 40)).astype(np.float32)
    plane = local_pixel_shuffle(image, 7, 300, backend=backend)
    np.testing.assert_array_equal(plane, local_pixel_shuffle(image[:, None], 7, 300, backend=backend)[:, 0])


def test_what_cannot_be_reached_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"\(32, 32\), of which blocks of up to 3 x 3 voxels move at most 0\.746"):
        blocks_for_share((32, 32))
    assert expected_moved_share((32, 32), blocks_for_share((32, 32), max_block_fraction=0.2), 0.2) == pytest.approx(
        PAPER_MOVED_SHARE, abs=1e-2
    )
    with pytest.raises(ValueError, match=r"at most 0\.747"):
        blocks_for_share((39, 39))
    assert blocks_for_share((40, 40)) > 0
    with pytest.raises(ValueError, match=r"at most 0\.000"):
        blocks_for_share((16, 16))
    with pytest.raises(ValueError, match="share"):
        blocks_for_share((64, 64), 1.0)
