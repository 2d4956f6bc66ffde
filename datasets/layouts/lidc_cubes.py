# SPDX-License-Identifier: Apache-2.0
"""Cubes around nodules, cut from a series or taken ready-made, written as NIfTI with their label maps."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from numpy.typing import NDArray

from ..io.atomic_write import atomic_write

VERSION = 1
"""Rises whenever the same readings give other cubes."""

CUBE_SIZE = (64, 64, 32)
"""Voxels along column, row and slice; the paper's (arXiv:2004.07882)."""

READY_AFFINE = np.array([[0.0, -1, 0, 25], [-1, 0, 0, 25], [0, 0, -1, 25], [0, 0, 0, 1]])
"""Affine of the ready cubes of 51 voxels of 1 mm: their axes point to the patient's back, left and feet (found by
laying the readers' contours of six of them over the masks); the origin is the cube's middle."""


@dataclass(frozen=True)
class CubeRules:
    """How cubes are cut.

    Attributes:
        size: voxels along column, row and slice.
        spacing: voxel sides, mm; ``None`` keeps those of the series.
    """

    size: tuple[int, int, int] = CUBE_SIZE
    spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 3 or min(self.size) < 2:
            raise ValueError(f"size: expected three sides of at least 2 voxels, found {self.size}.")
        if self.spacing is not None and (len(self.spacing) != 3 or min(self.spacing) <= 0):
            raise ValueError(f"spacing: expected three voxel sides above 0 mm, found {self.spacing}.")


@dataclass(frozen=True)
class Cube:
    """One cube.

    Attributes:
        image: HU, int16.
        label: 1 in the nodule, uint8.
        affine: (4, 4), voxels to mm in RAS.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def cube_bounds(
    voxels: NDArray[np.int64], shape: Sequence[int], spacing: Sequence[float], rules: CubeRules
) -> NDArray[np.float64]:
    """Place a cube around a nodule.

    Args:
        voxels: (N, 3), the nodule's voxels.
        shape: voxels of the series along each axis.
        spacing: voxel sides of the series, mm.
        rules: size and spacing of the cube.

    Returns:
        (2, 3), the first and the last voxel's place in voxels of the series; whole numbers at the series' own spacing.
        The middle is that of the box around the nodule, moved so that the cube stays inside the series where it fits.
    """
    size = np.array(rules.size)
    step = np.ones(3) if rules.spacing is None else np.array(rules.spacing) / np.asarray(spacing, float)
    middle = (voxels.min(0) + voxels.max(0)) / 2
    first = middle - (size - 1) * step / 2
    room = np.asarray(shape) - 1 - (size - 1) * step
    first = np.where(room >= 0, np.clip(first, 0, np.maximum(room, 0)), room / 2)
    if rules.spacing is None:
        first = np.ceil(first)
    return np.stack([first, first + (size - 1) * step])


def share_in_cube(voxels: NDArray[np.int64], bounds: NDArray[np.float64]) -> float:
    """Tell which share of a nodule's voxels lies in a cube placed by :func:`cube_bounds`."""
    return float(((voxels >= bounds[0] - 0.5) & (voxels <= bounds[1] + 0.5)).all(1).mean())


def cut_series_cube(
    read: Callable[[int, int], NDArray],
    affine: NDArray[np.float64],
    voxels: NDArray[np.int64],
    bounds: NDArray[np.float64],
    rules: CubeRules,
) -> Cube:
    """Read the slices that a cube needs and cut it out.

    Beyond the series the outermost voxels repeat, and the label is 0. At another spacing the image is interpolated
    linearly and rounded to whole HU; the label likewise, 1 from a half on.

    Args:
        read: gives the voxels of the slices from a first to before a last, (columns, rows, slices).
        affine: (4, 4), voxels of the series to mm in RAS.
        voxels: (N, 3), the nodule's voxels.
        bounds: see :func:`cube_bounds`.
        rules: size and spacing of the cube.

    Returns:
        The cube.
    """
    lowest = max(int(np.floor(bounds[0, 2])) - 1, 0)
    slab = read(lowest, int(np.ceil(bounds[1, 2])) + 2)
    label = np.zeros(slab.shape, dtype=np.uint8)
    shifted = voxels - [0, 0, lowest]
    seen = (shifted[:, 2] >= 0) & (shifted[:, 2] < slab.shape[2])
    label[tuple(shifted[seen].T)] = 1
    start = bounds[0] - [0, 0, lowest]
    to_cube = affine.copy()
    step = (bounds[1] - bounds[0]) / (np.array(rules.size) - 1)
    to_cube[:3, 3] = affine[:3, :3] @ bounds[0] + affine[:3, 3]
    to_cube[:3, :3] = affine[:3, :3] * step
    if rules.spacing is None:
        image_cube, label_cube = _crop(slab, label, start.astype(int), rules.size)
    else:
        image_cube, label_cube = _resample(slab, label, start, step, rules.size)
    info = np.iinfo(np.int16)
    return Cube(
        np.clip(np.rint(image_cube), info.min, info.max).astype(np.int16),
        label_cube.astype(np.uint8),
        to_cube,
    )


def _crop(image: NDArray, label: NDArray, start: NDArray, size: Sequence[int]) -> tuple[NDArray, NDArray]:
    index = [np.arange(first, first + side) for first, side in zip(start, size, strict=True)]
    near = np.ix_(*(np.clip(each, 0, side - 1) for each, side in zip(index, image.shape, strict=True)))
    x, y, z = ((each >= 0) & (each < side) for each, side in zip(index, image.shape, strict=True))
    return image[near], np.where(x[:, None, None] & y[:, None] & z, label[near], 0)


def _resample(
    image: NDArray, label: NDArray, start: NDArray, step: NDArray, size: Sequence[int]
) -> tuple[NDArray, NDArray]:
    target = torch.diag(torch.tensor([*step, 1.0], dtype=torch.float64))
    target[:3, 3] = torch.as_tensor(start)
    # only what the cube covers is resampled, so that a slab of whole slices costs no more
    low = np.maximum(np.floor(start) - 1, 0).astype(int)
    high = np.ceil(start + step * (np.array(size) - 1)).astype(int) + 2
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    origin = torch.eye(4, dtype=torch.float64)
    origin[:3, 3] = torch.as_tensor(low)
    resample = SpatialResample(mode="bilinear", dtype=np.float64)
    cubes = []
    for array, padding in ((image, "border"), (label, "zeros")):
        tensor = MetaTensor(np.ascontiguousarray(array[part], dtype=np.float64)[None], affine=origin)
        cubes.append(resample(tensor, dst_affine=target, spatial_size=tuple(size), padding_mode=padding).numpy()[0])
    return cubes[0], cubes[1] >= 0.5


def cube_mark(*parts: object) -> str:
    """Make the mark that a cube's file carries in its header, from all that decides its content.

    Example:
        >>> len(cube_mark("1.2.3", (64, 64, 32))) < 80
        True
    """
    digest = hashlib.sha256()
    for part in (VERSION, *parts):
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return f"models-genesis cube {digest.hexdigest()[:32]}"


def has_mark(path: Path, mark: str) -> bool:
    """Say whether a file is there and carries a mark."""
    try:
        header: Any = nib.load(path).header
    except (OSError, nib.filebasedimages.ImageFileError):
        return False
    return bytes(header["descrip"].tobytes()).rstrip(b"\0") == mark.encode()


def write_cube(root: Path, image: str, label: str, cube: Cube, mark: str) -> None:
    """Write a cube's two files, each whole or not at all; the label comes first, so an image has its label.

    Args:
        root: folder that the paths start from.
        image: path of the image.
        label: path of the label map.
        cube: the cube.
        mark: see :func:`cube_mark`.
    """
    for path, array in ((label, cube.label), (image, cube.image)):
        picture = nib.Nifti1Image(array, cube.affine)
        picture.header.set_xyzt_units("mm")
        picture.header["descrip"] = mark
        with atomic_write(root / path) as file:
            file.write(gzip.compress(picture.to_bytes(), mtime=0))
