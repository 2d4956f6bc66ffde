# SPDX-License-Identifier: Apache-2.0
"""The encoder that pretraining is for; the U-Net and the classifier share it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from .activation_checkpointing import checkpointed
from .convolution_pair import ConvolutionPair


def check_architecture(spatial_dims: int, features: Sequence[int]) -> tuple[int, ...]:
    """Check what every Genesis network is made from.

    Args:
        spatial_dims: 2 or 3.
        features: channels at the end of each level, two levels at least, the first with two channels at least.

    Returns:
        ``features`` as a tuple of ints.

    Raises:
        ValueError: another number of axes, too few levels, or too few channels.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims}")
    channels = tuple(int(f) for f in features)
    if len(channels) < 2:
        raise ValueError(f"features must name the channels of at least two levels, found {channels}")
    if channels[0] < 2 or min(channels) < 1:  # the first convolution has half of features[0] channels
        raise ValueError(f"features must be positive and features[0] at least 2, found {channels}")
    return channels


class GenesisEncoder(nn.Module):
    """The contracting path of the 3D U-Net of Models Genesis (arXiv:2004.07882, section 3).

    Level 0 has convolutions ``in_channels -> features[0] // 2 -> features[0]``, each level below
    ``features[l - 1] -> features[l - 1] -> features[l]``; a max-pool of width 2 lies between levels. The default in 3D
    has 7,027,776 parameters. The weights start as PyTorch's default (Kaiming uniform with a = sqrt(5)).

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        features: channels at the end of each level, at least two levels.
        act: MONAI's name of the activation, or a pair of name and arguments.
        norm: MONAI's name of the norm, or a pair of name and arguments.
        batch_statistics: batch norm by the batch's own statistics in evaluation too, see :class:`GenesisUNet`.
        use_checkpointing: compute activations again in backward instead of keeping them, level by level.

    Shape:
        input (batch, in_channels, *spatial), each side at least ``2 ** (levels - 1)``; output: a list of one tensor a
        level, (batch, features[l], *(side // 2 ** l)); the last is the bottleneck.

    Raises:
        ValueError: ``spatial_dims`` or ``features`` out of range, ``batch_statistics`` with another norm than batch.

    Example:
        >>> import torch
        >>> encoder = GenesisEncoder(features=(4, 8, 16))
        >>> [tuple(level.shape) for level in encoder(torch.zeros(1, 1, 16, 16, 8))]
        [(1, 4, 16, 16, 8), (1, 8, 8, 8, 4), (1, 16, 4, 4, 2)]
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        batch_statistics: bool = False,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels = check_architecture(spatial_dims, features)
        self.use_checkpointing = use_checkpointing
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2)
        self.levels = nn.ModuleList()
        for level, out in enumerate(channels):
            before, mid = (in_channels, out // 2) if level == 0 else (channels[level - 1], channels[level - 1])
            self.levels.append(ConvolutionPair(spatial_dims, before, mid, out, act, norm, batch_statistics))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Give the features of all levels, full resolution first, the bottleneck last."""
        outputs: list[Tensor] = []
        for index, level in enumerate(self.levels):
            if index > 0:
                x = self.pool(x)  # (B, features[index - 1], *sides / 2 ** index)
            if torch.jit.is_scripting():
                x = level(x)  # (B, features[index], *sides / 2 ** index)
            else:
                x = checkpointed(level, x) if self.use_checkpointing else level(x)
            outputs.append(x)
        return outputs
