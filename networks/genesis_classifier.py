# SPDX-License-Identifier: Apache-2.0
"""The classifier that fine-tuning puts on the pretrained encoder."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.layers.factories import Pool
from torch import Tensor, nn

from .bundle_load import refuse_partial_load
from .genesis_encoder import GenesisEncoder, check_architecture
from .hub import PretrainedMixin
from .weight_container import refuse_non_finite
from .weight_names import accept_prefixes


class GenesisClassifier(nn.Module, PretrainedMixin):
    """The Genesis encoder with a classification head (arXiv:2004.07882, section 3: target tasks).

    Bottleneck, global average pool, a linear layer with ReLU, a linear layer. Nothing is frozen. The encoder's names
    are those of :class:`GenesisUNet`, so :func:`load_pretrained` brings the weights of one to the other.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        num_classes: channels of the output; 1 for a yes-or-no question.
        features: channels at the end of each encoder level, at least two levels.
        hidden_channels: width of the hidden linear layer.
        act: MONAI's name of the encoder's activation, or a pair of name and arguments; the head has ReLU.
        norm: MONAI's name of the norm, or a pair of name and arguments.
        dropout: share of hidden units that are dropped in training, in [0, 1].
        batch_statistics: batch norm uses the batch's own statistics in evaluation too, see :class:`GenesisUNet`.
        use_checkpointing: compute the encoder's activations again in backward instead of keeping them.

    Shape:
        input (batch, in_channels, *spatial), each side at least ``2 ** (levels - 1)``, not necessarily divisible by it
        (an odd rest is left out by pooling); output (batch, num_classes), logits.

    Raises:
        ValueError: ``spatial_dims``, ``features`` or ``dropout`` out of range.

    Example:
        >>> import torch
        >>> network = GenesisClassifier(features=(4, 8), hidden_channels=16, num_classes=3)
        >>> network(torch.zeros(2, 1, 8, 8, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        num_classes: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
        hidden_channels: int = 1024,
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        dropout: float = 0.0,
        batch_statistics: bool = False,
        use_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels = check_architecture(spatial_dims, features)
        self.architecture = {  # what save_pretrained writes
            "spatial_dims": spatial_dims,
            "in_channels": in_channels,
            "num_classes": num_classes,
            "features": channels,
            "hidden_channels": hidden_channels,
            "act": act,
            "norm": norm,
            "dropout": dropout,
            "batch_statistics": batch_statistics,
        }
        self.encoder = GenesisEncoder(
            spatial_dims, in_channels, channels, act, norm, batch_statistics, use_checkpointing
        )
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](1)
        self.hidden = nn.Linear(channels[-1], hidden_channels)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(hidden_channels, num_classes)
        self.register_load_state_dict_pre_hook(accept_prefixes)
        self.register_load_state_dict_pre_hook(refuse_non_finite)
        self.register_load_state_dict_pre_hook(refuse_partial_load)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits, (batch, num_classes)."""
        x = self.encoder(x)[-1]  # (B, features[-1], *sides / 2 ** (levels - 1))
        x = self.pool(x).flatten(1)  # (B, features[-1])
        x = self.dropout(self.act(self.hidden(x)))  # (B, hidden_channels)
        return self.classes(x)  # (B, num_classes)
