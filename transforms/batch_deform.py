# SPDX-License-Identifier: Apache-2.0
"""The deformations of Models Genesis on a whole batch at once, where the tensor lives: on a GPU or on the CPU."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from .batch_curve import batch_bezier_nodes, interpolate
from .batch_draws import draw_bits, draw_integers, draw_uniform
from .batch_shuffle import draw_shuffle_sources, listed_voxels
from .genesis_deform import RandGenesisDeform
from .local_shuffle import max_block_sides
from .masking import count_masked, patch_grid
from .voxel_kinds import KEPT, MAPPED, MASKED, PAINTED, SHUFFLED

__all__ = ["BatchGenesisDeform"]

# Interpolating between so many nodes errs by less than 25 / nodes**2: 6e-6 for floats, 1e-7 for a table of integers.
_FLOAT_NODES = 2048
_TABLE_NODES = 16384
_MAX_BOXES = 5
_BOX_PROB = 0.95
_MARGIN = 3
# Voxels, of the batch or listed for shuffling, that are worked on at once; this bounds memory.
_GROUP_VOXELS = 2**24
# Voxels of the largest block of shuffling that a Triton program can sort.
MAX_KERNEL_BLOCK = 4096

BATCH_BACKENDS = ("auto", "torch", "triton")


class BatchGenesisDeform:
    """Deform a batch of images, each sample with its own parameters (arXiv:2004.07882, section 3).

    The distribution is that of :class:`RandGenesisDeform`, sample for sample, and so are the arguments. Nothing is read
    back to the host nor copied to the device, so the device never waits and a CUDA graph can record it (register
    :attr:`generator` with the graph first).

    On a CUDA device with Triton the work is done by its kernels. Elsewhere it is made of tensor operations of fixed
    shape; a part with a rate above 0 is then computed for every sample and selected, and samples are worked on in
    groups of so many that at most 2**24 voxels are in work at once.

    Exactness of the draws: a part happens with its rate to within 6e-8; one of n sides or corners has the probability
    1/n to within 2**-31; permutations come from random keys of at least 40 bits; noise has 24 bits.

    Args:
        variant: see :class:`RandGenesisDeform`.
        flip_prob: see :class:`RandGenesisDeform`.
        max_flips: see :class:`RandGenesisDeform`.
        flip_axes: see :class:`RandGenesisDeform`.
        shuffle_prob: see :class:`RandGenesisDeform`.
        nonlinear_prob: see :class:`RandGenesisDeform`.
        reverse_prob: see :class:`RandGenesisDeform`.
        paint_prob: see :class:`RandGenesisDeform`.
        out_paint_prob: see :class:`RandGenesisDeform`.
        num_blocks: see :class:`RandGenesisDeform`.
        max_block_fraction: see :class:`RandGenesisDeform`.
        intensity_range: see :class:`RandGenesisDeform`; integers are mapped by a table of all levels.
        output_range: see :class:`RandGenesisDeform`.
        seed: of the generator that draws everything, 0..2**63-1.
        device: where the generator lives; that of the batches.
        mask_prob: see :class:`RandGenesisDeform`.
        mask_patch: see :class:`RandGenesisDeform`.
        mask_ratio: see :class:`RandGenesisDeform`.
        mask_value: see :class:`RandGenesisDeform`.
        record_kinds: keep a map of what was done to each voxel; what is drawn does not depend on it.
        backend: ``"triton"``, ``"torch"`` (tensor operations) or ``"auto"``: Triton on a CUDA device of compute
            capability 7.0 or more, where blocks of shuffling have at most 4096 voxels. For one seed the two give
            different results of the same distribution.

    Attributes:
        kinds: of the last batch with ``record_kinds``: numbers of :data:`.voxel_kinds.VOXEL_KINDS`, uint8,
            shape (B, 1, x[, y[, z]]).
        generator: the one source of all draws; seed it by ``generator.manual_seed``.

    Raises:
        ValueError: for an argument outside its range; at the call for a batch of a wrong shape or on another device, or
            an axis too short for the boxes of a painting that has a rate above 0.

    Example:
        >>> deform = BatchGenesisDeform(intensity_range=(-1000, 1000), output_range=(0, 1), seed=3)
        >>> deformed, target = deform(torch.full((4, 1, 16, 16, 16), -1000, dtype=torch.int16))
        >>> deformed.shape, deformed.dtype, float(target.max())
        (torch.Size([4, 1, 16, 16, 16]), torch.float32, 0.0)
    """

    def __init__(
        self,
        variant: str = "genesis",
        flip_prob: float = 0.4,
        max_flips: int = 3,
        flip_axes: Sequence[int] | int | None = None,
        shuffle_prob: float | None = None,
        nonlinear_prob: float | None = None,
        reverse_prob: float = 0.5,
        paint_prob: float | None = None,
        out_paint_prob: float | None = None,
        num_blocks: int = 10_000,
        max_block_fraction: float = 0.1,
        intensity_range: Sequence[float] = (0.0, 1.0),
        output_range: Sequence[float] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        mask_prob: float | None = None,
        mask_patch: Sequence[int] | int = 16,
        mask_ratio: float = 0.6,
        mask_value: float | None = None,
        record_kinds: bool = False,
        backend: str = "auto",
    ) -> None:
        if backend not in BATCH_BACKENDS:
            raise ValueError(f"backend: expected one of {BATCH_BACKENDS}, found {backend!r}")
        # the twin for single images checks the arguments and knows the variants
        checked = RandGenesisDeform(
            variant,
            flip_prob,
            max_flips,
            flip_axes,
            shuffle_prob,
            nonlinear_prob,
            reverse_prob,
            paint_prob,
            out_paint_prob,
            num_blocks,
            max_block_fraction,
            intensity_range,
            output_range,
            backend="numpy",
            mask_prob=mask_prob,
            mask_patch=mask_patch,
            mask_ratio=mask_ratio,
            mask_value=mask_value,
        )
        self.rates = checked.rates
        self.flip_prob, self.max_flips, self.flip_axes = checked.flip_prob, checked.max_flips, checked.flip_axes
        self.reverse_prob = checked.reverse_prob
        self.num_blocks, self.max_block_fraction = checked.num_blocks, checked.max_block_fraction
        self.intensity_range, self.output_range = checked.intensity_range, checked.output_range
        self.mask_patch, self.mask_ratio, self.mask_value = checked.mask_patch, checked.mask_ratio, checked.mask_value
        self.record_kinds = record_kinds
        self.kinds: Tensor | None = None
        self.backend = backend
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Deform a batch.

        Args:
            batch: (B, C, X[, Y[, Z]]), integers or floats, on the generator's device; it is not changed. All channels
                of a sample are deformed alike, but each has its own noise.

        Returns:
            The deformed batch and the originals (flipped alike), both float32 in ``output_range``.
        """
        shape, sides = self._check(batch)
        deformed, target = (torch.empty(batch.shape, device=batch.device) for _ in range(2))
        if self._by_kernels(batch, sides):
            self._run_kernels(batch, sides, deformed, target)
            return deformed, target
        in_work = [batch[0].numel(), 4 * _TABLE_NODES if self.rates["nonlinear_prob"] > 0 else 0]
        in_work += [listed_voxels(sides, self.num_blocks) if self.rates["shuffle_prob"] > 0 else 0]
        group = max(1, _GROUP_VOXELS // max(in_work))
        parts = (images.reshape(*images.shape[:2], -1).split(group) for images in (batch, deformed, target))
        kinds = [
            self._deform(images, deformed_part, target_part, shape, sides)
            for images, deformed_part, target_part in zip(*parts, strict=True)
        ]
        if self.record_kinds:
            self.kinds = torch.cat(kinds).reshape(len(batch), 1, *shape)
        return deformed, target

    def _check(self, batch: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Check a batch; give its spatial shape and the largest sides of shuffled blocks."""
        if not 3 <= batch.ndim <= 5 or 0 in batch.shape:
            raise ValueError(
                "batch: expected (B, C, x[, y[, z]]) with one to three spatial axes, nothing empty, "
                f"found shape {tuple(batch.shape)}"
            )
        if batch.device.type != self.generator.device.type:
            raise ValueError(f"batch: expected it on {self.generator.device}, found it on {batch.device}")
        shape = tuple(batch.shape[2:])
        if self.flip_axes is not None and any(not 0 <= axis < len(shape) for axis in self.flip_axes):
            raise ValueError(f"flip_axes: expected spatial axes in 0..{len(shape) - 1}, found {self.flip_axes}")
        for what, rate, kind in (("in-painting", 1 - self.rates["out_paint_prob"], 0),
                                 ("out-painting", self.rates["out_paint_prob"], 1)):  # fmt: skip
            ends = [_box_sides(length)[kind] for length in shape]
            if self.rates["paint_prob"] * rate > 0 and any(
                low < 1 or high > length - 2 * _MARGIN for length, (low, high) in zip(shape, ends, strict=True)
            ):
                raise ValueError(
                    f"batch: {what} expected axes that hold boxes of {[low for low, _ in ends]} to "
                    f"{[high for _, high in ends]} voxels, at least 1, {_MARGIN} voxels from the border, "
                    f"found spatial shape {shape}"
                )
        return shape, max_block_sides(shape, self.max_block_fraction)

    def _deform(
        self, images: Tensor, deformed: Tensor, target: Tensor, shape: Sequence[int], sides: Sequence[int]
    ) -> Tensor:
        """Deform (B, C, voxels) into `deformed` and `target`; give the kinds of voxels, (B, voxels)."""
        if not images.is_floating_point() and images.dtype not in (torch.uint8, torch.int8, torch.int16):
            images = images.int()
        size = len(images)
        images = _take(images, self._draw_flips(size, shape))
        shuffled = images
        kinds = torch.full((size, images.shape[2]), KEPT, dtype=torch.uint8, device=images.device)
        moved: Tensor | None = None
        if self.rates["shuffle_prob"] > 0 and self.num_blocks > 0 and max(sides) > 1:
            source = draw_shuffle_sources(self.generator, size, shape, sides, self.num_blocks)
            identity = torch.arange(images.shape[2], device=source.device)
            source = torch.where(self._happens(self.rates["shuffle_prob"], size), source, identity)
            shuffled = _take(images, source)
            moved = source != identity
        if self.rates["nonlinear_prob"] > 0:
            kinds.masked_fill_(self._map_intensity(images, shuffled, deformed, target), MAPPED)
        else:
            target.copy_(self._to_output(self._to_unit(images)))
            deformed.copy_(target if shuffled is images else self._to_output(self._to_unit(shuffled)))
        if moved is not None:
            kinds.masked_fill_(moved, SHUFFLED)
        # all places before any noise: so samples of another number of channels have the same ones for the same seed
        painted = self._draw_noise_mask(size, shape) if self.rates["paint_prob"] > 0 else None
        masked = self._draw_masked(size, shape) if self.rates["mask_prob"] > 0 else None
        if painted is not None:
            noise = self._to_output(draw_uniform(self.generator, *images.shape))
            torch.where(painted.unsqueeze(1), noise, deformed, out=deformed)
            kinds.masked_fill_(painted, PAINTED)
        if masked is not None:
            self._mask(masked, deformed, kinds)
        return kinds

    def _by_kernels(self, batch: Tensor, sides: Sequence[int]) -> bool:
        """Whether Triton's kernels do the work; requested by name, their requirements are not checked."""
        if self.backend != "auto":
            return self.backend == "triton"
        if not batch.is_cuda or math.prod(sides) > MAX_KERNEL_BLOCK or importlib.util.find_spec("triton") is None:
            return False
        return torch.version.hip is None and torch.cuda.get_device_capability(batch.device) >= (7, 0)

    def _run_kernels(self, batch: Tensor, sides: Sequence[int], deformed: Tensor, target: Tensor) -> None:
        """Deform by Triton's kernels; masking, which few use, follows as tensor operations."""
        if math.prod(sides) > MAX_KERNEL_BLOCK:
            raise ValueError(
                f"backend: 'triton' expected blocks of shuffling of at most {MAX_KERNEL_BLOCK} voxels, found up to "
                f"{math.prod(sides)} ({'x'.join(map(str, sides))}); use 'auto' or 'torch', or a smaller "
                "max_block_fraction"
            )
        from .triton_deform import KernelSettings, deform_batch

        shape = tuple(batch.shape[2:])
        rates = {name: rate for name, rate in self.rates.items() if name != "mask_prob"}
        settings = KernelSettings(
            flip_prob=self.flip_prob,
            max_flips=self.max_flips,
            flip_axes=tuple(range(len(shape))) if self.flip_axes is None else tuple(self.flip_axes),
            reverse_prob=self.reverse_prob,
            num_blocks=self.num_blocks,
            intensity_range=self.intensity_range,
            output_range=self.output_range,
            **rates,
        )
        self.kinds = None
        if self.record_kinds:
            self.kinds = torch.empty((len(batch), 1, *shape), dtype=torch.uint8, device=batch.device)
        with torch.cuda.device(batch.device) if batch.is_cuda else nullcontext():
            deform_batch(batch, self.generator, settings, tuple(sides), deformed, target, self.kinds)
        if self.rates["mask_prob"] > 0:
            kinds = None if self.kinds is None else self.kinds.view(len(batch), -1)
            self._mask(self._draw_masked(len(batch), shape), deformed.view(*batch.shape[:2], -1), kinds)

    def _mask(self, masked: Tensor, deformed: Tensor, kinds: Tensor | None) -> None:
        """Hide patches, (B, voxels), of (B, C, voxels)."""
        if self.mask_value is None:
            noise = self._to_output(draw_uniform(self.generator, *deformed.shape))
            torch.where(masked.unsqueeze(1), noise, deformed, out=deformed)
        else:
            deformed.masked_fill_(masked.unsqueeze(1), self.mask_value)
        if kinds is not None:
            kinds.masked_fill_(masked, MASKED)

    def _happens(self, probability: float, size: int) -> Tensor:
        return draw_uniform(self.generator, size, 1) < probability

    def _draw_flips(self, size: int, shape: Sequence[int]) -> Tensor:
        """For each voxel the flat index of the voxel that a random flip brings there, (B, V)."""
        goes_on = (draw_uniform(self.generator, size, self.max_flips) < self.flip_prob).cumprod(dim=1)
        allowed = range(len(shape)) if self.flip_axes is None else self.flip_axes
        chosen = draw_integers(self.generator, 0, max(len(allowed) - 1, 0), size, self.max_flips)
        index = torch.zeros((size, 1), dtype=torch.long, device=chosen.device)
        for axis, length in enumerate(shape):
            rounds = sum(((chosen == number) * goes_on).sum(dim=1) for number, a in enumerate(allowed) if a == axis)
            position = torch.arange(length, device=chosen.device).expand(size, -1)
            if isinstance(rounds, Tensor):
                position = torch.where(rounds.unsqueeze(1) % 2 == 1, length - 1 - position, position)
            index = (index.unsqueeze(2) * length + position.unsqueeze(1)).flatten(1)
        return index

    def _map_intensity(self, images: Tensor, shuffled: Tensor, deformed: Tensor, target: Tensor) -> Tensor:
        """Map the shuffled images along a random Bezier curve each, the images along a straight line; tell whose."""
        size = len(images)
        points = draw_uniform(self.generator, size, 2, 2).double()
        falls = self._happens(self.reverse_prob, size)
        applies = self._happens(self.rates["nonlinear_prob"], size)

        def curve(values: Tensor, num_nodes: int) -> Tensor:
            x, y = (nodes.to(values.dtype) for nodes in batch_bezier_nodes(points, num_nodes))
            mapped = interpolate(values, x, y)
            return torch.where(applies, torch.where(falls, 1 - mapped, mapped), values)

        first, last = math.floor(self.intensity_range[0]), math.ceil(self.intensity_range[1])
        if images.is_floating_point() or last - first >= 2**16:
            target.copy_(self._to_output(self._to_unit(images)))
            values = self._to_unit(shuffled).flatten(1)
            deformed.copy_(self._to_output(curve(values, _FLOAT_NODES)).view(deformed.shape))
            return applies
        levels = self._to_unit(torch.arange(first, last + 1, dtype=torch.float64, device=images.device)).expand(
            size, -1
        )
        for table, source, result in ((levels, images, target), (curve(levels, _TABLE_NODES), shuffled, deformed)):
            level = source.flatten(1).long().clamp_(first, last).sub_(first)
            result.copy_(self._to_output(table).float().gather(1, level).view(result.shape))
        return applies

    def _draw_noise_mask(self, size: int, shape: Sequence[int]) -> Tensor:
        """Where painting puts noise, (B, V)."""
        paints = self._happens(self.rates["paint_prob"], size)
        outside = self._happens(self.rates["out_paint_prob"], size)
        goes_on = draw_uniform(self.generator, size, _MAX_BOXES) < _BOX_PROB
        # out-painting always has a first box
        goes_on = torch.cat([goes_on[:, :1] | outside, goes_on[:, 1:]], dim=1)
        in_box = goes_on.cumprod(dim=1).bool().unsqueeze(2)
        for length in shape:
            inner, outer = (draw_integers(self.generator, *ends, size, _MAX_BOXES) for ends in _box_sides(length))
            side = torch.where(outside, outer, inner)
            # an axis too short for a kind of box that never comes must not give a negative count
            corner = draw_integers(
                self.generator, _MARGIN, (length - side - _MARGIN).clamp_min(_MARGIN), size, _MAX_BOXES
            )
            position = torch.arange(length, device=side.device)
            covers = (position >= corner.unsqueeze(2)) & (position < (corner + side).unsqueeze(2))
            in_box = (in_box.unsqueeze(3) & covers.unsqueeze(2)).flatten(2)
        return paints & (in_box.any(dim=1) ^ outside)

    def _draw_masked(self, size: int, shape: Sequence[int]) -> Tensor:
        """Which voxels lie in masked patches, (B, V)."""
        grid, sides = patch_grid(shape, self.mask_patch)
        # sorting random keys permutes the patches uniformly; exactly so many of them have the first ranks
        keys = draw_bits(self.generator, size, math.prod(grid))
        masked = keys.argsort(dim=1).argsort(dim=1) < count_masked(grid, self.mask_ratio)
        masked = masked & self._happens(self.rates["mask_prob"], size)
        index = torch.zeros(1, dtype=torch.long, device=masked.device)
        for length, count, side in zip(shape, grid, sides, strict=True):
            position = torch.arange(length, device=masked.device).div(side, rounding_mode="floor")
            index = (index.unsqueeze(1) * count + position).flatten()
        return masked[:, index]

    def _to_unit(self, images: Tensor) -> Tensor:
        """The intensity range as [0, 1]; values outside count as its nearest end, NaN as low; float64 stays float64."""
        low, high = self.intensity_range
        values = images if images.dtype == torch.float64 else images.float()
        return ((values.nan_to_num(nan=low) - low) / (high - low)).clamp_(0, 1)

    def _to_output(self, values: Tensor) -> Tensor:
        low, high = self.output_range
        return values if (low, high) == (0.0, 1.0) else values * (high - low) + low


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Gather (B, C, V) by (B, V), every channel alike."""
    return images.gather(2, index.unsqueeze(1).expand_as(images))


def _box_sides(length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Smallest and largest side along an axis of in-painting's boxes, and of out-painting's."""
    return (length // 6, length // 3), (length - 4 * length // 7, length - 3 * length // 7)
