# SPDX-License-Identifier: Apache-2.0
"""The U-Net of Models Genesis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from .bundle_load import refuse_partial_load
from .genesis_decoder import GenesisDecoder
from .genesis_encoder import GenesisEncoder, check_architecture
from .hub import PretrainedMixin
from .weight_container import refuse_non_finite
from .weight_names import accept_prefixes


def check_divisible(sides: list[int], divisor: int) -> None:
    """Refuse an image whose sides the poolings cannot halve evenly.

    Args:
        sides: spatial shape in voxels.
        divisor: what each side must be a multiple of.

    Raises:
        ValueError: a side is no multiple; the message says what to pad to.

    Example:
        >>> check_divisible([60, 64, 32], 8)
        Traceback (most recent call last):
            ...
        ValueError: every spatial side must be divisible by 8, found [60, 64, 32]: pad the image to [64, 64, 32]
    """
    padded: list[int] = []
    fits = True
    for side in sides:
        padded.append((side + divisor - 1) // divisor * divisor)
        if side % divisor != 0:
            fits = False
    if not fits:
        raise ValueError(f"every spatial side must be divisible by {divisor}, found {sides}: pad the image to {padded}")


class GenesisUNet(nn.Module, PretrainedMixin):
    """The encoder-decoder of Models Genesis, 3D or 2D (arXiv:2004.07882, section 3).

    The layers are the original's: per level two convolutions of width 3 with bias, norm and activation; max-pool 2
    between levels; up again by transposed convolutions that keep the channels, the encoder's features concatenated; a
    convolution of width 1 at the end. The default has 19,073,665 parameters, 7,027,776 of them in the encoder. Two
    things differ from the original: the output is logits (it has a sigmoid at the end), and batch norm uses
    its running statistics in evaluation. ``batch_statistics=True`` gives the original's way, where a sample's output
    depends on the rest of its batch; the running statistics are then kept and updated in training, but not used, and
    the state dict has the same names. Weights start as PyTorch's default (Kaiming uniform with a = sqrt(5)).

    The network can be scripted, traced and exported; for ``torch.export`` a dynamic side is
    ``8 * torch.export.Dim(name, min=2)`` with four levels. TorchScript, tracing and compilers ignore
    ``use_checkpointing``: the numbers are the same. ``SyncBatchNorm.convert_sync_batchnorm`` leaves the norms of
    ``batch_statistics=True`` as they are.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the output: 1 for restoring one channel, the number of classes for segmentation.
        features: channels at the end of each encoder level, at least two levels; the number of levels sets the depth.
        act: MONAI's name of the activation, or a pair of name and arguments.
        norm: MONAI's name of the norm, or a pair of name and arguments.
        batch_statistics: batch norm uses the batch's own statistics in evaluation too, as the original does.
        use_checkpointing: compute activations again in backward instead of keeping them: less memory, same gradients.

    Shape:
        input ``(batch, in_channels, *spatial)``, each side divisible by ``2 ** (levels - 1)``;
        output ``(batch, out_channels, *spatial)``, logits.

    Raises:
        ValueError: ``spatial_dims`` or ``features`` out of range, ``batch_statistics`` with another norm than batch;
            from ``forward``: sides that are not divisible, with what to pad to.

    Example:
        >>> import torch
        >>> network = GenesisUNet(features=(4, 8, 16), out_channels=2)
        >>> network(torch.zeros(1, 1, 16, 16, 8)).shape
        torch.Size([1, 2, 16, 16, 8])
        >>> network.encoder(torch.zeros(1, 1, 16, 16, 8))[-1].shape  # the bottleneck
        torch.Size([1, 16, 4, 4, 2])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        batch_statistics: bool = False,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels = check_architecture(spatial_dims, features)
        self.architecture = {  # what save_pretrained writes
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "features": channels,
            "act": act,
            "norm": norm,
            "batch_statistics": batch_statistics,
        }
        self.divisor = 2 ** (len(channels) - 1)
        self.encoder = GenesisEncoder(
            spatial_dims, in_channels, channels, act, norm, batch_statistics, use_checkpointing
        )
        self.decoder = GenesisDecoder(spatial_dims, channels, act, norm, batch_statistics, use_checkpointing)
        self.head = Conv[Conv.CONV, spatial_dims](channels[0], out_channels, kernel_size=1)
        self.register_load_state_dict_pre_hook(accept_prefixes)
        self.register_load_state_dict_pre_hook(refuse_non_finite)
        self.register_load_state_dict_pre_hook(refuse_partial_load)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits, ``(batch, out_channels, *spatial)``."""
        if not torch.jit.is_tracing():  # sides are tensors there, and a comparison would become a constant
            check_divisible(list(x.shape[2:]), self.divisor)
        features = self.encoder(x)  # features[l]: (B, features[l], *sides / 2 ** l)
        x = self.decoder(features)  # (B, features[0], *sides)
        return self.head(x)  # (B, out_channels, *sides)
