# SPDX-License-Identifier: Apache-2.0
"""Where a pretraining cube may start: the tissue rule of Models Genesis, scored for every window of a scan at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, convert_data_type, ensure_tuple_rep

from .cube_sampling import window_size

logger = logging.getLogger(__name__)

Border = Literal["proportional", "paper"] | Sequence[tuple[int, int]] | int | None
Bounds = list[tuple[int, int]]
Planes = Callable[[int], np.ndarray]

PAPER_BORDER = ((100, 101), (100, 101), (30, 34))
"""Voxels kept free before and behind a cube in the paper: x, y in [100, size - 64 - 101], z in [30, size - 66]."""

PROPORTIONAL_BORDER = (0.22, 0.22, 0.14)
"""Share of an axis' possible starts left out at either end; near the paper's border for a 512 x 512 x 250 chest CT."""


def window_bounds(spatial_shape: Sequence[int], cube_size: Sequence[int] | int, border: Border = None) -> Bounds:
    """First and last start of a cube along each axis, both included.

    Args:
        spatial_shape: size of the scan in voxels.
        cube_size: size of the cube in voxels.
        border: voxels kept free on both sides of the cube. ``"paper"`` is :data:`PAPER_BORDER`, made for chest CTs of
            512 x 512 voxels and at least 96 slices; a smaller scan has no start then. ``"proportional"`` leaves out
            :data:`PROPORTIONAL_BORDER` of the possible starts at either end of an axis, so that it keeps to the middle
            of the body at any voxel size and always leaves a start. A number or ``(before, behind)`` for each axis are
            voxels. ``None`` leaves out nothing.

    Returns:
        ``(first, last)`` for each axis; an axis without a start has ``last < first``.

    Raises:
        ValueError: When ``border`` is negative, of another length, or an unknown name.

    Example:
        >>> window_bounds((512, 512, 133), (64, 64, 32), "paper")
        [(100, 347), (100, 347), (30, 67)]
        >>> window_bounds((200, 157, 138), (64, 64, 32), "proportional")
        [(29, 107), (20, 73), (14, 92)]
    """
    spatial_dims = len(spatial_shape)
    spare = [size - cube for size, cube in zip(spatial_shape, ensure_tuple_rep(cube_size, spatial_dims), strict=True)]
    pairs: Sequence[tuple[int, int]]
    if border is None:
        pairs = [(0, 0)] * spatial_dims
    elif border == "proportional":
        margins = [int(share * max(axis, 0)) for share, axis in zip(PROPORTIONAL_BORDER, spare, strict=False)]
        pairs = [(margin, margin) for margin in margins]
    elif border == "paper":
        pairs = PAPER_BORDER
    elif isinstance(border, int):
        pairs = [(border, border)] * spatial_dims
    elif isinstance(border, str):
        raise ValueError(f"border must be 'proportional', 'paper', voxels or None, got {border!r}.")
    else:
        pairs = [(int(before), int(behind)) for before, behind in border]
    if len(pairs) != spatial_dims or any(side < 0 for pair in pairs for side in pair):
        raise ValueError(f"border needs {spatial_dims} pairs of voxels, none negative, got {border!r}.")
    return [(before, axis - behind) for (before, behind), axis in zip(pairs, spare, strict=True)]


def _tissue_planes(volume: np.ndarray, threshold: float, bounds: Bounds, cube: tuple[int, ...]) -> Planes:
    """Make a function of ``x``: twice the voxel score, summed over the ``y``-``z`` face of each window, ``(y, z)``."""
    (_, _), (y_first, y_last), (z_first, z_last) = bounds
    y_end, z_end = y_last + cube[1], z_last + cube[2]
    sums = np.zeros((y_end - y_first + 1, z_end - z_first + 1), dtype=np.int32)

    def face_sums(x: int) -> np.ndarray:
        tissue = volume[x, y_first:y_end, z_first : z_end + 1] >= threshold
        # twice 1 - k / 2 is 2 where the slice itself is tissue (k = 0), 1 where only the next is (k = 1), else 0;
        # behind the last slice there is none
        doubled = 2 * tissue[:, : z_end - z_first].view(np.uint8)
        following = tissue[:, 1:].view(np.uint8)
        np.maximum(doubled[:, : following.shape[1]], following, out=doubled[:, : following.shape[1]])
        np.cumsum(doubled, axis=1, out=sums[1:, 1:])
        along_z = sums[:, cube[2] :] - sums[:, : -cube[2]]
        np.cumsum(along_z, axis=0, out=along_z)
        return along_z[cube[1] :] - along_z[: -cube[1]]

    return face_sums


def _sweep(
    image: NdarrayOrTensor, cube_size: Sequence[int] | int, threshold: float, border: Border, channel: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``x`` and the scores of the windows that start there, ``(y, z)``, plane by plane."""
    volume = _as_numpy(image)[channel]
    if volume.ndim != 3:
        raise ValueError(
            f"the tissue rule looks along slices: expected (C, X, Y, Z), found shape {tuple(image.shape)}."
        )
    cube = ensure_tuple_rep(cube_size, 3)
    bounds = window_bounds(volume.shape, cube, border)
    if any(last < first for first, last in bounds):
        return
    x_first, x_last = bounds[0]
    face_sums = _tissue_planes(volume, threshold, bounds, cube)
    ring = np.stack([face_sums(x) for x in range(x_first, x_first + cube[0])])
    total = ring.sum(axis=0, dtype=np.int32)
    scale = 2 * int(np.prod(cube))
    for x in range(x_first, x_last + 1):
        yield x, total / scale
        if x < x_last:
            oldest = ring[(x - x_first) % cube[0]]
            newest = face_sums(x + cube[0])
            total += newest - oldest
            oldest[...] = newest


def tissue_window_scores(
    image: NdarrayOrTensor,
    cube_size: Sequence[int] | int,
    threshold: float = -150.0,
    border: Border = None,
    channel: int = 0,
) -> np.ndarray:
    """Score every window of a scan: 0 is air or lung only, 1 is soft tissue only (arXiv:2004.07882, cube sampling).

    A voxel scores ``1 - k / 2`` with ``k`` the index of the first of three consecutive slices (its own and the next two
    along the last axis) whose value reaches the threshold, and ``k = 2`` if none does; a window scores the mean of its
    voxels. All windows come from running box sums. Slices behind the end of the scan count as air.

    Args:
        image: scan of shape ``(C, X, Y, Z)``, CT in HU.
        cube_size: window size in voxels.
        threshold: value from which on a voxel is tissue, in the scan's units (HU).
        border: see :func:`window_bounds`.
        channel: the channel that the rule looks at.

    Returns:
        Scores in [0, 1], one for each start inside the border, float64.

    Raises:
        ValueError: When the image has not three spatial dimensions or the border does not fit them.

    Example:
        >>> scan = np.full((1, 4, 4, 4), -1000, dtype=np.int16)
        >>> scan[..., 2] = 40
        >>> tissue_window_scores(scan, (4, 4, 1))[0, 0]
        array([0. , 0.5, 1. , 0. ])
    """
    bounds = window_bounds(tuple(image.shape[1:]), cube_size, border)
    planes = [plane for _, plane in _sweep(image, cube_size, threshold, border, channel)]
    if not planes:
        return np.zeros([max(last - first + 1, 0) for first, last in bounds])
    return np.stack(planes)


def admissible_starts(
    image: NdarrayOrTensor,
    cube_size: Sequence[int] | int,
    threshold: float | None = -150.0,
    score_range: tuple[float, float] = (0.0, 0.15),
    border: Border = "proportional",
    channel: int = 0,
) -> np.ndarray:
    """List every start whose window keeps the border and the tissue rule (arXiv:2004.07882, cube sampling).

    Args:
        image: scan of shape ``(C, X, Y, Z)``; any number of spatial dimensions where the rule is off.
        cube_size: cube size in voxels.
        threshold: value from which on a voxel is tissue, in the scan's units (HU); ``None`` switches the rule off and
            leaves the border alone to decide, as for MR.
        score_range: lowest and highest score of a window, both included, see :func:`tissue_window_scores`. The paper
            takes up to 0.15; a lowest score above 0 keeps windows of nothing but air out.
        border: see :func:`window_bounds`.
        channel: the channel that the rule looks at.

    Returns:
        Sorted flat indices of the starts, ``numpy.ravel_multi_index(start, image.shape[1:])``, as int32 (int64 for
        scans of 2**31 voxels and more); empty where no window is admissible.

    Raises:
        ValueError: When the scan is smaller than the cube or has not three spatial dimensions.

    Example:
        >>> scan = np.full((1, 4, 4, 3), -1000, dtype=np.int16)
        >>> admissible_starts(scan, (4, 4, 2), border=None)
        array([0, 1], dtype=int32)
    """
    spatial_shape = tuple(int(size) for size in image.shape[1:])
    cube = ensure_tuple_rep(cube_size, len(spatial_shape))
    if any(size < side for size, side in zip(spatial_shape, cube, strict=True)):
        raise ValueError(f"expected a scan of at least the cube's size {cube}, found {spatial_shape} voxels.")
    dtype: type[np.signedinteger] = np.int32 if np.prod(spatial_shape, dtype=np.int64) < 2**31 else np.int64
    bounds = window_bounds(spatial_shape, cube, border)
    if any(last < first for first, last in bounds):
        return np.empty(0, dtype=dtype)
    axes = [np.arange(first, last + 1) for first, last in bounds]
    # starts within one plane of the first axis; x is added plane by plane, so no index of the whole scan is built
    plane_indices = np.ravel_multi_index(np.ix_(axes[0][:1] * 0, *axes[1:]), spatial_shape)[0].astype(dtype)
    plane_size = int(np.prod(spatial_shape[1:], dtype=np.int64))
    if threshold is None:
        return (axes[0].astype(dtype)[:, None] * plane_size + plane_indices.ravel()).ravel()
    lowest, highest = score_range
    return np.concatenate(
        [
            plane_indices[(scores >= lowest) & (scores <= highest)] + x * plane_size
            for x, scores in _sweep(image, cube, threshold, border, channel)
        ]
    )


def lowest_starts(
    image: NdarrayOrTensor,
    cube_size: Sequence[int] | int,
    share: float = 0.05,
    threshold: float = -150.0,
    border: Border = "proportional",
    channel: int = 0,
) -> np.ndarray:
    """List the starts of the windows with the lowest tissue scores of a scan, the airiest ones that it has.

    The paper's limit of 0.15 is made for voxels of 0.7 mm: at 2 mm a 64 x 64 x 32 cube is wider than a lung, and no
    window inside a chest meets it.

    Args:
        image: scan of shape ``(C, X, Y, Z)``, CT in HU.
        cube_size: cube size in voxels.
        share: share of the windows inside the border to take, in (0, 1]; at least one is taken.
        threshold: value from which on a voxel is tissue, in the scan's units (HU).
        border: see :func:`window_bounds`.
        channel: the channel that the rule looks at.

    Returns:
        Sorted flat indices as from :func:`admissible_starts`; empty where the border leaves no start.

    Raises:
        ValueError: When the scan is smaller than the cube or has not three spatial dimensions.

    Example:
        >>> scan = np.full((1, 4, 4, 3), 40, dtype=np.int16)
        >>> scan[..., 0] = -1000
        >>> lowest_starts(scan, (4, 4, 1), share=0.3, border=None)
        array([0], dtype=int32)
    """
    starts = admissible_starts(image, cube_size, None, border=border)
    if len(starts) == 0:
        return starts
    scores = np.concatenate([s.ravel() for _, s in _sweep(image, cube_size, threshold, border, channel)])
    number = max(int(share * len(scores)), 1)
    return starts[np.sort(np.argpartition(scores, number - 1)[:number])]


class TissueWindows(Transform):
    """Array form of :func:`admissible_starts`: a scan goes in, its admissible starts come out.

    Args:
        cube_size: cube size in voxels.
        threshold: value from which on a voxel is tissue, in the scan's units (HU); ``None`` switches the rule off.
        score_range: lowest and highest score of a window, both included.
        border: see :func:`window_bounds`.
        channel: the channel that the rule looks at.
        on_empty: what happens where no window is admissible: ``"raise"`` an error, ``"warn"`` and return no start, or
            ``"lowest"``: warn and return the ``lowest_share`` of the windows with the lowest scores.
        lowest_share: see :func:`lowest_starts`.
        slice_axis: axis that slices stand across, see :func:`~models_genesis.transforms.window_size`: the window is one
            voxel thick along it, and its score the mean over a slice. ``None`` for cubes.

    Raises:
        ValueError: When an argument is out of range.
    """

    def __init__(
        self,
        cube_size: Sequence[int] | int,
        threshold: float | None = -150.0,
        score_range: tuple[float, float] = (0.0, 0.15),
        border: Border = "proportional",
        channel: int = 0,
        on_empty: Literal["raise", "warn", "lowest"] = "raise",
        lowest_share: float = 0.05,
        slice_axis: int | None = None,
    ) -> None:
        lowest, highest = score_range
        if not 0 <= lowest <= highest <= 1:
            raise ValueError(f"score_range must be 0 <= lowest <= highest <= 1, got {score_range}.")
        if on_empty not in ("raise", "warn", "lowest"):
            raise ValueError(f"on_empty must be 'raise', 'warn' or 'lowest', got {on_empty!r}.")
        if not 0 < lowest_share <= 1:
            raise ValueError(f"lowest_share must lie in (0, 1], got {lowest_share}.")
        # what is cached names the window by its size alone, so scans that were prepared for cubes stay valid
        self.cube_size = window_size(cube_size, slice_axis)
        self.threshold = threshold
        self.score_range = (float(lowest), float(highest))
        self.border = border
        self.channel = channel
        self.on_empty = on_empty
        self.lowest_share = lowest_share

    def __call__(self, img: NdarrayOrTensor) -> np.ndarray:
        """Find the admissible starts of a scan.

        Args:
            img: scan of shape ``(C, X, Y, Z)``; of a MetaTensor, messages name the file.

        Returns:
            Flat start indices, see :func:`admissible_starts`.

        Raises:
            ValueError: When the scan is smaller than the cube, or, with ``on_empty="raise"``, without a start.
        """
        name = img.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "scan") if isinstance(img, MetaTensor) else "scan"
        try:
            starts = admissible_starts(img, self.cube_size, self.threshold, self.score_range, self.border, self.channel)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if len(starts) == 0:
            message = (
                f"{name}: no admissible cube of {self.cube_size} voxels in {tuple(img.shape[1:])} voxels"
                f" (score {self.score_range}, threshold {self.threshold}, border {self.border!r})"
            )
            if self.on_empty == "raise":
                raise ValueError(f"{message}.")
            if self.on_empty == "lowest" and self.threshold is not None:
                starts = lowest_starts(
                    img, self.cube_size, self.lowest_share, self.threshold, self.border, self.channel
                )
                logger.warning("%s; %d windows with the lowest scores are taken instead.", message, len(starts))
            else:
                logger.warning("%s; no cube is drawn from it.", message)
        return starts


class TissueWindowsd(MapTransform):
    """Dictionary form of :class:`TissueWindows`: adds the scan's admissible starts to the item, once per scan.

    Args:
        keys: the one key of the scan that the rule looks at.
        cube_size: cube size in voxels.
        starts_key: key under which the starts are added.
        threshold: value from which on a voxel is tissue, in the scan's units (HU); ``None`` switches the rule off.
        score_range: lowest and highest score of a window, both included.
        border: see :func:`window_bounds`.
        channel: the channel that the rule looks at.
        on_empty: what happens where no window is admissible: ``"raise"`` an error, ``"warn"`` and add no start, or
            ``"lowest"``: warn and add the ``lowest_share`` of the windows with the lowest scores.
        lowest_share: see :func:`lowest_starts`.
        slice_axis: see :class:`TissueWindows`.

    Raises:
        ValueError: When an argument is out of range or ``keys`` holds not exactly one key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        cube_size: Sequence[int] | int,
        starts_key: str = "starts",
        threshold: float | None = -150.0,
        score_range: tuple[float, float] = (0.0, 0.15),
        border: Border = "proportional",
        channel: int = 0,
        on_empty: Literal["raise", "warn", "lowest"] = "raise",
        lowest_share: float = 0.05,
        slice_axis: int | None = None,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys must hold one key, the scan that the tissue rule looks at, got {self.keys}.")
        self.starts_key = starts_key
        self.windows = TissueWindows(
            cube_size,
            threshold=threshold,
            score_range=score_range,
            border=border,
            channel=channel,
            on_empty=on_empty,
            lowest_share=lowest_share,
            slice_axis=slice_axis,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the item with the starts added."""
        return {**data, self.starts_key: self.windows(data[self.first_key(dict(data))])}


def _as_numpy(image: NdarrayOrTensor) -> np.ndarray:
    """View an array or tensor as numpy."""
    return convert_data_type(image, np.ndarray)[0]
