# SPDX-License-Identifier: Apache-2.0
"""Weights of three dimensions in a network of two: the centre slice of each kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["DimensionsError", "KernelSlices", "centre_slice", "kernel_axes", "slice_kernels"]


class DimensionsError(ValueError):
    """Weights of a network of two dimensions for one of three, or the other way round."""


def centre_slice(kernel: Tensor, axis: int) -> Tensor:
    """Take the middle of a kernel along one axis.

    A convolution whose kernel is zero outside of its centre slice along an axis is the convolution by that slice, of
    each slice of the image across the axis by itself, exactly: with odd sides a zero padding of half a side keeps each
    slice in its place. Of any other kernel the centre slice is what the convolution answers to a single slice in a
    scan of zeros.

    Args:
        kernel: (channels, channels, *three sides), of an ordinary or a transposed convolution.
        axis: the axis to be dropped, 0, 1 or 2.

    Returns:
        A copy of the slice, (channels, channels, *two sides).

    Raises:
        ValueError: when the side is even, for then there is no centre.

    Example:
        >>> import torch
        >>> centre_slice(torch.arange(3.0).reshape(1, 1, 1, 1, 3), axis=2).flatten().tolist()
        [1.0]
    """
    side = kernel.shape[axis + 2]
    if side % 2 == 0:
        raise ValueError(
            f"a kernel of {' x '.join(map(str, kernel.shape[2:]))} has no centre slice along axis {axis}: expected an "
            f"odd side, found {side}"
        )
    return kernel.select(axis + 2, side // 2).clone()


@dataclass(frozen=True)
class KernelSlices:
    """What :func:`slice_kernels` gives.

    Args:
        tensors: the tensors of the file, kernels by their centre slice where the network wants that.
        sliced: by name of a kernel that was sliced, how.
        refused: by name of a kernel that cannot be sliced, why.
    """

    tensors: dict[str, Tensor]
    sliced: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def slice_kernels(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], axis: int) -> KernelSlices:
    """Slice the kernels of three axes for which a network has one of two.

    Args:
        found: tensors of a file by name.
        wanted: tensors of the network by name.
        axis: the axis to be dropped, 0, 1 or 2: the one that the network's slices stand across.

    Returns:
        The tensors, and what was done with each kernel.

    Raises:
        ValueError: for another axis, or where no kernel of the file has an axis more than the network's.
    """
    if axis not in (0, 1, 2):
        raise ValueError(f"kernel_slice_axis: expected 0, 1, 2 or None, found {axis!r}")
    result = KernelSlices(dict(found))
    for name in needs_slicing(found, wanted):
        shape = " x ".join(map(str, found[name].shape[2:]))
        try:
            result.tensors[name] = centre_slice(found[name], axis)
            result.sliced[name] = f"centre slice of {shape} along axis {axis}"
        except ValueError as error:
            result.refused[name] = str(error)
    if not result.sliced and not result.refused:
        raise ValueError(
            f"kernel_slice_axis: expected kernels of three axes for a network of two, found none; leave it out to load "
            f"weights of the network's own dimensions, found kernels of {_describe_axes(found)} axes "
            f"for {_describe_axes(wanted)}"
        )
    return result


def needs_slicing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """List the kernels of three axes for which a network has one of two.

    Args:
        found: tensors of a file by name.
        wanted: tensors of the network by name.

    Returns:
        Their names.
    """
    return [name for name, kernel in found.items() if kernel.ndim == 5 and name in wanted and wanted[name].ndim == 4]


def kernel_axes(tensors: Mapping[str, Tensor]) -> list[int]:
    """List how many spatial axes the kernels have, of convolutions the dimensions of the network.

    Args:
        tensors: tensors by name.

    Returns:
        The numbers that occur, ascending.

    Example:
        >>> import torch
        >>> kernel_axes({"conv.weight": torch.zeros(4, 1, 3, 3), "conv.bias": torch.zeros(4)})
        [2]
    """
    return sorted({tensor.ndim - 2 for tensor in tensors.values() if tensor.ndim > 2})


def _describe_axes(tensors: Mapping[str, Tensor]) -> str:
    return " and ".join(map(str, kernel_axes(tensors))) or "no"
