# SPDX-License-Identifier: Apache-2.0
"""The expanding path of the U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from .activation_checkpointing import checkpointed
from .convolution_pair import ConvolutionPair


class DecoderLevel(nn.Module):
    """One step up: transposed convolution of width and stride 2, the skip connection concatenated, two convolutions.

    Args:
        spatial_dims: 2 or 3.
        below_channels: channels that come from the level below; the transposed convolution keeps their number.
        skip_channels: channels of the encoder's level, and of the output.
        act: MONAI's name of the activation, or a pair of name and arguments.
        norm: MONAI's name of the norm, or a pair of name and arguments.
        batch_statistics: batch norm by the batch's own statistics in evaluation too.

    Shape:
        x (batch, below_channels, *spatial), skip (batch, skip_channels, *(2 * spatial)); output as skip.
    """

    def __init__(
        self,
        spatial_dims: int,
        below_channels: int,
        skip_channels: int,
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        both = below_channels + skip_channels
        upsample = Conv[Conv.CONVTRANS, spatial_dims]
        self.upsample = upsample(below_channels, below_channels, kernel_size=2, stride=2)
        self.merge = ConvolutionPair(spatial_dims, both, skip_channels, skip_channels, act, norm, batch_statistics)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Bring ``x`` to the resolution of ``skip`` and merge the two."""
        x = torch.cat([self.upsample(x), skip], dim=1)  # (B, below + skip, *sides), the order of the original
        return self.merge(x)  # (B, skip, *sides)


class GenesisDecoder(nn.Module):
    """The expanding path: ``levels[l]`` brings features back to the resolution of the encoder's level ``l``.

    Args:
        spatial_dims: 2 or 3.
        features: channels at the end of each encoder level, at least two levels.
        act: MONAI's name of the activation, or a pair of name and arguments.
        norm: MONAI's name of the norm, or a pair of name and arguments.
        batch_statistics: batch norm by the batch's own statistics in evaluation too.
        use_checkpointing: compute activations again in backward instead of keeping them, level by level.

    Shape:
        input: the encoder's list; output (batch, features[0], *spatial) at full resolution.
    """

    def __init__(
        self,
        spatial_dims: int,
        features: Sequence[int],
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        batch_statistics: bool = False,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpointing = use_checkpointing
        self.levels = nn.ModuleDict()  # keys are levels of resolution, in the order in which they run
        for level in reversed(range(len(features) - 1)):
            below, skip = features[level + 1], features[level]
            self.levels[str(level)] = DecoderLevel(spatial_dims, below, skip, act, norm, batch_statistics)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Go from the bottleneck, the last of ``features``, up to full resolution."""
        x = features[-1]
        for index, level in enumerate(self.levels.values()):
            skip = features[-2 - index]
            if torch.jit.is_scripting():
                x = level(x, skip)  # as skip
            else:
                x = checkpointed(level, x, skip) if self.use_checkpointing else level(x, skip)
        return x
