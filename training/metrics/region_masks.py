# SPDX-License-Identifier: Apache-2.0
"""Label maps to the named regions that are measured, and their Dice as a key metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.metrics import Metric
from ignite.metrics.metric import sync_all_reduce
from monai.metrics import compute_dice
from monai.utils.enums import CommonKeys
from torch import Tensor

__all__ = ["RegionDice", "region_masks"]


def region_masks(labels: Tensor, regions: Mapping[str, Sequence[int]]) -> Tensor:
    """Turn a label map into one mask for each region; regions may overlap, as tumour lies in liver.

    Args:
        labels: (1, X, Y, Z) label values.
        regions: label values by name.

    Returns:
        (R, X, Y, Z), bool, in the order of ``regions``.

    Raises:
        ValueError: when the label map has several channels.

    Example:
        >>> region_masks(torch.tensor([[[[0, 1, 2]]]]), {"liver": [1, 2], "tumour": [2]})[:, 0, 0].tolist()
        [[False, True, True], [False, False, True]]
    """
    if labels.shape[0] != 1:
        raise ValueError(f"labels: expected a label map of one channel, found shape {tuple(labels.shape)}")
    values = torch.as_tensor(labels)[0]
    return torch.stack([torch.isin(values, values.new_tensor(list(region))) for region in regions.values()])


class RegionDice(Metric):
    """Mean Dice over regions and cases, by MONAI's ``compute_dice``, of predicted and true label maps.

    Where prediction and label are both empty the Dice is 1, where one of them is, 0: a region that a case lacks is a
    finding too. Cases that failed are passed over. Unlike MONAI's own handlers it allows for a process without cases.

    Args:
        regions: label values by name.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        self.regions = {str(name): [int(value) for value in values] for name, values in regions.items()}
        super().__init__(skip_unrolling=True)

    def reset(self) -> None:
        """Forget all cases."""
        self._total, self._cases = 0.0, 0

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the cases of an iteration.

        Args:
            output: ``pred`` and ``label`` of each case, label maps of one channel; none where it failed.
        """
        for case in output:
            predicted = region_masks(case[CommonKeys.PRED], self.regions)
            true = region_masks(case[CommonKeys.LABEL], self.regions)
            dice = compute_dice(predicted[None], true[None], include_background=True, ignore_empty=False)
            self._total += float(dice.mean())
            self._cases += 1

    @sync_all_reduce("_total", "_cases")
    def compute(self) -> float:
        """Return the mean over the cases of all processes, NaN where there are none."""
        return self._total / self._cases if self._cases else math.nan
