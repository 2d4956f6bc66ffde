# SPDX-License-Identifier: Apache-2.0
"""The losses of pretraining (restoration) and of classification; segmentation has MONAI's own."""

from __future__ import annotations

from monai.losses import FocalLoss
from torch import Tensor, nn

__all__ = ["CandidateLoss", "RestorationLoss"]


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


class CandidateLoss(nn.Module):
    """Binary cross-entropy of one logit, as the paper has it (arXiv:2004.07882), with two options.

    Args:
        label_smoothing: in [0, 1); moves the targets 0 and 1 to half of it and to 1 minus half of it.
        focal_gamma: 0 or more; above 0 candidates that are right already count less, by MONAI's ``FocalLoss``.

    Raises:
        ValueError: when a number is out of range.

    Example:
        >>> import torch
        >>> round(float(CandidateLoss()(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))), 4)
        0.6931
    """

    def __init__(self, label_smoothing: float = 0.0, focal_gamma: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1 or focal_gamma < 0:
            raise ValueError(
                "expected label_smoothing in [0, 1) and focal_gamma of 0 or more, found "
                f"{label_smoothing} and {focal_gamma}"
            )
        self.label_smoothing = label_smoothing
        # with gamma 0 it is binary cross-entropy
        self.loss = FocalLoss(include_background=True, gamma=focal_gamma)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the mean loss.

        Args:
            input: (B, 1) logits.
            target: (B, 1), 0 or 1.

        Returns:
            The mean over the batch.
        """
        smooth = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return self.loss(input, smooth)
