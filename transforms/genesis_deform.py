# SPDX-License-Identifier: Apache-2.0
"""The whole chain of deformations: flip, shuffle, non-linear map, painting (arXiv:2004.07882, section 3)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils import convert_data_type, convert_to_dst_type, ensure_tuple, ensure_tuple_rep
from monai.utils.enums import TransformBackends

from .arguments import check_image_shape, check_intensity_range, check_probability, check_whole_number
from .backend import resolve_backend
from .local_shuffle import draw_seed, local_pixel_shuffle
from .masking import check_patch, check_value, draw_masked_patches, mask_patches
from .nonlinear_intensity import IntensityMap, draw_control_points
from .painting import copy_boxes, draw_in_painting_boxes, draw_noise, draw_out_painting_boxes, fill_boxes
from .voxel_kinds import KEPT, MAPPED, MASKED, PAINTED, SHUFFLED, inside_boxes

__all__ = [
    "GENESIS_VARIANTS",
    "GenesisParameters",
    "RandGenesisDeform",
    "RandGenesisDeformd",
    "genesis_deform",
    "voxel_kind_map",
]

NdArray = np.ndarray[Any, Any]

_NOTHING = {"shuffle_prob": 0.0, "nonlinear_prob": 0.0, "paint_prob": 0.0, "out_paint_prob": 0.8, "mask_prob": 0.0}

GENESIS_VARIANTS: dict[str, dict[str, float]] = {
    "genesis": {**_NOTHING, "shuffle_prob": 0.5, "nonlinear_prob": 0.9, "paint_prob": 0.9},
    "autoencoder": _NOTHING,
    "nonlinear": {**_NOTHING, "nonlinear_prob": 0.9},
    "shuffle": {**_NOTHING, "shuffle_prob": 0.5},
    "out_painting": {**_NOTHING, "paint_prob": 0.9, "out_paint_prob": 1.0},
    "in_painting": {**_NOTHING, "paint_prob": 0.9, "out_paint_prob": 0.0},
    "masking": {**_NOTHING, "mask_prob": 1.0},
}
"""The rates of the paper's variants, each with some deformations switched off, and of the whole (``"genesis"``).

``"masking"`` is the proxy task of masked autoencoders, which the paper does not have, see :mod:`.masking`.
"""


@dataclass(frozen=True)
class GenesisParameters:
    """What was drawn for one image.

    Args:
        flips: for each spatial axis, whether it is reversed, in the target too.
        shuffle: whether voxels are shuffled locally.
        control_points: of the Bezier curve; None: no curve.
        reverse: whether the curve falls.
        boxes: of the painting, in voxels of the flipped image, shape (boxes, spatial axes, 2); None: no painting.
        out_painting: whether the boxes are spared instead of filled.
        seed: 64-bit seed of the shuffled blocks and of the noise.
        masked: the masked patches, in voxels of the flipped image, shape (patches, spatial axes, 2); None: no masking.
    """

    flips: tuple[bool, ...]
    shuffle: bool
    control_points: tuple[tuple[float, float], tuple[float, float]] | None
    reverse: bool
    boxes: NdArray | None
    out_painting: bool
    seed: int
    masked: NdArray | None = None


def genesis_deform(
    img: NdArray,
    parameters: GenesisParameters,
    num_blocks: int = 10_000,
    max_block_fraction: float = 0.1,
    intensity_range: tuple[float, float] = (0.0, 1.0),
    output_range: tuple[float, float] | None = None,
    backend: str = "auto",
    mask_value: float | None = None,
) -> tuple[NdArray, NdArray]:
    """Deform one image with given parameters.

    Args:
        img: channel-first image with one to three spatial axes, integers or floats.
        parameters: what was drawn.
        num_blocks: see :func:`.local_shuffle.local_pixel_shuffle`.
        max_block_fraction: see :func:`.local_shuffle.local_pixel_shuffle`.
        intensity_range: (low, high) of the input; values outside count as the nearest end.
        output_range: (low, high) of both results; None: the intensity range.
        backend: see :func:`.backend.resolve_backend`.
        mask_value: what masked voxels show, in the output range; None: noise.

    Returns:
        The deformed image and the target (the flipped original), both float32, mapped to the output range.
    """
    backend = resolve_backend(backend)
    output_range = intensity_range if output_range is None else output_range
    curve = IntensityMap(parameters.control_points, parameters.reverse, intensity_range, output_range, backend)
    source = _as_kernel_dtype(img, curve.levels())
    shuffled = _shuffle(source, parameters, num_blocks, max_block_fraction, backend)
    if backend == "numba":
        deformed, target = _render_compiled(source, shuffled, parameters, curve)
    else:
        line = IntensityMap(None, False, intensity_range, output_range, backend)
        deformed, target = _render_vectorised(source, shuffled, parameters, curve, line)
    if parameters.masked is not None:
        seed = parameters.seed ^ 0x6D61736B  # unrelated to the noise of the painting
        mask_patches(deformed, parameters.masked, mask_value, output_range, seed, backend)
    return deformed, target


def _shuffle(
    img: NdArray, parameters: GenesisParameters, num_blocks: int, max_block_fraction: float, backend: str
) -> NdArray:
    """Shuffle an image where the parameters say so; which voxel goes where does not depend on its values."""
    if not parameters.shuffle:
        return img
    # shuffling looks the same in a mirror, so it runs before the flip; what will be noise needs none
    spared = parameters.boxes if parameters.out_painting else None
    regions = None if spared is None else _mirror_boxes(spared, parameters.flips, img.shape[1:])
    return local_pixel_shuffle(img, parameters.seed, num_blocks, max_block_fraction, backend, regions)


def voxel_kind_map(
    shape: Sequence[int],
    parameters: GenesisParameters,
    num_blocks: int = 10_000,
    max_block_fraction: float = 0.1,
    backend: str = "auto",
) -> NdArray:
    """Tell what :func:`genesis_deform` with the same arguments does to each voxel.

    Exact: an image of voxel numbers is shuffled by the same seed, and what does not keep its number has moved.

    Args:
        shape: spatial shape in voxels.
        parameters: what was drawn.
        num_blocks: as for the image.
        max_block_fraction: as for the image.
        backend: as for the image; the two shuffle differently.

    Returns:
        Numbers of :data:`.voxel_kinds.VOXEL_KINDS`, uint8, with one channel, in the frame of the flipped image.
    """
    kinds = np.full(tuple(shape), KEPT if parameters.control_points is None else MAPPED, np.uint8)
    place = np.arange(kinds.size, dtype=np.int32).reshape(1, *shape)
    moved = _shuffle(place, parameters, num_blocks, max_block_fraction, resolve_backend(backend)) != place
    axes = tuple(axis for axis, flip in enumerate(parameters.flips) if flip)
    kinds[np.flip(moved[0], axes)] = SHUFFLED
    if parameters.boxes is not None:
        kinds[inside_boxes(shape, parameters.boxes) != parameters.out_painting] = PAINTED
    if parameters.masked is not None:
        kinds[inside_boxes(shape, parameters.masked)] = MASKED
    return kinds[None]


def _as_kernel_dtype(img: NdArray, levels: tuple[int, int]) -> NdArray:
    """The image as contiguous int16 or float32: integers where the intensity range fits int16, else floats."""
    first, last = levels
    if img.dtype.kind in "iu" and first >= -(2**15) and last < 2**15:
        if img.dtype not in (np.int16, np.int8, np.uint8):
            img = np.clip(img.astype(np.int64), first, last)
        return np.ascontiguousarray(img, np.int16)
    return np.ascontiguousarray(img, np.float32)


def _mirror_boxes(boxes: NdArray, flips: Sequence[bool], shape: Sequence[int]) -> NdArray:
    """Boxes as seen along flipped axes."""
    if not any(flips):
        return boxes
    sizes = np.array(shape)[:, None]
    return np.where(np.array(flips)[:, None], sizes - boxes[..., ::-1], boxes)


def _render_compiled(
    source: NdArray, shuffled: NdArray, parameters: GenesisParameters, curve: IntensityMap
) -> tuple[NdArray, NdArray]:
    """Flip, map and paint in one pass over memory."""
    from . import kernels

    missing = 4 - source.ndim
    boxes = np.empty((0, 3, 2), np.int64)
    kind, paint_kind = kernels.LINEAR, kernels.NO_PAINT
    if parameters.boxes is not None:
        paint_kind = kernels.OUT_PAINT if parameters.out_painting else kernels.IN_PAINT
        boxes = parameters.boxes
        if missing:
            boxes = np.concatenate([np.tile(np.array([0, 1]), (len(boxes), missing, 1)), boxes], axis=1)
    table, bucketed = (kernels.NO_TABLE, 0), kernels.NO_CURVE
    if curve.control_points is not None and source.dtype == np.int16:
        kind, table = kernels.TABLE, (curve.table(), curve.levels()[0])
    elif curve.control_points is not None:
        kind, bucketed = kernels.CURVE, curve.bucketed()
    deformed, target = np.empty(source.shape, np.float32), np.empty(source.shape, np.float32)
    kernels.render(
        source.reshape(-1),
        shuffled.reshape(-1),
        (1,) * missing + source.shape[1:],
        (False,) * missing + parameters.flips,
        boxes,
        paint_kind,
        kind,
        curve.intensity_range + curve.output_range,
        table,
        bucketed,
        np.uint64(parameters.seed ^ 0x6E6F697365),  # the noise has its own stream
        deformed.reshape(-1),
        target.reshape(-1),
    )
    return deformed, target


def _render_vectorised(
    source: NdArray, shuffled: NdArray, parameters: GenesisParameters, curve: IntensityMap, line: IntensityMap
) -> tuple[NdArray, NdArray]:
    """Flip, map and paint with numpy alone."""
    axes = tuple(axis + 1 for axis, flip in enumerate(parameters.flips) if flip)
    target = line(np.flip(source, axes))
    flipped = np.flip(shuffled, axes)
    boxes = parameters.boxes
    if boxes is None:
        return curve(flipped), target
    generator = np.random.Generator(np.random.SFC64([parameters.seed, 1]))
    if not parameters.out_painting:
        deformed = curve(flipped)
        fill_boxes(deformed, boxes, curve.output_range, generator)
        return deformed, target
    noise = draw_noise(source.shape, curve.output_range, np.float32, generator)
    if len(boxes):
        # only the box around all spared ones is mapped
        first = boxes[..., 0].min(axis=0)
        hull = (
            slice(None),
            *(slice(*ends) for ends in zip(first.tolist(), boxes[..., 1].max(axis=0).tolist(), strict=True)),
        )
        copy_boxes(noise[hull], curve(flipped[hull]), boxes - first[:, None])
    return noise, target


class RandGenesisDeform(RandomizableTransform):
    """Deform an image as Models Genesis does, and give the undeformed target with it (arXiv:2004.07882, section 3).

    In this order: flip (image and target alike), local pixel shuffling, non-linear intensity map, painting, masking.
    Painting shows the image after the first three steps; the grid of masked patches begins at the first voxel of the
    flipped image. Both results are mapped linearly from the intensity range to the output
    range in the same pass, so int16 HU go in and float32 in [0, 1] come out at no further cost.

    All parameters are drawn from ``self.R`` in :meth:`randomize`, but for the shuffled blocks and the noise values:
    those come from a separate stream, named by one 64-bit number drawn from ``self.R``. So the result depends on
    the random state and the backend alone.

    Args:
        variant: which of :data:`GENESIS_VARIANTS` gives the rates below that are None.
        flip_prob: probability that each round of flips goes on; a round reverses one random axis.
        max_flips: largest number of rounds.
        flip_axes: spatial axes that may be reversed; None: all.
        shuffle_prob: probability of local pixel shuffling; None: the variant's, 0.5 for ``"genesis"``.
        nonlinear_prob: probability of the non-linear map; None: the variant's, 0.9 for ``"genesis"``.
        reverse_prob: probability that the map falls, where there is one.
        paint_prob: probability of painting; None: the variant's, 0.9 for ``"genesis"``.
        out_paint_prob: probability that a painting is out-painting, else it is in-painting; None: the variant's, 0.8
            for ``"genesis"``.
        num_blocks: number of shuffled blocks.
        max_block_fraction: largest share of an axis that a shuffled block takes.
        intensity_range: (low, high) of the input, such as (-1000, 1000) for HU; **values outside count as its nearest
            end**, NaN as low.
        output_range: (low, high) of both results and of the noise; None: the intensity range.
        backend: ``"auto"``, ``"numba"`` or ``"numpy"``; see :func:`.backend.resolve_backend`.
        mask_prob: probability of masking; None: the variant's, 1 for ``"masking"``, 0 for all others.
        mask_patch: sides of a masked patch in voxels, see :class:`.masking.RandPatchMasking`.
        mask_ratio: share of the patches that is masked, in [0, 1]; exactly so many patches in each image.
        mask_value: what masked voxels show, in the output range; None: noise as in painting.

    Raises:
        ValueError: for an argument outside its range; at the call for an axis too short for the boxes of the painting
            (14 voxels for out-painting, 8 for in-painting).

    Example:
        >>> deform = RandGenesisDeform(variant="nonlinear", intensity_range=(-1000, 1000), output_range=(0, 1))
        >>> deformed, target = deform.set_random_state(0)(np.full((1, 16, 16, 16), -1000, np.int16))
        >>> deformed.dtype, float(target.max())
        (dtype('float32'), 0.0)
    """

    backend = [TransformBackends.NUMPY]

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
        backend: str = "auto",
        mask_prob: float | None = None,
        mask_patch: Sequence[int] | int = 16,
        mask_ratio: float = 0.6,
        mask_value: float | None = None,
    ) -> None:
        RandomizableTransform.__init__(self, 1.0)
        if variant not in GENESIS_VARIANTS:
            raise ValueError(f"variant: expected one of {sorted(GENESIS_VARIANTS)}, found {variant!r}")
        given = {
            "shuffle_prob": shuffle_prob,
            "nonlinear_prob": nonlinear_prob,
            "paint_prob": paint_prob,
            "out_paint_prob": out_paint_prob,
            "mask_prob": mask_prob,
        }
        rates = GENESIS_VARIANTS[variant] | {name: rate for name, rate in given.items() if rate is not None}
        self.rates = {name: check_probability(name, rate) for name, rate in rates.items()}
        self.flip_prob = check_probability("flip_prob", flip_prob)
        self.max_flips = check_whole_number("max_flips", max_flips, minimum=0)
        self.flip_axes = None if flip_axes is None else tuple(int(axis) for axis in ensure_tuple(flip_axes))
        self.reverse_prob = check_probability("reverse_prob", reverse_prob)
        self.num_blocks = check_whole_number("num_blocks", num_blocks, minimum=0)
        if not 0.0 < max_block_fraction <= 1.0:
            raise ValueError(f"max_block_fraction: expected a share in (0, 1], found {max_block_fraction}")
        self.max_block_fraction = float(max_block_fraction)
        self.intensity_range = check_intensity_range("intensity_range", intensity_range)
        self.output_range = check_intensity_range("output_range", output_range or intensity_range)
        self.mask_patch = check_patch("mask_patch", mask_patch)
        self.mask_ratio = check_probability("mask_ratio", mask_ratio)
        self.mask_value = check_value("mask_value", mask_value, self.output_range)
        self.code_path = resolve_backend(backend)
        self.parameters: GenesisParameters | None = None

    def randomize(self, img_size: Sequence[int]) -> None:
        """Draw the parameters for an image.

        Args:
            img_size: spatial shape in voxels.
        """
        super().randomize(None)
        # all the yes-or-no draws come first, used or not, so that a rate changes only what it is the rate of
        shuffle, nonlinear, falls, paints, out_paints = self.R.random_sample(5).tolist()
        flips = self._draw_flips(len(img_size))
        control_points = draw_control_points(self.R)
        seed = draw_seed(self.R)
        out_painting = out_paints < self.rates["out_paint_prob"]
        boxes = None
        if paints < self.rates["paint_prob"]:
            boxes = (draw_out_painting_boxes if out_painting else draw_in_painting_boxes)(img_size, self.R)
        masked = None
        if self.rates["mask_prob"] > 0 and self.R.random_sample() < self.rates["mask_prob"]:
            masked = draw_masked_patches(img_size, self.R, self.mask_patch, self.mask_ratio)
        self.parameters = GenesisParameters(
            flips=flips,
            shuffle=shuffle < self.rates["shuffle_prob"],
            control_points=control_points if nonlinear < self.rates["nonlinear_prob"] else None,
            reverse=falls < self.reverse_prob,
            boxes=boxes,
            out_painting=out_painting,
            seed=seed,
            masked=masked,
        )

    def _draw_flips(self, axes: int) -> tuple[bool, ...]:
        """Draw which axes are reversed in the end; two flips of one axis undo each other."""
        allowed = tuple(range(axes)) if self.flip_axes is None else self.flip_axes
        if any(not 0 <= axis < axes for axis in allowed):
            raise ValueError(f"flip_axes: expected spatial axes in 0..{axes - 1}, found {allowed}")
        flips = [False] * axes
        for go_on, which in self.R.random_sample((self.max_flips, 2)).tolist():
            if go_on >= self.flip_prob or not allowed:
                break
            axis = allowed[math.floor(which * len(allowed))]
            flips[axis] = not flips[axis]
        return tuple(flips)

    def kinds(self, img_size: Sequence[int]) -> NdArray:
        """Tell what the last call did to each voxel, see :func:`voxel_kind_map`.

        Args:
            img_size: spatial shape of that image in voxels.

        Returns:
            Numbers of :data:`.voxel_kinds.VOXEL_KINDS`, uint8, shape (1, x[, y[, z]]).
        """
        if self.parameters is None:
            raise RuntimeError("please call the `randomize()` function first.")
        return voxel_kind_map(img_size, self.parameters, self.num_blocks, self.max_block_fraction, self.code_path)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Apply the transform.

        Args:
            img: channel-first image, shape (channels, x[, y[, z]]); all channels are deformed alike, but each has its
                own noise.
            randomize: whether to draw new parameters first.

        Returns:
            The deformed image and the target, both float32, of the input's kind. For a MetaTensor the affine follows
            the flips.
        """
        spatial = check_image_shape(img.shape)
        if randomize:
            self.randomize(spatial)
        if self.parameters is None:
            raise RuntimeError("please call the `randomize()` function first.")
        array, *_ = convert_data_type(img, np.ndarray)
        results = genesis_deform(
            array,
            self.parameters,
            self.num_blocks,
            self.max_block_fraction,
            self.intensity_range,
            self.output_range,
            self.code_path,
            self.mask_value,
        )
        deformed, target = (convert_to_dst_type(result, dst=img, dtype=np.float32)[0] for result in results)
        for result in (deformed, target):
            if isinstance(result, MetaTensor):
                _flip_affine(result, self.parameters.flips)
        return deformed, target


def _flip_affine(img: MetaTensor, flips: Sequence[bool]) -> None:
    """Let the affine of a flipped image give each voxel its old place in the world."""
    mirror = torch.eye(len(img.affine), dtype=img.affine.dtype, device=img.affine.device)
    for axis, (flip, size) in enumerate(zip(flips, img.shape[1:], strict=True)):
        if flip:
            mirror[axis, axis], mirror[axis, -1] = -1, size - 1
    img.affine = img.affine @ mirror


class RandGenesisDeformd(RandomizableTransform, MapTransform):
    """Dictionary twin of :class:`RandGenesisDeform`.

    The deformed image replaces the image, the target gets its own key. All keys share the parameters.

    Args:
        keys: keys of the images, all of one spatial shape.
        target_keys: keys of the targets, one for each image.
        kinds_key: key under which the item gets the map of :func:`voxel_kind_map`; None: no map.
        allow_missing_keys: whether a missing key is passed over.
        kwargs: see :class:`RandGenesisDeform`.

    Example:
        >>> deform = RandGenesisDeformd(keys="image").set_random_state(0)
        >>> sorted(deform({"image": np.zeros((1, 16, 16, 16), np.float32)}))
        ['image', 'label']
    """

    backend = RandGenesisDeform.backend

    def __init__(
        self,
        keys: KeysCollection,
        target_keys: KeysCollection = "label",
        *,
        kinds_key: str | None = None,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.target_keys = ensure_tuple_rep(target_keys, len(self.keys))
        if len(set(self.target_keys)) != len(self.keys):
            raise ValueError(f"target_keys: expected one key for each of {self.keys}, found {self.target_keys}")
        self.kinds_key = kinds_key
        self.deform = RandGenesisDeform(**kwargs)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandGenesisDeformd:
        """Set the random state of the transform, as in MONAI."""
        super().set_random_state(seed, state)
        self.deform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Apply the transform to each key."""
        d = dict(data)
        first = self.first_key(d)
        if first == ():
            return d
        shape = tuple(d[first].shape)
        self.deform.randomize(check_image_shape(shape))
        for key, target_key in self.key_iterator(d, self.target_keys):
            if tuple(d[key].shape[1:]) != shape[1:]:
                raise ValueError(f"{key}: expected the spatial shape of {first}, {shape[1:]}, found {d[key].shape[1:]}")
            d[key], d[target_key] = self.deform(d[key], randomize=False)
        if self.kinds_key is not None:
            d[self.kinds_key] = self.deform.kinds(shape[1:])
        return d
