# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation by the batch's own statistics, in evaluation too, as the original network has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchStatisticsNorm(nn.Module):
    """Batch norm that never uses its running statistics, but keeps them.

    The original Models Genesis normalises by the batch's own mean and variance in evaluation too, so there the output
    of a sample depends on its batch mates (arXiv:2004.07882 does not say so; it was observed). In training this layer
    equals ``torch.nn.BatchNorm3d``, the updates of the running statistics included, and its state dict has the same
    names, so weights go from one to the other. In evaluation nothing is updated.

    Args:
        num_features: channels of the input.
        eps: added to the variance.
        momentum: share of the batch's statistics in the running ones at each training step.

    Shape:
        input and output: (batch, num_features, ...), any number of spatial axes.

    Raises:
        ValueError: from ``forward``, where a channel holds only one value, which has no variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.running_mean = nn.Buffer(torch.zeros(num_features))
        self.running_var = nn.Buffer(torch.ones(num_features))
        self.num_batches_tracked = nn.Buffer(torch.tensor(0, dtype=torch.long))

    def reset_parameters(self) -> None:
        """Set weight, bias and running statistics to what they are at first, as torch's batch norms can."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of the batch to weight * standard score + bias."""
        if not self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )

    def extra_repr(self) -> str:
        """Show the settings as torch's batch norms do."""
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
