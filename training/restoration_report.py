# SPDX-License-Identifier: Apache-2.0
"""The restoration error of each scan beside what can be had without a network."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from .files import write_csv

__all__ = ["RestorationReport"]

logger = logging.getLogger(__name__)


class _ScanSums:
    """Running sums of one scan, enough for its three mean squared errors."""

    def __init__(self) -> None:
        self.cubes = 0
        self.restored = 0.0
        self.deformed = 0.0
        self.original_squared = 0.0
        self.original: Any = 0.0

    def add(self, restored: np.ndarray, deformed: np.ndarray, original: np.ndarray) -> None:
        self.cubes += 1
        self.restored += float(np.mean((restored - original) ** 2))
        self.deformed += float(np.mean((deformed - original) ** 2))
        self.original_squared += float(np.mean(original**2))
        self.original = self.original + original

    def mean_image_error(self, mean_image: np.ndarray) -> float:
        """Mean of (original - mean image)^2, multiplied out, so that no cube need be kept."""
        cross = float(np.mean(self.original * mean_image)) / self.cubes
        return self.original_squared / self.cubes - 2 * cross + float(np.mean(mean_image**2))


class RestorationReport:
    """Write ``restoration.csv``: per scan the mean squared error of the restored cubes and of two baselines.

    ``mse_deformed`` leaves the deformed cube as it is. ``mse_mean_image`` answers every cube with the voxelwise mean of
    all originals evaluated, the best that can be had without looking at the cube.

    Args:
        output_dir: folder of the file.
        data: entries of the data list; an item's ``"scan"`` is a number in it, and its ``"image"`` the scan's name.
    """

    columns = ("scan", "cubes", "mse_restored", "mse_deformed", "mse_mean_image")

    def __init__(self, output_dir: str | Path, data: Sequence[Mapping[str, Any]]) -> None:
        self.path = Path(output_dir) / "restoration.csv"
        self.data = data
        self._sums: dict[str, _ScanSums] = defaultdict(_ScanSums)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: the MONAI evaluator; its output must hold image (deformed), label (original) and pred (restored).
        """
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._sums.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            cubes = [
                output[key].double().cpu().numpy() for key in (CommonKeys.PRED, CommonKeys.IMAGE, CommonKeys.LABEL)
            ]
            self._sums[str(self.data[int(item["scan"])]["image"])].add(*cubes)

    def _write(self, engine: Engine) -> None:
        rows = restoration_rows(self._sums)
        write_csv(self.path, self.columns, rows)
        for row in rows:
            logger.info(
                "%(scan)s: %(cubes)d cubes, MSE restored %(mse_restored)s, "
                "deformed %(mse_deformed)s, mean image %(mse_mean_image)s",
                row,
            )
        logger.info("wrote %s", self.path)


def restoration_rows(sums: dict[str, _ScanSums]) -> list[dict[str, Any]]:
    """Turn the sums into the lines of the report, the last of them over all cubes.

    Args:
        sums: running sums by scan.

    Returns:
        One dict a line.
    """
    count = sum(scan.cubes for scan in sums.values())
    mean_image = sum(scan.original for scan in sums.values()) / count
    errors: dict[str, tuple[float, ...]] = {
        name: (scan.cubes, scan.restored / scan.cubes, scan.deformed / scan.cubes, scan.mean_image_error(mean_image))
        for name, scan in sorted(sums.items())
    }
    total = [sum(error[0] * error[column] for error in errors.values()) / count for column in (1, 2, 3)]
    errors["all"] = (count, *total)
    return [
        {
            "scan": name,
            "cubes": cubes,
            "mse_restored": f"{a:.6f}",
            "mse_deformed": f"{b:.6f}",
            "mse_mean_image": f"{c:.6f}",
        }
        for name, (cubes, a, b, c) in errors.items()
    ]
