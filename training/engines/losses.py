# SPDX-License-Identifier: Apache-2.0
"""The loss of Models Genesis: mean squared error between the restored and the original cube."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["RestorationLoss"]


class RestorationLoss(nn.MSELoss):
    """Mean squared error over all voxels between ``sigmoid(logits)`` and the original (arXiv:2004.07882, section 3).

    The network gives logits, as all networks of this project do, so that any MONAI network fits unchanged.

    Example:
        >>> import torch
        >>> RestorationLoss()(torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)).item()
        0.0
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            input: logits (B, C, ...).
            target: the original cube, in [0, 1], of the same shape.

        Returns:
            A scalar.

        Raises:
            ValueError: when the shapes differ; broadcasting would hide a mistake.
        """
        if input.shape != target.shape:
            raise ValueError(f"logits {tuple(input.shape)} and original {tuple(target.shape)} differ in shape")
        return super().forward(input.sigmoid(), target)
