# SPDX-License-Identifier: Apache-2.0
"""Tubes are distances, and branches thinner than a voxel keep their volume."""

from __future__ import annotations

import numpy as np
import pytest

from models_genesis.datasets.phantom.canvas import Canvas


@pytest.mark.parametrize("radius", [0.3, 0.6, 1.0, 1.5, 2.5])
def test_thin_branches_keep_their_volume(radius: float) -> None:
    canvas = Canvas((32, 32, 40), (2, 2, 2), (-32, -32, -40), (1, 1, 1), 0)
    volumes = []
    for x in np.arange(0, 2, 0.25):
        for y in np.arange(0, 2, 0.25):
            centres = np.stack([np.full(161, x), np.full(161, y), np.linspace(-20, 20, 161)], 1)
            volumes.append(float(canvas.sweep(centres, np.full(161, radius)).sum() * 8))
    # Averaged over the places within a voxel: pi r^2 along 40 mm, the balls at the ends, and up to h^2 / 12 more of the
    # cross-section where the edge is wider than the kernel's own (8 % at r = h = 2 mm, where it is most).
    assert np.mean(volumes) == pytest.approx(np.pi * radius**2 * (40 + 4 / 3 * radius), rel=0.12)


def test_tube_is_a_signed_distance() -> None:
    canvas = Canvas((30, 30, 30), (2, 2, 2), (-29, -29, -29), (1, 1, 1), 0)
    canvas.warp = [np.zeros_like(w) for w in canvas.warp]
    field = canvas.tube([(0, 0, -100), (0, 0, 100)], 6.0, reach=12)
    x, y, _ = np.ix_(*canvas.axes)
    exact = np.broadcast_to(np.hypot(x, y) - 6, field.shape)
    np.testing.assert_allclose(field[exact < 11], exact[exact < 11], atol=1e-3)
