# SPDX-License-Identifier: Apache-2.0
"""One run: the bundle's own training and evaluation, through MONAI's workflow, in this process."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.metrics import compute_roc_auc

from ..datasets.datalist import write_datalist
from ..datasets.io.csv_file import write_csv
from ..datasets.io.scan_header import root_cause_message
from .case_scores import candidate_scores, case_columns, region_scores
from .permuted import permuted_file
from .plan import Run
from .results import Results, now
from .settings import PERMUTED, Settings, weight_path
from .slices import relative_slices
from .study import Study
from .subsets import Cohort, Subset, choose_subset, run_datalist

logger = logging.getLogger(__name__)


class Execution:
    """Does runs of one study.

    Args:
        study: the study.
        cohort: its patients.
        results: where the runs go.
        device: such as ``"cuda:0"``; None leaves it to the bundle.
        keep_weights: whether each run keeps its ``model.pt``.
    """

    def __init__(
        self, study: Study, cohort: Cohort, results: Results, device: str | None = None, keep_weights: bool = False
    ) -> None:
        self.study = study
        self.cohort = cohort
        self.results = results
        self.keep_weights = keep_weights
        self.settings = Settings(study, device)

    def __call__(self, run: Run, weights_sha256: str | None = None, earlier: Sequence[str] = ()) -> dict[str, Any]:
        """Do a run, whatever comes of it.

        Args:
            run: the run.
            weights_sha256: hash of the arm's weight file, for the row.
            earlier: errors of earlier attempts, for the row.

        Returns:
            The run's row; it is in its place, with the scores of each case, when this returns.
        """
        subset = choose_subset(self.study, self.cohort, run.labels, run.fold, run.seed, run.stage == "tune")
        row = begin_row(run, self.study, subset.patients, weights_sha256, earlier)
        work = self.results.begin(run)
        begin = time.monotonic()
        with _log_to(work / "result" / "log.txt"):
            try:
                row |= {"device": device_name(self.settings.device), **self._run(run, subset, work)}
                row["status"] = "done"
            except Exception as error:
                logger.exception("%s failed", run.name)
                row["error"] = root_cause_message(error)
        row |= {"seconds": round(time.monotonic() - begin, 2), "finished": now()}
        row |= self.settings.commands(run, subset)
        if self.keep_weights and (work / "models" / "model.pt").is_file():
            shutil.copy(work / "models" / "model.pt", work / "result" / "model.pt")
        self.results.finish(run, work, row)
        return row

    def _run(self, run: Run, subset: Subset, work: Path) -> dict[str, Any]:
        folder, datalist = str(work.absolute()), work.absolute() / "result" / "datalist.json"
        write_datalist(datalist, run_datalist(self.study, self.cohort, subset, self.settings.candidates))
        weights = weight_path(self.study, run.arm)
        if weights is not None and self.study.arms[run.arm].permute:
            permuted_file(weights, work / PERMUTED, run.seed)
        begin = time.monotonic()
        run_workflow(self.study.bundle, self.study.train, self.settings.train(run, subset, folder, str(datalist)))
        trained = time.monotonic()
        run_workflow(self.study.bundle, self.study.evaluate, self.settings.evaluate(run, folder, str(datalist)))
        evaluation = work / "evaluation"
        cases = self._cases(evaluation, subset)
        write_csv(work / "result" / "cases.csv", case_columns(cases), cases)
        if (slices := evaluation / "slices.npz").is_file():
            relative_slices(slices, work / "result" / "slices.npz", self.study.dataset_dir)
        return {
            "score": mean_score(self.study.score, cases),
            "cases": len(cases),
            "train_seconds": round(trained - begin, 2),
            "evaluate_seconds": round(time.monotonic() - trained, 2),
        }

    def _cases(self, evaluation: Path, subset: Subset) -> list[dict[str, Any]]:
        if self.settings.candidates:
            table = self.study.dataset_dir / str(self.cohort.header["candidates"])
            return candidate_scores(evaluation / "predictions.csv", table, subset.test)
        return region_scores(evaluation / "segmentation.csv", self.study.score, self.study.dataset_dir, subset.test)


def begin_row(
    run: Run, study: Study, patients: int, weights_sha256: str | None, earlier: Sequence[str]
) -> dict[str, Any]:
    """Make the row of a run that has not succeeded yet."""
    return {
        **run.fields(),
        "status": "failed",
        "error": "",
        "patients": patients,
        "steps": study.steps,
        "score": None,
        "cases": 0,
        "weights_sha256": weights_sha256,
        "earlier_errors": list(earlier),
    }


def device_name(device: str | None) -> str:
    """Name a device for the table."""
    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def mean_score(score: str, cases: Sequence[Mapping[str, Any]]) -> float:
    """Score of a run: the mean over its cases, or their AUC."""
    scores = torch.tensor([float(case["score"]) for case in cases], dtype=torch.float64)
    if score != "auc":
        return float(scores.mean())
    return float(np.asarray(compute_roc_auc(scores, torch.tensor([int(case["label"]) for case in cases]))))


def run_workflow(bundle: Path, files: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Run configs of a bundle with the study's own objects, and leave nothing behind in this process.

    Args:
        bundle: folder of the bundle.
        files: config files, relative to the bundle.
        overrides: values by key.
    """
    search_path = list(sys.path)
    forget_other_scripts(bundle)
    workflow = None
    try:
        workflow = ConfigWorkflow([str(bundle / name) for name in files], logging_file=False, **overrides)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        sys.path[:] = search_path
        del workflow
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def forget_other_scripts(bundle: Path) -> None:
    """Drop modules called ``scripts`` of another bundle, which would be taken for this one's.

    Args:
        bundle: folder of the bundle whose modules may stay.
    """
    scripts = sys.modules.get("scripts")
    folders = [Path(folder).resolve().parent for folder in getattr(scripts, "__path__", [])]
    if scripts is not None and bundle.resolve() not in folders:
        for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
            del sys.modules[name]


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Let the log of a run go to a file, and to nothing else."""
    root = logging.getLogger()
    own = [each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger) and each.handlers]
    before = [(each, list(each.handlers), each.level, each.propagate) for each in [root, *own]]
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for logger_, *_ in before:  # MONAI's loggers have their own handlers
        logger_.handlers[:], logger_.propagate = [], True
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger_, handlers, level, propagate in before:
            logger_.handlers[:], logger_.propagate = handlers, propagate
            logger_.setLevel(level)
        handler.close()
