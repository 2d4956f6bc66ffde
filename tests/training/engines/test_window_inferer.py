# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from models_genesis.networks import GenesisUNet
from models_genesis.training import window_inferer


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_slice_is_what_the_network_says_of_it_alone(axis):
    torch.manual_seed(0)
    network = GenesisUNet(2, features=(4, 8)).eval()
    sides = [8, 12]
    scan = torch.rand(1, 1, *sides[:axis], 3, *sides[axis:])
    with torch.no_grad():
        found = window_inferer([8, 12], slice_axis=axis, sw_batch_size=2, overlap=0.0)(scan, network)
        expected = torch.stack([network(plane) for plane in scan.unbind(axis + 2)], axis + 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_large_slices_are_monai_s_sliding_windows_of_each_slice(axis):
    """With blending weights, kept or not, overlap, and slices that are longer than a window or shorter."""
    torch.manual_seed(0)
    network = GenesisUNet(2, out_channels=2, features=(4, 8)).eval()
    sides, options = [21, 10], {"overlap": 0.5, "mode": "gaussian", "sw_batch_size": 4}
    scan = torch.rand(1, 1, *sides[:axis], 3, *sides[axis:])
    by_hand = SlidingWindowInferer(roi_size=(12, 16), **options)
    with torch.no_grad():
        expected = torch.stack([by_hand(plane, network) for plane in scan.unbind(axis + 2)], axis + 2)
        for kept in (True, False):
            found = window_inferer([12, 16], axis, cache_roi_weight_map=kept, **options)(scan, network)
            torch.testing.assert_close(found, expected)


def test_cubes_are_monai_s_sliding_windows():
    assert type(window_inferer((8, 8, 8), overlap=0.5)) is SlidingWindowInferer
    with pytest.raises(ValueError, match="two sides of a slice"):
        window_inferer((8, 8, 8), slice_axis=1)
