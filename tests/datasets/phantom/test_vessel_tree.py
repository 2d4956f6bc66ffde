# SPDX-License-Identifier: Apache-2.0
"""Trees of vessels taper by Murray's law and reach what they supply."""

from __future__ import annotations

import numpy as np
import pytest

from models_genesis.datasets.phantom.vessel_tree import grow_tree


def test_trees_taper_and_fill() -> None:
    rng = np.random.default_rng(0)
    targets = rng.uniform(-50, 50, (3000, 3))
    tree = grow_tree(np.array([0, 0, 55.0]), np.array([0, 0, -1.0]), targets, 6.0, rng)
    # Murray's law: the cubes of the radii of a generation add up to the root's, less what ended.
    for generation in range(3):
        cubes = (tree.radius[tree.generation == generation] ** 3).sum()
        assert cubes == pytest.approx(6.0**3, rel=0.01)
    assert np.isfinite(tree.end).all() and np.abs(tree.end).max() < 60
    nearest = np.sqrt(((targets[:200, None] - tree.end[None]) ** 2).sum(-1)).min(1)
    # 3000 targets in (100 mm)^3 lie 7 mm apart; a supplied one has an end within a few such steps.
    assert np.median(nearest) < 8
    assert not len(grow_tree(np.zeros(3), np.ones(3), np.zeros((0, 3)), 1.0, rng).radius)
