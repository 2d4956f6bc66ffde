# SPDX-License-Identifier: Apache-2.0
"""What ``python -m models_genesis.transfer report`` writes: tables as CSV and JSON, and a page for people."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.io.atomic_write import atomic_text
from .analysis import Analysis
from .answer import answer, control_sentences
from .page import render_page
from .results import Protocol, Results
from .study import StudyError


def write_report(folder: str | Path, num_resamples: int = 9999) -> list[Path]:
    """Write the report of a study, finished or not.

    Args:
        folder: the study's folder of results.
        num_resamples: permutations and bootstrap samples.

    Returns:
        The files: ``report.html``, ``results.json``, ``contrasts.csv``, ``scores.csv``, ``cases.csv`` and ``runs.csv``.

    Raises:
        StudyError: when the folder holds no study.
    """
    results = Results(folder)
    kept = Protocol(results)
    protocol = kept.read()
    if protocol is None:
        raise StudyError(f"{kept.path}: expected the results of a study, found no such file")
    study = kept.study(protocol)
    analysis = Analysis(study, results, num_resamples)
    results.write_table(analysis.rows)
    summary = analysis.summary()
    summary["answer"] = answer(study, summary["contrasts"])
    summary["controls"] = control_sentences(study, summary["contrasts"])
    summary["protocol"] = [
        {key: value for key, value in version.items() if key != "study"} for version in protocol["versions"]
    ]
    cases = analysis.case_table()
    folder = Path(folder)
    with atomic_text(folder / "results.json") as file:
        file.write(json.dumps(_plain(summary), indent=1, allow_nan=False) + "\n")
    for name, table in (("contrasts", summary["contrasts"]), ("scores", summary["scores"]), ("cases", cases)):
        _write_table(folder / f"{name}.csv", table)
    with atomic_text(folder / "report.html") as file:
        file.write(render_page(analysis, protocol, summary, cases))
    names = ("report.html", "results.json", "contrasts.csv", "scores.csv", "cases.csv", "runs.csv")
    return [folder / name for name in names]


def _plain(value: Any) -> Any:
    """Write numbers that JSON has no word for as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _write_table(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for line in table for column in line))
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([[_cell(line.get(column)) for column in columns] for line in table])


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(f"{each:.6g}" if isinstance(each, float) else str(each) for each in value)
    return "" if value is None else value
