# SPDX-License-Identifier: Apache-2.0
"""The deformations of Models Genesis on a whole batch at once, where the tensor lives: on a GPU or on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BatchGenesisDeform"]

# Nodes of the intensity curve; interpolating between them errs by less than 1e-5 (see `bezier_curve`).
_NUM_NODES = 1024
_MAX_BOXES = 5
_BOX_PROB = 0.95
_MARGIN = 3


class BatchGenesisDeform:
    """Deform a batch of cubes, each sample with parameters of its own (arXiv:2004.07882, section 3).

    The distribution is that of :class:`RandGenesisDeform`, sample for sample. Everything is made of tensor operations
    of fixed shape: nothing is read back to the host, so the device never waits and a CUDA graph can record it. The
    price is that every branch is computed for every sample and then selected: cheap on a GPU, dear on a CPU.

    Args:
        flip_prob: probability of each of up to ``max_flips`` flips along a random axis.
        max_flips: largest number of flips.
        shuffle_prob: probability of local pixel shuffling.
        nonlinear_prob: probability of the non-linear intensity map.
        paint_prob: probability of painting.
        out_paint_prob: probability that painting is out-painting rather than in-painting.
        num_blocks: number of shuffled blocks.
        intensity_range: (low, high) of the input; values outside are clipped.
        output_range: (low, high) of the output; None keeps ``intensity_range``.
        seed: of the generator that draws everything.
        device: where the generator lives; that of the batches.
    """

    def __init__(
        self,
        flip_prob: float = 0.4,
        max_flips: int = 3,
        shuffle_prob: float = 0.5,
        nonlinear_prob: float = 0.9,
        paint_prob: float = 0.9,
        out_paint_prob: float = 0.8,
        num_blocks: int = 10_000,
        intensity_range: Sequence[float] = (0.0, 1.0),
        output_range: Sequence[float] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.flip_prob = flip_prob
        self.max_flips = max_flips
        self.shuffle_prob = shuffle_prob
        self.nonlinear_prob = nonlinear_prob
        self.paint_prob = paint_prob
        self.out_paint_prob = out_paint_prob
        self.num_blocks = num_blocks
        self.intensity_range = (float(intensity_range[0]), float(intensity_range[1]))
        low, high = self.intensity_range if output_range is None else output_range
        self.output_range = (float(low), float(high))
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(seed)

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Deform a batch.

        Args:
            batch: (B, C, X[, Y[, Z]]) of any real type, on the generator's device; it is not changed.

        Returns:
            The deformed batch and the originals (flipped alike), both float32 in ``output_range``.
        """
        size, channels, shape = batch.shape[0], batch.shape[1], batch.shape[2:]
        low, high = self.intensity_range
        voxels = ((batch.float() - low) / (high - low)).clamp(0, 1).reshape(size, channels, -1)
        flipped = self._flip_index(size, shape)
        target = _take(voxels, flipped)
        deformed = _take(target, self._shuffle_index(size, shape)) if self.shuffle_prob > 0 else target
        deformed = self._map_intensity(deformed)
        deformed = self._paint(deformed, shape)
        out_low, out_high = self.output_range
        scaled = [(cube * (out_high - out_low) + out_low).reshape(batch.shape) for cube in (deformed, target)]
        return scaled[0], scaled[1]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)

    def _integers(self, low: int, high: Tensor | int, *shape: int) -> Tensor:
        """Uniform integers in low..high, both included; ``high`` may differ from element to element.

        Drawn from 24 random bits: among n values their probabilities differ by less than n / 2**24.
        """
        count = high - low + 1
        drawn = (self._uniform(*shape) * count).long()
        return low + (torch.minimum(drawn, count - 1) if isinstance(count, Tensor) else drawn.clamp_max(count - 1))

    def _happens(self, probability: float, size: int) -> Tensor:
        return self._uniform(size, 1) < probability

    def _flip_index(self, size: int, shape: torch.Size) -> Tensor:
        """For each voxel the flat index of the voxel that a random flip brings there, (B, V)."""
        goes_on = (self._uniform(size, self.max_flips) < self.flip_prob).cumprod(dim=1)
        axis = self._integers(0, len(shape) - 1, size, self.max_flips)
        positions = []
        for dim, length in enumerate(shape):
            flipped = ((axis == dim) * goes_on).sum(dim=1, keepdim=True) % 2 == 1
            position = torch.arange(length, device=axis.device).expand(size, length)
            positions.append(torch.where(flipped, length - 1 - position, position))
        return _flat_index(positions, shape)

    def _shuffle_index(self, size: int, shape: torch.Size) -> Tensor:
        """For each voxel the flat index of the voxel that shuffling brings there, (B, V).

        A voxel is written by the last block that covers it, which a scatter-maximum over block numbers finds. Each
        block's permutation comes from sorting random keys, one row a block.
        """
        device = self.generator.device
        largest = [max(1, length // 10) for length in shape]
        sides = [self._integers(1, side, size, self.num_blocks) for side in largest]
        corners = [
            self._integers(0, length - side, size, self.num_blocks) for length, side in zip(shape, sides, strict=True)
        ]
        # All places of the largest possible block; a block uses those within its own sides.
        offsets = torch.cartesian_prod(*(torch.arange(side, device=device) for side in largest)).reshape(-1, len(shape))
        inside = torch.ones((), dtype=torch.bool, device=device)
        place = torch.zeros((), dtype=torch.long, device=device)
        for dim, length in enumerate(shape):
            inside = inside & (offsets[:, dim] < sides[dim].unsqueeze(-1))
            place = place * length + corners[dim].unsqueeze(-1) + offsets[:, dim]
        num_voxels = shape.numel()
        # Places outside a block go to one spare voxel behind the volume.
        place = torch.where(inside, place, num_voxels).flatten(1)
        block = torch.arange(self.num_blocks, device=device).repeat_interleave(len(offsets)).expand(size, -1)
        last_block = torch.full((size, num_voxels + 1), -1, device=device).scatter_reduce(1, place, block, "amax")
        # Sorting random keys permutes each block's places; those outside get the largest key and stay behind.
        keys = torch.randint(0, _LARGEST_KEY, inside.shape, generator=self.generator, device=device, dtype=torch.int32)
        order = keys.masked_fill(~inside, _LARGEST_KEY).argsort(dim=-1).flatten(1)
        first = torch.arange(self.num_blocks, device=device).unsqueeze(-1) * len(offsets)
        # The i-th used place of a block takes the voxel at its i-th sorted place.
        rank = (inside.cumsum(dim=-1) - 1).clamp_min(0) + first
        source = place.gather(1, order.add_(first.expand(-1, len(offsets)).flatten()).gather(1, rank.flatten(1)))
        identity = torch.arange(num_voxels + 1, device=device).expand(size, -1)
        wins = inside.flatten(1) & (last_block.gather(1, place) == block)
        moved = identity.scatter(1, torch.where(wins, place, num_voxels), source)[:, :num_voxels]
        return torch.where(self._happens(self.shuffle_prob, size), moved, identity[:, :num_voxels])

    def _map_intensity(self, voxels: Tensor) -> Tensor:
        """Map (B, C, V) in [0, 1] by a random monotone Bezier curve, one a sample."""
        size = len(voxels)
        inner = self._uniform(size, 2, 2)
        reverse = self._happens(0.5, size)
        applies = self._happens(self.nonlinear_prob, size)
        t = (1 - torch.cos(torch.linspace(0, torch.pi, _NUM_NODES, device=inner.device))) / 2
        first, second, third = 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
        curve = first * inner[:, 0, :, None] + second * inner[:, 1, :, None] + third  # (B, 2, nodes)
        x, y = curve[:, 0].contiguous(), curve[:, 1]
        # A decreasing curve is the increasing one turned about the middle: it maps v to curve(1 - v).
        flat = voxels.flatten(1)
        value = torch.where(reverse, 1 - flat, flat)
        right = torch.searchsorted(x, value.contiguous()).clamp(1, _NUM_NODES - 1)
        x0, x1, y0, y1 = (nodes.gather(1, index) for nodes in (x, y) for index in (right - 1, right))
        weight = ((value - x0) / (x1 - x0).clamp_min(1e-12)).clamp(0, 1)
        return torch.where(applies, y0 + weight * (y1 - y0), flat).view_as(voxels)

    def _paint(self, voxels: Tensor, shape: torch.Size) -> Tensor:
        """Replace boxes of (B, C, V), or everything else, by noise."""
        size = len(voxels)
        applies, outside = self._happens(self.paint_prob, size), self._happens(self.out_paint_prob, size)
        # In-painting stops at the first failure; out-painting has one box for certain.
        goes_on = self._uniform(size, _MAX_BOXES) < _BOX_PROB
        goes_on = torch.cat([goes_on[:, :1] | outside, goes_on[:, 1:]], dim=1).cumprod(dim=1).bool()
        in_box = goes_on
        for dim, length in enumerate(shape):
            inner_side = self._integers(length // 6, length // 3, size, _MAX_BOXES)
            outer_side = length - self._integers(3 * length // 7, 4 * length // 7, size, _MAX_BOXES)
            side = torch.where(outside, outer_side, inner_side)
            corner = self._integers(_MARGIN, length - side - _MARGIN, size, _MAX_BOXES)
            position = torch.arange(length, device=side.device)
            covers = (position >= corner.unsqueeze(-1)) & (position < (corner + side).unsqueeze(-1))
            in_box = in_box.unsqueeze(-1) & _along(covers, dim)
        in_box = in_box.any(dim=1).flatten(1)
        is_noise = (applies & (in_box ^ outside)).unsqueeze(1)
        return torch.where(is_noise, self._uniform(*voxels.shape), voxels)


_LARGEST_KEY = torch.iinfo(torch.int32).max


def _take(voxels: Tensor, index: Tensor) -> Tensor:
    """Gather (B, C, V) by (B, V), every channel alike."""
    return voxels.gather(2, index.unsqueeze(1).expand_as(voxels))


def _along(covers: Tensor, dim: int) -> Tensor:
    """Give (B, boxes, length) the axes that broadcast it along spatial axis ``dim``: (B, boxes, 1, ..., length)."""
    return covers.reshape(covers.shape[:2] + (1,) * dim + covers.shape[2:])


def _flat_index(positions: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Combine positions along each axis, (B, length) each, into flat indices of the volume, (B, V)."""
    index = torch.zeros((len(positions[0]), 1), dtype=torch.long, device=positions[0].device)
    for position, length in zip(positions, shape, strict=True):
        index = (index.unsqueeze(-1) * length + position.unsqueeze(1)).flatten(1)
    return index
