# SPDX-License-Identifier: Apache-2.0
"""Branching trees that fill an organ: vessels and bronchi."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .texture import FloatArray

Points = FloatArray


@dataclass(frozen=True)
class Tree:
    """Branches of a tree, parents before children.

    Args:
        start: (N, 3) world mm.
        end: (N, 3) world mm.
        heading: (N, 3) unit direction in which each branch leaves its parent.
        radius: (N,) mm.
        generation: (N,) number of forks above the branch.
    """

    start: Points
    end: Points
    heading: Points
    radius: NDArray[np.float64]
    generation: NDArray[np.int64]

    def branch_of(self, step: float) -> NDArray[np.int64]:
        """Return the branch of each point that ``sample`` gives."""
        length = np.linalg.norm(self.end - self.start, axis=1)
        return np.repeat(np.arange(len(length)), np.maximum(np.ceil(length / step).astype(int), 2))

    def sample(self, step: float) -> tuple[Points, Points, NDArray[np.float64], NDArray[np.int64]]:
        """Return points along the bent branches, about ``step`` mm apart: centres, directions, radii, generations."""
        length = np.linalg.norm(self.end - self.start, axis=1)
        branch = self.branch_of(step)
        count = np.bincount(branch, minlength=len(length))
        first = np.repeat(np.cumsum(count) - count, count)
        t = ((np.arange(len(branch)) - first) / np.repeat(count - 1, count))[:, None]
        a, c = self.start[branch], self.end[branch]
        # A quadratic Bezier curve that leaves along the parent's direction: branches bend, they do not kink.
        b = a + self.heading[branch] * (0.4 * length[branch])[:, None]
        centres = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
        tangents = (1 - t) * (b - a) + t * (c - b)
        return centres, _unit(tangents), self.radius[branch], self.generation[branch]


@dataclass(frozen=True)
class Arteries:
    """Points along arteries.

    Args:
        center: (N, 3) world mm.
        tangent: (N, 3) unit direction of the artery.
        radius: (N,) mm.
        branch: (N,) number of the branch.
        fork: (N,) whether the artery forks there.
    """

    center: Points
    tangent: Points
    radius: NDArray[np.float64]
    branch: NDArray[np.int64]
    fork: NDArray[np.bool_]

    @staticmethod
    def join(parts: Sequence[Arteries]) -> Arteries:
        """Put arteries together; branches are numbered on."""
        first = np.cumsum([0, *(int(part.branch.max(initial=-1)) + 1 for part in parts)])
        return Arteries(
            np.concatenate([part.center for part in parts]),
            np.concatenate([part.tangent for part in parts]),
            np.concatenate([part.radius for part in parts]),
            np.concatenate([part.branch + start for part, start in zip(parts, first[:-1], strict=True)]),
            np.concatenate([part.fork for part in parts]),
        )


def _unit(v: Points) -> Points:
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def grow_tree(
    root: Points,
    heading: Points,
    targets: Points,
    radius: float,
    rng: np.random.Generator,
    min_targets: int = 3,
    reach: float = 0.42,
    taper: float = 1 / 3,
    normal: tuple[float, float, float] = (0.0, 0.0, 1.0),
) -> Tree:
    """Grow a tree that supplies a cloud of target points.

    Each branch halves its targets with a plane along its direction, and each child grows towards the mean of its half;
    the radius follows the cube root of the number of targets (Murray's law), or what ``taper`` says. A whole
    generation grows at once.

    Args:
        root: (3,) world mm where the tree starts.
        heading: (3,) direction in which it starts.
        targets: (N, 3) points spread over the organ, world mm.
        radius: radius of the root, mm.
        rng: turns the splitting planes a little.
        min_targets: branches with fewer targets do not grow.
        reach: share of the way to the mean of its targets that a branch grows.
        taper: exponent of the radius over the share of targets.
        normal: normal of the first splitting plane.

    Returns:
        the tree; empty without targets.
    """
    position, direction = np.asarray(root, float)[None], _unit(np.asarray(heading, float)[None])
    plane = np.asarray(normal, float)[None]
    owner = np.zeros(len(targets), np.int64)
    points = targets
    parts: list[tuple[Points, Points, Points, NDArray[np.float64], NDArray[np.int64]]] = []
    for generation in range(16):
        if len(points) < min_targets:
            break
        middle = _means(points, owner, len(position))
        side = np.einsum("ij,ij->i", points - middle[owner], plane[owner]) > 0
        child = 2 * owner + side
        count = np.bincount(child, minlength=2 * len(position))
        keep = count >= min_targets
        parent = np.repeat(np.arange(len(position)), 2)
        towards = _means(points, child, 2 * len(position)) - position[parent]
        length = np.linalg.norm(towards, axis=1, keepdims=True) * reach
        bent = _unit(_unit(towards) + 0.3 * direction[parent] + rng.normal(0, 0.06, towards.shape))
        end = position[parent] + bent * length
        parts.append(
            (
                position[parent][keep],
                end[keep],
                _unit(0.6 * direction[parent] + bent)[keep],
                radius * (count[keep] / len(targets)) ** taper,
                np.full(int(keep.sum()), generation),
            )
        )
        turned = _unit(np.cross(bent, plane[parent]) + rng.normal(0, 0.2, bent.shape))
        renumber = np.cumsum(keep) - 1
        alive = keep[child]
        points, owner = points[alive], renumber[child[alive]]
        position, direction, plane = end[keep], bent[keep], turned[keep]
    if not parts:
        empty = np.zeros((0, 3))
        return Tree(empty, empty, empty, np.zeros(0), np.zeros(0, np.int64))
    start, end, heads, radii, generations = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Tree(start, end, heads, radii, generations)


def _means(points: Points, owner: NDArray[np.int64], groups: int) -> Points:
    """Return the mean point of each group, zero for an empty one."""
    count = np.maximum(np.bincount(owner, minlength=groups), 1)
    return np.stack([np.bincount(owner, points[:, i], groups) / count for i in range(3)], 1)
