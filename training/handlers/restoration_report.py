# SPDX-License-Identifier: Apache-2.0
"""The restoration error of each scan, and of each kind of voxel, next to what can be had without a network."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys

from ...datasets.io.atomic_write import atomic_text
from ...datasets.io.csv_file import write_csv
from ...transforms.voxel_kinds import VOXEL_KINDS

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


class _KindSums:
    """Running sums of one kind of voxel over all cubes; which voxels are of the kind differs from cube to cube."""

    def __init__(self) -> None:
        self.voxels = 0
        self.restored = 0.0
        self.deformed = 0.0
        self.squared = 0.0
        self.original: Any = 0.0  # by place in the cube
        self.count: Any = 0.0

    def add(self, restored: np.ndarray, deformed: np.ndarray, original: np.ndarray, here: np.ndarray) -> None:
        self.voxels += int(np.count_nonzero(here))
        self.restored += float(np.sum((restored - original)[here] ** 2))
        self.deformed += float(np.sum((deformed - original)[here] ** 2))
        self.squared += float(np.sum(original[here] ** 2))
        self.original = self.original + np.where(here, original, 0.0)
        self.count = self.count + here

    def mean_image_error(self, mean_image: np.ndarray) -> float:
        """Sum of (original - mean image)^2 over the voxels of the kind, multiplied out as for a scan."""
        cross, mean_squared = np.sum(self.original * mean_image), np.sum(self.count * mean_image**2)
        return self.squared - 2 * float(cross) + float(mean_squared)


class RestorationReport:
    """Write ``restoration.csv``: per scan the mean squared error of the restored cubes and of two baselines.

    ``mse_deformed`` leaves the deformed cube as it is. ``mse_mean_image`` answers every cube with the voxelwise mean of
    all originals evaluated, the best that can be had without looking at the cube.

    With ``kinds_key`` also ``restoration_kinds.csv``: the same for each kind of voxel
    (:data:`~models_genesis.transforms.VOXEL_KINDS`) over all cubes. The error over all voxels is mostly that of painted
    ones, which nobody can restore exactly; whether the network reads the visible ones shows only apart from them. A
    kind's ``baseline`` is the better of the two answers without a network: for painted voxels that is the mean image,
    for those that were only mapped or shuffled it depends on how far the deformation took them.

    Args:
        output_dir: folder of the files.
        data: entries of the data list; an item's ``"scan"`` is a number in it, and its ``"image"`` the scan's name.
        kinds_key: key of each item's map of kinds, see :class:`~models_genesis.training.DeformationBackend`; None: no
            second file.
    """

    columns = ("scan", "cubes", "mse_restored", "mse_deformed", "mse_mean_image")
    kind_columns = (
        "kind",
        "voxels",
        "share",
        "mse_restored",
        "baseline",
        "mse_baseline",
        "mse_deformed",
        "mse_mean_image",
    )

    def __init__(self, output_dir: str | Path, data: Sequence[Mapping[str, Any]], kinds_key: str | None = None) -> None:
        self.path = Path(output_dir) / "restoration.csv"
        self.kinds_path = Path(output_dir) / "restoration_kinds.csv"
        self.data = data
        self.kinds_key = kinds_key
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, _ScanSums] = defaultdict(_ScanSums)
        self._kinds: dict[str, _KindSums] = defaultdict(_KindSums)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: the MONAI evaluator; its output must hold image (deformed), label (original) and pred (restored).
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            cubes = [
                output[key].double().cpu().numpy() for key in (CommonKeys.PRED, CommonKeys.IMAGE, CommonKeys.LABEL)
            ]
            self._sums[str(self.data[int(item["scan"])]["image"])].add(*cubes)
            if self.kinds_key is not None:
                self._add_kinds(item, self.kinds_key, *cubes)

    def _add_kinds(
        self, item: Mapping[str, Any], key: str, restored: np.ndarray, deformed: np.ndarray, original: np.ndarray
    ) -> None:
        if key not in item:
            raise ValueError(
                f"{key}: expected in each item, found {sorted(item)}; the deformation must have the same kinds_key"
            )
        kinds = np.broadcast_to(np.asarray(torch.as_tensor(item[key]).cpu()), original.shape)
        for number, name in enumerate(VOXEL_KINDS):
            self._kinds[name].add(restored, deformed, original, kinds == number)

    def _write(self, engine: Engine) -> None:
        rows = restoration_rows(self._sums)
        write_csv(self.path, self.columns, rows)
        for row in rows:
            logger.info(
                "%(scan)s: %(cubes)d cubes, MSE restored %(mse_restored)s, "
                "deformed %(mse_deformed)s, mean image %(mse_mean_image)s",
                row,
            )
        kinds = self._write_kinds() if self.kinds_key is not None else []
        self._write_summary(rows[-1], kinds, getattr(engine.state, "weights_sha256", None))
        logger.info("wrote %s and .json", self.path)

    def _write_summary(
        self, overall: Mapping[str, Any], kinds: Sequence[Mapping[str, Any]], weights_sha256: str | None
    ) -> None:
        """Write the line over all cubes, and those by kind, with the weights that they are about."""
        errors = {name: float(value) for name, value in overall.items() if name.startswith("mse_")}
        by_kind = {
            row["kind"]: {name: float(row[name]) for name in ("share", "mse_restored", "mse_baseline")} for row in kinds
        }
        summary = {
            "scans": len(self._sums),
            "cubes": overall["cubes"],
            **errors,
            "kinds": by_kind,
            "weights_sha256": weights_sha256,
        }
        with atomic_text(self.path.with_suffix(".json")) as file:
            file.write(json.dumps(summary, indent=2) + "\n")

    def _write_kinds(self) -> list[dict[str, Any]]:
        rows = kind_rows(self._kinds, self._sums)
        write_csv(self.kinds_path, self.kind_columns, rows)
        for row in rows:
            logger.info(
                "%(kind)s: %(share)s of the voxels, MSE restored %(mse_restored)s, %(baseline)s %(mse_baseline)s", row
            )
        logger.info("wrote %s", self.kinds_path)
        return rows


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


def kind_rows(kinds: Mapping[str, _KindSums], scans: Mapping[str, _ScanSums]) -> list[dict[str, Any]]:
    """Turn the sums into the lines of the report by kind, without kinds that no voxel was of.

    Args:
        kinds: running sums by kind.
        scans: running sums by scan, for the mean image.

    Returns:
        One dict a line.
    """
    mean_image = sum(scan.original for scan in scans.values()) / sum(scan.cubes for scan in scans.values())
    everything = sum(kind.voxels for kind in kinds.values())
    rows = []
    for name, kind in kinds.items():
        if kind.voxels == 0:
            continue
        restored, deformed, mean = (
            total / kind.voxels for total in (kind.restored, kind.deformed, kind.mean_image_error(mean_image))
        )
        rows.append(
            {
                "kind": name,
                "voxels": kind.voxels,
                "share": f"{kind.voxels / everything:.4f}",
                "mse_restored": f"{restored:.6f}",
                "baseline": "deformed" if deformed <= mean else "mean image",
                "mse_baseline": f"{min(deformed, mean):.6f}",
                "mse_deformed": f"{deformed:.6f}",
                "mse_mean_image": f"{mean:.6f}",
            }
        )
    return rows
