# SPDX-License-Identifier: Apache-2.0
"""The building block of encoder and decoder: two convolutions, each with norm and activation."""

from __future__ import annotations

from monai.networks.layers.factories import Conv, split_args
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import Tensor, nn

from .batch_statistics_norm import BatchStatisticsNorm


def make_norm(norm: str | tuple, spatial_dims: int, channels: int, batch_statistics: bool) -> nn.Module:
    """Make a norm layer by MONAI's factory, or the one that always uses the batch's own statistics.

    Args:
        norm: MONAI's name of the layer, or a pair of name and arguments.
        spatial_dims: number of spatial axes.
        channels: channels to normalise.
        batch_statistics: make a :class:`BatchStatisticsNorm`; ``norm`` has to be batch norm then.

    Returns:
        The layer.

    Raises:
        ValueError: ``batch_statistics`` with another norm than batch norm.
    """
    if not batch_statistics:
        return get_norm_layer(norm, spatial_dims=spatial_dims, channels=channels)
    name, arguments = split_args(norm)
    if str(name).lower() != "batch":
        raise ValueError(f"batch_statistics=True needs norm='batch', found norm={norm!r}")
    return BatchStatisticsNorm(channels, **arguments)


class ConvolutionPair(nn.Module):
    """Two convolutions of width 3 with bias, norm and activation after each (arXiv:2004.07882, the 3D U-Net).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        mid_channels: channels between the two convolutions.
        out_channels: channels of the output.
        act: MONAI's name of the activation, or a pair of name and arguments.
        norm: MONAI's name of the norm, or a pair of name and arguments.
        batch_statistics: batch norm by the batch's own statistics in evaluation too.

    Shape:
        input (batch, in_channels, *spatial), output (batch, out_channels, *spatial).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.conv1 = convolution(in_channels, mid_channels, kernel_size=3, padding=1)
        self.norm1 = make_norm(norm, spatial_dims, mid_channels, batch_statistics)
        self.act1 = get_act_layer(act)
        self.conv2 = convolution(mid_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = make_norm(norm, spatial_dims, out_channels, batch_statistics)
        self.act2 = get_act_layer(act)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both convolutions; the spatial shape stays."""
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))
