# SPDX-License-Identifier: Apache-2.0
"""Non-linear intensity maps of a whole batch, a Bezier curve for each sample (arXiv:2004.07882, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["batch_bezier_nodes", "interpolate"]


def batch_bezier_nodes(points: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes of the curves of :func:`.nonlinear_intensity.bezier_curve`, placed by the same rule.

    Args:
        points: inner control points (B, 2, 2): point, then x and y, in the unit square; float64.
        num_nodes: number of nodes; interpolating between them is off by less than ``25 / num_nodes**2``.

    Returns:
        x and y of the nodes, (B, num_nodes) each, ascending from 0 to 1.

    Example:
        >>> x, y = batch_bezier_nodes(torch.tensor([[[0.2, 0.2], [0.7, 0.7]]], dtype=torch.float64), 100)
        >>> torch.allclose(x, y)
        True
    """
    x1, x2, y1, y2 = (points[:, i, axis, None] for axis in (0, 1) for i in (0, 1))
    t = _node_parameters(x1, x2, num_nodes)
    last = torch.arange(num_nodes, device=t.device) == num_nodes - 1
    # rounding must not make the curve turn back
    x, y = (
        _cubic(first, second, t).clamp_max(1).cummax(dim=1).values.masked_fill(last, 1.0)
        for first, second in ((x1, x2), (y1, y2))
    )
    return x, y


def _cubic(first: Tensor, second: Tensor, t: Tensor) -> Tensor:
    """One coordinate of the curves with ends 0 and 1 at the parameters t."""
    return (((1 + 3 * (first - second)) * t + 3 * (second - 2 * first)) * t + 3 * first) * t


def _node_parameters(x1: Tensor, x2: Tensor, num_nodes: int) -> Tensor:
    """Parameters dense at both ends and where x(t) is slowest; the derivation is at the function of one curve."""
    cube, square = 1 + 3 * (x1 - x2), 3 * (x2 - 2 * x1)
    # masked_fill throughout: torch.where would copy its number to the device
    split = -square / (3 * cube)
    split = split.masked_fill(~((cube > 0) & (split > 0) & (split < 1)), 0.0)
    share = split.sqrt() / (split.sqrt() + (1 - split).sqrt())
    left = (num_nodes * share).round().clamp(2, num_nodes - 2).masked_fill(split == 0, 0.0)
    number = torch.arange(num_nodes, device=x1.device)
    u = number / left.clamp_min(1)
    v = (number - left) / (num_nodes - 1 - left)
    return torch.where(number < left, split * u * u * (3 - 2 * u), split + (1 - split) * v * v * (3 - 2 * v))


def interpolate(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate linearly between nodes, as ``numpy.interp`` does, each row between its own.

    Args:
        values: (B, N) within the nodes.
        x: ascending nodes (B, M), of the values' type.
        y: their images.

    Returns:
        The images of the values, (B, N).

    Example:
        >>> interpolate(torch.tensor([[0.25]]), torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[0.0, 0.2, 1.0]]))
        tensor([[0.1000]])
    """
    right = torch.searchsorted(x, values.contiguous(), right=True).clamp_(1, x.shape[1] - 1)
    x1, y1 = x.gather(1, right), y.gather(1, right)
    right -= 1
    x0, y0 = x.gather(1, right), y.gather(1, right)
    width = x1 - x0
    share = ((values - x0) / width).masked_fill_(width == 0, 1.0).clamp_(0, 1)
    return y0 + share * (y1 - y0)
