# SPDX-License-Identifier: Apache-2.0
"""What becomes of the scores of candidates: a report of an evaluation, or the table again with probabilities."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from numpy.typing import NDArray

from ...datasets.candidates.predictions import PredictionStore, holds_only, write_probabilities, write_submission
from ...datasets.candidates.split import CandidateSet
from ...datasets.candidates.table import CandidateTable
from ...datasets.io.atomic_write import atomic_write, write_figure
from ...datasets.io.csv_file import write_csv
from ...datasets.io.scan_header import file_states, listed_files
from ...datasets.loading.processes import gather_from_processes, process_rank
from ...networks.weight_container import sha256_of
from ..engines.candidate_evaluator import rows_not_scored
from ..metrics.calibration import (
    TEMPERATURE_FILE,
    calibrated,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    read_temperature,
    write_temperature,
)
from ..metrics.froc import FALSE_POSITIVE_RATES, Froc, ScanDetections, compute_froc, froc_curve
from ..metrics.lesions import HIT_RULES, hit_rule, match_detections
from ..metrics.roc_auc import RankingMetrics, roc_auc_with_ci
from .candidate_curves import draw_candidate_curves, ranking_curves

__all__ = ["CandidateReport", "CandidateWriter", "prediction_store"]

logger = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]
Calibrate = Literal["temperature", "temperature_and_bias"]


def prediction_store(
    path: str | Path, data: CandidateSet, weights: str | Path, rank: int | None = None, **settings: Any
) -> PredictionStore:
    """Open the file of logits from which an interrupted evaluation or inference goes on.

    Args:
        path: the file; a rank above 0 gets its own file next to it.
        data: scans and candidates; other scans, known by their files' paths, sizes and times, start a new file.
        weights: ``model.pt``; other weights start a new file. That they are missing is for their loader to say.
        rank: this process's rank; None asks ``torch.distributed``.
        settings: whatever else changes a logit, such as flips; other settings start a new file.

    Returns:
        The store.
    """
    content = sha256_of(weights) if Path(weights).is_file() else None
    scans = [[entry.get("seriesuid"), _states(str(entry["image"]))] for entry in data.data]
    text = json.dumps({"weights": content, "scans": scans, **settings}, sort_keys=True, default=str)
    rank = process_rank() if rank is None else rank
    file = Path(path)
    file = file if rank == 0 else file.with_name(f"{file.stem}_{rank}{file.suffix}")
    return PredictionStore(file, data.table, hashlib.sha256(text.encode()).hexdigest())


def _states(image: str) -> list[Any]:
    """Describe a scan by its files; one that is missing, which reading it names, by its path."""
    try:
        return file_states(listed_files(image))
    except OSError:
        return [image]


class _Scores:
    """Keep the logits of candidates as they come, and bring those of all processes together in the end.

    Attributes:
        bad_rows: name of the file for rows that could not be scored.

    Args:
        output_dir: folder of what is written.
        data: scans and candidates.
        store: keeps the logits; its file goes when all is written.
    """

    bad_rows = "bad_rows.csv"

    def __init__(self, output_dir: str | Path, data: CandidateSet, store: PredictionStore) -> None:
        self.folder = Path(output_dir)
        self.data = data
        self.store = store

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator.

        Args:
            engine: a :class:`~models_genesis.training.CandidateEvaluator`; its batch must hold ``row`` and its output
                ``pred``, one logit.
        """
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _add(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        output: Any = engine.state.output
        logits = [float(each[CommonKeys.PRED]) for each in output]
        self.store.add([int(item["row"]) for item in batch], logits)

    def _end(self, engine: Engine) -> None:
        logits = _gather(self.store.values, self.data.table)
        if process_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            bad = self.data.table.write_bad_rows(self.folder / self.bad_rows)
            if bad:
                logger.warning("%s: %d rows, see %s", self.data.table.path, bad, self.folder / self.bad_rows)
            self.write(logits)
        if dist.is_initialized():
            dist.barrier()  # until all is written, each process can go on from what it has
        self.store.close()
        self.store.path.unlink(missing_ok=True)

    def write(self, logits: FloatArray) -> None:
        """Write what the class is for.

        Args:
            logits: (N,) for all rows of the table, NaN where there is none.
        """
        raise NotImplementedError


def _gather(logits: FloatArray, table: CandidateTable) -> FloatArray:
    """Bring together what the processes scored and what they found to be bad."""
    rows = np.flatnonzero(~np.isnan(logits))
    together = np.full(len(table), np.nan)
    own = (rows, logits[rows], table.reason, dict(table.details))
    for scored, values, reason, details in gather_from_processes(own):
        together[scored] = values
        table.reason[:] = np.maximum(table.reason, reason)
        table.details.update(details)
    return together


class CandidateWriter(_Scores):
    """Write the table again with a probability in each row that could be scored, rows, order and columns kept.

    ``TABLE_bad_rows.csv`` next to it names the others with the reason. The result of another table of the same name is
    not replaced.

    Args:
        output_dir: folder of the files.
        data: scans and candidates.
        store: see :func:`prediction_store`.
        temperature: see :func:`~models_genesis.training.read_temperature`.
        ckpt_dir: folder of the weights.

    Raises:
        ValueError: when the table would be overwritten.
        FileExistsError: when the folder has the result of another table of this name.
    """

    def __init__(
        self,
        output_dir: str | Path,
        data: CandidateSet,
        store: PredictionStore,
        temperature: float | str | None = None,
        ckpt_dir: str | Path = ".",
    ) -> None:
        super().__init__(output_dir, data, store)
        self.temperature = read_temperature(temperature, ckpt_dir)
        if (self.folder / data.table.path.name).resolve() == data.table.path.resolve():
            raise ValueError(f"--output_dir {output_dir}: expected another folder than that of {data.table.path}")
        self.path = self.folder / data.table.path.name
        self.bad_rows = f"{data.table.path.stem}_{_Scores.bad_rows}"
        if self.path.exists() and not holds_only(self.path, data.table):
            raise FileExistsError(
                f"{self.path}: expected no result of other candidates than those of {data.table.path}, found rows that"
                " it does not have; name another --output_dir, or remove the file"
            )

    def write(self, logits: FloatArray) -> None:
        """Write the table.

        Args:
            logits: (N,) for all rows of the table, NaN where there is none.
        """
        written = write_probabilities(self.path, self.data.table, calibrated(logits, *self.temperature))
        logger.info("wrote %s, %d of %d rows with a probability", self.path, written, len(self.data.table))


class CandidateReport(_Scores):
    """Write what an evaluation found.

    ``predictions.csv`` in the challenge's submission format, ``classification.json`` with AUC, average precision, the
    free-response ROC and their intervals, the same as lines of ``classification.csv``, the curves as ``curves.png`` and
    ``froc.csv``, and ``bad_rows.csv``.

    Args:
        output_dir: folder of the files.
        data: scans and candidates.
        store: see :func:`prediction_store`.
        temperature: see :func:`~models_genesis.training.read_temperature`; it changes probabilities, no ranking.
        ckpt_dir: folder of the weights.
        calibrate: ``"temperature"`` or ``"temperature_and_bias"`` fits it on these candidates and writes it next to the
            weights; None does not.
        split: name of the split; a temperature is fitted on ``"validation"`` alone.
        num_resamples: of the bootstrap over scans.
        seed: of the bootstrap.

    Raises:
        ValueError: when a temperature is to be fitted on another split.
    """

    columns = ("measure", "value", "low", "high")

    def __init__(
        self,
        output_dir: str | Path,
        data: CandidateSet,
        store: PredictionStore,
        temperature: float | str | None = None,
        ckpt_dir: str | Path = ".",
        calibrate: Calibrate | None = None,
        split: str = "validation",
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(output_dir, data, store)
        if calibrate not in (None, "temperature", "temperature_and_bias"):
            raise ValueError(f"calibrate: expected 'temperature' or 'temperature_and_bias', found {calibrate!r}")
        if calibrate and split != "validation":
            raise ValueError(f"calibrate: expected --split validation, found {split}: the test must stay unseen")
        self.temperature = read_temperature(temperature, ckpt_dir)
        self.temperature_path = Path(ckpt_dir) / TEMPERATURE_FILE
        weights = Path(ckpt_dir) / "model.pt"
        self.weights_sha256 = sha256_of(weights) if weights.is_file() else None
        self.calibrate = calibrate
        self.split = split
        self.num_resamples = num_resamples
        self.seed = seed

    def write(self, logits: FloatArray) -> None:
        """Write the report.

        Args:
            logits: (N,) for all rows of the table, NaN where there is none.
        """
        write_submission(self.folder / "predictions.csv", self.data.table, calibrated(logits, *self.temperature))
        rows = np.concatenate([np.zeros(0, np.int64), *self.data.rows])
        rows = rows[np.isfinite(logits[rows]) & (self.data.table.label[rows] >= 0)]
        scores, labels = logits[rows], self.data.table.label[rows]
        ranking = roc_auc_with_ci(scores, labels, self.data.scan[rows], self.num_resamples, self.seed)
        series, detections = match_detections(self.data, logits)
        froc = self._froc(detections, FALSE_POSITIVE_RATES)
        summary = self._summary(series, detections, scores, labels, ranking, froc)
        summary["weights_sha256"] = self.weights_sha256
        with atomic_write(self.folder / "classification.json") as file:
            file.write(json.dumps(summary, indent=2).encode() + b"\n")
        lines = [dict(zip(self.columns, line, strict=True)) for line in _lines(ranking, froc)]
        write_csv(self.folder / "classification.csv", self.columns, lines)
        self._draw(detections, scores, labels, ranking, froc)
        for line in lines:
            logger.info("%(measure)s: %(value)s (%(low)s to %(high)s)", line)
        logger.info("wrote classification.json, classification.csv, predictions.csv and curves.png to %s", self.folder)

    def _froc(self, detections: Sequence[ScanDetections], rates: Sequence[float]) -> Froc | None:
        if not any(len(scan.found) for scan in detections):
            logger.warning("%s: no lesions in %d scans, so there is no FROC", self.data.name, len(detections))
            return None
        return compute_froc(detections, rates, self.num_resamples, self.seed)

    def _summary(
        self,
        series: Sequence[str],
        detections: Sequence[ScanDetections],
        scores: FloatArray,
        labels: NDArray,
        ranking: RankingMetrics,
        froc: Froc | None,
    ) -> dict[str, Any]:
        table = self.data.table
        summary = {
            "split": self.split,
            "candidates_file": str(table.path),
            "scans": len(self.data.data),
            "scans_not_read": len(self.data.data) - len(series),
            "candidates": len(scores),
            "rows_not_scored": len(rows_not_scored(self.data)),
            "bad_rows": table.counts(),
            "ranking": asdict(ranking),
            "froc": None if froc is None else asdict(froc),
            "hit_rule": HIT_RULES[hit_rule(self.data)],
            "marks": {
                name: sum(getattr(scan, name) for scan in detections) for name in ("ignored", "repeated", "dropped")
            },
            "temperature": self.temperature[0],
            "bias": self.temperature[1],
            "intervals": f"95 %; *_scans, average precision and FROC: percentile bootstrap over scans, "
            f"{self.num_resamples} resamples, seed {self.seed}; auc_low and auc_high: DeLong on the logit scale",
        }
        if len(scores):
            probabilities = calibrated(scores, *self.temperature)
            summary["nll"] = negative_log_likelihood(scores, labels, *self.temperature)
            summary["ece"] = expected_calibration_error(probabilities, labels)
        if self.calibrate:
            calibration = fit_temperature(scores, labels, self.calibrate == "temperature_and_bias")
            notes = {"split": self.split, "candidates_file": str(table.path)}
            weights = self.temperature_path.with_name("model.pt")
            if weights.is_file():
                notes["weights_sha256"] = sha256_of(weights)
            write_temperature(self.temperature_path, calibration, **notes)
            summary["calibration"] = asdict(calibration)
            logger.info(
                "wrote %s: temperature %.3f, bias %.3f; mean negative log-likelihood %.4f before, %.4f after; expected "
                "calibration error %.4f before, %.4f after",
                self.temperature_path, calibration.temperature, calibration.bias, calibration.nll_before,
                calibration.nll_after, calibration.ece_before, calibration.ece_after,
            )  # fmt: skip
        return summary

    def _draw(
        self,
        detections: Sequence[ScanDetections],
        scores: FloatArray,
        labels: NDArray,
        ranking: RankingMetrics,
        froc: Froc | None,
    ) -> None:
        curves = ranking_curves(scores, labels) if ranking.auc is not None else None
        fine = None
        if froc is not None:
            rates, sensitivity, thresholds = froc_curve(detections)
            points = zip(rates, sensitivity, calibrated(thresholds, *self.temperature), strict=True)
            names = ("false_positives_per_scan", "sensitivity", "probability")
            write_csv(
                self.folder / "froc.csv",
                names,
                [dict(zip(names, (f"{value:.6g}" for value in point), strict=True)) for point in points],
            )
            fine = self._froc(detections, np.geomspace(FALSE_POSITIVE_RATES[0], FALSE_POSITIVE_RATES[-1], 121).tolist())
        titles = (
            "ROC" if ranking.auc is None else f"ROC, area {ranking.auc:.3f}",
            "precision and recall"
            if ranking.average_precision is None
            else f"average precision {ranking.average_precision:.3f}",
            "free-response ROC" if froc is None else f"free-response ROC, CPM {froc.cpm:.3f}",
        )
        write_figure(self.folder / "curves.png", draw_candidate_curves(curves, fine, titles))


def _lines(ranking: RankingMetrics, froc: Froc | None) -> list[tuple[str, str, str, str]]:
    """Give the lines of ``classification.csv``."""
    lines: list[tuple[str, float | None, float | None, float | None]] = [
        ("auc (DeLong)", ranking.auc, ranking.auc_low, ranking.auc_high),
        ("auc (bootstrap over scans)", ranking.auc, ranking.auc_scans_low, ranking.auc_scans_high),
        ("average precision", ranking.average_precision, ranking.average_precision_low, ranking.average_precision_high),
    ]
    if froc is not None:
        lines += [
            (f"sensitivity at {rate:g} false positives per scan", value, low, high)
            for rate, value, low, high in zip(froc.rates, froc.sensitivity, froc.low, froc.high, strict=True)
        ]
        lines.append(("CPM", froc.cpm, froc.cpm_low, froc.cpm_high))
    return [(name, *("" if number is None else f"{number:.4f}" for number in numbers)) for name, *numbers in lines]  # type: ignore[misc]
