# SPDX-License-Identifier: Apache-2.0
"""What a restoration must beat: the error of the mean image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.metrics import Metric
from monai.utils.enums import CommonKeys

from ...datasets.loading.processes import gather_from_processes

__all__ = ["MeanImageError"]


class MeanImageError(Metric):
    """Mean squared error of answering every cube with the voxelwise mean of all originals.

    It is the least error that can be had without looking at the deformed cube. Next to it an error of 0.0066 shows what
    it is worth: little where cubes are all alike and the mean image has 0.0050, a lot where it has 0.05. An additional
    metric of an evaluator whose output holds the originals as ``label``, all of one shape.
    """

    def __init__(self) -> None:
        super().__init__(skip_unrolling=True)

    def reset(self) -> None:
        """Forget all cubes."""
        self._cubes, self._squared = 0, 0.0
        self._sum: Any = 0.0

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Add the cubes of an iteration.

        Args:
            output: ``label`` of each cube.
        """
        for cube in output:
            original = cube[CommonKeys.LABEL].detach().double().cpu().numpy()
            self._cubes += 1
            self._squared += float((original**2).mean())
            self._sum = self._sum + original

    def compute(self) -> float:
        """Return the error over the cubes of all processes, NaN where there are none."""
        parts: list[Any] = gather_from_processes((self._cubes, self._squared, self._sum))
        cubes, squared, total = (sum(part[index] for part in parts) for index in range(3))
        if cubes == 0:
            return math.nan
        return float(squared / cubes - ((total / cubes) ** 2).mean())
