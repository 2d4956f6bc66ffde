# SPDX-License-Identifier: Apache-2.0
"""Label maps to the named regions that are measured, and their Dice as a key metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import DiceMetric
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


class RegionDice(IgniteMetricHandler):
    """Mean Dice over regions and cases, by MONAI's ``DiceMetric``, of predicted and true label maps.

    Where prediction and label are both empty the Dice is 1, where one of them is, 0: a region that a case lacks is a
    finding too. Cases that failed are passed over.

    Args:
        regions: label values by name.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]]) -> None:
        self.regions = {str(name): [int(value) for value in values] for name, values in regions.items()}
        self._cases = 0
        super().__init__(
            metric_fn=DiceMetric(include_background=True, reduction="mean", ignore_empty=False),
            output_transform=self._masks,
        )

    def _masks(self, output: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        predictions = [region_masks(case[CommonKeys.PRED], self.regions) for case in output]
        return predictions, [region_masks(case[CommonKeys.LABEL], self.regions) for case in output]

    def reset(self) -> None:
        """Forget all cases."""
        self._cases = 0
        super().reset()

    def iteration_completed(self, engine: Engine) -> None:
        """Count the cases of an iteration, none where it failed.

        Args:
            engine: the evaluator.
        """
        output: Any = engine.state.output
        if output:
            self._cases += len(output)
            super().iteration_completed(engine)

    def compute(self) -> Any:
        """Return the mean, NaN where no case was counted."""
        return super().compute() if self._cases else float("nan")
