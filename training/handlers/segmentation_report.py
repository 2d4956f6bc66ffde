# SPDX-License-Identifier: Apache-2.0
"""Scores of every case and region, and their means with confidence intervals, as CSV and JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils.enums import CommonKeys

from ...datasets.io.atomic_write import atomic_write
from ...datasets.io.csv_file import write_csv
from ...datasets.loading.case_dataset import CASE_KEY
from ...datasets.loading.processes import gather_from_processes, process_rank
from ..metrics.region_masks import region_masks
from ..metrics.segmentation_scores import EMPTY_MASKS, bootstrap_mean, mask_scores

__all__ = ["SegmentationReport"]

logger = logging.getLogger(__name__)

SCORES = ("dice", "iou", "surface_dice", "hd95_mm")


class SegmentationReport:
    """Write ``segmentation.csv``, a line for each case and region, and ``segmentation.json``, the means of all cases.

    Prediction and label are label maps in the space of the input's file, so that distances are mm of the patient. Cases
    that failed are not measured; the JSON names them.

    Args:
        output_dir: folder of the two files.
        regions: label values by name; regions may overlap.
        tolerance_mm: of the surface Dice, for all regions or by name.
        num_resamples: of the bootstrap over cases.
        seed: of the bootstrap.

    Raises:
        ValueError: when a region has no tolerance.
    """

    columns = ("case", "region", *SCORES, "predicted_ml", "label_ml")

    def __init__(
        self,
        output_dir: str | Path,
        regions: Mapping[str, Sequence[int]],
        tolerance_mm: float | Mapping[str, float],
        num_resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        self.path = Path(output_dir) / "segmentation.csv"
        self.regions = dict(regions)
        given = tolerance_mm if isinstance(tolerance_mm, Mapping) else dict.fromkeys(self.regions, tolerance_mm)
        if missing := [name for name in self.regions if name not in given]:
            raise ValueError(f"tolerance_mm: expected one for each of {list(self.regions)}, found none for {missing}")
        self.tolerance_mm = {name: float(given[name]) for name in self.regions}
        self.num_resamples = num_resamples
        self.seed = seed
        self._rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: the MONAI evaluator; its output must hold pred and label as label maps of one channel.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _add(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs or [], strict=False):
            self._rows += self.rows(str(item[CASE_KEY]), output[CommonKeys.PRED], output[CommonKeys.LABEL])

    def rows(self, case: str, prediction: MetaTensor, label: MetaTensor) -> list[dict[str, Any]]:
        """Measure one case.

        Args:
            case: its name.
            prediction: (1, X, Y, Z), label values.
            label: the same shape, with its affine.

        Returns:
            One row for each region.
        """
        spacing = affine_to_spacing(np.asarray(label.affine)).tolist()
        voxel_ml = math.prod(spacing) / 1000
        pairs = zip(region_masks(prediction, self.regions), region_masks(label, self.regions), strict=True)
        rows = []
        for name, (predicted, true) in zip(self.regions, pairs, strict=True):
            volumes = {"predicted_ml": int(predicted.sum()) * voxel_ml, "label_ml": int(true.sum()) * voxel_ml}
            scores = mask_scores(predicted.cpu(), true.cpu(), spacing, self.tolerance_mm[name])
            rows.append({"case": case, "region": name, **scores, **volumes})
        return rows

    def summary(self, rows: Sequence[Mapping[str, Any]], failed: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Average the rows of all cases.

        Args:
            rows: see :meth:`rows`.
            failed: message by name of the cases that could not be measured.

        Returns:
            What ``segmentation.json`` holds.
        """
        means = {
            name: {
                score: asdict(
                    bootstrap_mean([row[score] for row in rows if row["region"] == name], self.num_resamples, self.seed)
                )
                for score in SCORES
            }
            for name in self.regions
        }
        return {
            "cases": len({row["case"] for row in rows}),
            "failed": dict(failed or {}),
            "regions": means,
            "labels": self.regions,
            "tolerance_mm": self.tolerance_mm,
            "interval": f"95 %, percentile bootstrap over cases, {self.num_resamples} resamples, seed {self.seed}",
            "empty_masks": EMPTY_MASKS,
        }

    def _write(self, engine: Engine) -> None:
        rows, failed = _gather(self._rows, getattr(engine, "failed", {}))
        if process_rank() > 0:
            return
        rows.sort(key=lambda row: str(row["case"]))
        texts = [{key: _text(value) for key, value in row.items()} for row in rows]
        write_csv(self.path, self.columns, texts)
        weights = getattr(engine.state, "weights_sha256", None)
        summary = {**self.summary(rows, failed), "weights_sha256": weights}
        with atomic_write(self.path.with_suffix(".json")) as file:
            file.write(json.dumps(summary, indent=2).encode() + b"\n")
        for name, means in summary["regions"].items():
            logger.info("%s: %s", name, ", ".join(_mean_text(score, means[score]) for score in SCORES))
        logger.info("wrote %s and .json, %d cases", self.path, summary["cases"])


def _gather(rows: list[dict[str, Any]], failed: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Bring together what the processes measured."""
    parts = gather_from_processes((rows, dict(failed)))
    return [row for part in parts for row in part[0]], {name: text for part in parts for name, text in part[1].items()}


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _mean_text(score: str, mean: Mapping[str, Any]) -> str:
    if mean["mean"] is None:
        return f"{score} -"
    interval = "" if mean["low"] is None else f" ({mean['low']:.3f} to {mean['high']:.3f})"
    return f"{score} {mean['mean']:.3f}{interval}"
