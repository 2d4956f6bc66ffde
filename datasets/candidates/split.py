# SPDX-License-Identifier: Apache-2.0
"""The scans of one split together with their candidates."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datalist import read_datalist
from ..io.json_file import read_json
from ..splits import SPLITS
from .matching import match_scans, scan_name, scan_names
from .table import CandidateTable, OnBadRow, read_candidates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateSet:
    """The scans of one split, and where in a table their candidates are.

    Attributes:
        data: entries of the data list, each with its absolute ``image`` and its ``seriesuid``; a scan without
            candidates is among them, since false positives are counted per scan.
        table: the whole table. A row of another split is good there, but none of :attr:`rows`.
        scan: (N,) index of each row's scan in ``data``, -1 for rows of other splits and of no scan.
        annotations: LUNA16's ``annotations.csv``, or ``None``.
        annotations_excluded: LUNA16's ``annotations_excluded.csv``, or ``None``.
        name: what messages call it.
    """

    data: list[dict[str, Any]]
    table: CandidateTable
    scan: NDArray[np.int32]
    annotations: Path | None = None
    annotations_excluded: Path | None = None
    name: str = "candidates"

    @property
    def rows(self) -> list[NDArray[np.int64]]:
        """Good rows of each scan, in the order of the table."""
        rows = np.flatnonzero((self.scan >= 0) & self.table.good)
        order = rows[np.argsort(self.scan[rows], kind="stable")]
        return np.split(order, np.searchsorted(self.scan[order], np.arange(1, len(self.data))))

    @property
    def positives(self) -> NDArray[np.int64]:
        """Good rows of the split of class 1."""
        return np.flatnonzero((self.scan >= 0) & self.table.good & (self.table.label == 1))

    @property
    def negatives(self) -> NDArray[np.int64]:
        """Good rows of the split of class 0."""
        return np.flatnonzero((self.scan >= 0) & self.table.good & (self.table.label == 0))

    def summary(self) -> str:
        """Say how many scans and candidates there are."""
        total = sum(map(len, self.rows))
        return (
            f"{self.name}: {len(self.data)} scans, {total} candidates, {len(self.positives)} positive,"
            f" {len(self.negatives)} negative"
        )


def load_candidates(
    datalist: str | Path | None,
    dataset_dir: str | Path | None = None,
    key: str = "training",
    candidates: str | Path | None = None,
    with_class: bool = True,
    on_bad_row: OnBadRow = "report",
) -> CandidateSet:
    """Read one split of a data list with its candidates.

    Args:
        datalist: JSON file as ``python -m models_genesis.datasets luna16-candidates`` and its like write it.
        dataset_dir: folder that relative paths start from, by default the JSON file's own.
        key: the split, ``"training"``, ``"validation"`` or ``"testing"``.
        candidates: another table than the one that the data list names.
        with_class: whether each row needs a class.
        on_bad_row: ``"report"`` bad rows, or ``"raise"`` an error for the first.

    Returns:
        Scans and candidates; rows of a series that the data list does not know are marked as bad.

    Raises:
        FileNotFoundError: When the data list, the table or a scan is missing.
        ValueError: When they are not what they should be, or the split has no scan.
        BadRowError: With ``on_bad_row="raise"``.
    """
    if datalist is None:
        raise ValueError(
            "expected --datalist with a data list that names candidates, found none:"
            " python -m models_genesis.datasets luna16-candidates writes one, candidates one of any CT folder."
        )
    data = read_datalist(datalist, dataset_dir, key)
    if not data:
        raise ValueError(f"{datalist}: expected scans in {key!r}, found none.")
    path = Path(datalist)
    content = read_json(path, "a data list")
    root = (Path(dataset_dir) if dataset_dir is not None else path.parent).absolute()
    if candidates is None and not isinstance(content.get("candidates"), str):
        raise ValueError(f"{path}: expected the name of a candidate table as 'candidates', found none.")
    table = read_candidates(candidates if candidates is not None else root / content["candidates"], with_class)
    data = [{**entry, "seriesuid": str(entry.get("seriesuid") or scan_name(entry["image"]))} for entry in data]
    known = {_series(entry) for split in SPLITS for entry in content.get(split, ())}
    found = _bind(table, data, known, content.get("left_out", {}))
    table.check(on_bad_row)
    named = {
        name: root / content[name] if content.get(name) else None for name in ("annotations", "annotations_excluded")
    }
    candidate_set = CandidateSet(data, table, found, **named, name=f"{path} ({key})")
    logger.info("%s", candidate_set.summary())
    if with_class and key != "training" and not len(candidate_set.positives):
        logger.warning("%s: no positive candidates, so that AUC and sensitivity are undefined.", candidate_set.name)
    return candidate_set


def _series(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return str(entry.get("seriesuid") or scan_name(str(entry["image"])))
    return scan_name(str(entry))


def _bind(
    table: CandidateTable, data: Sequence[Mapping[str, Any]], known: set[str], left_out: Mapping[str, str]
) -> NDArray[np.int32]:
    """Find the scan of each row, and mark the rows of unknown series and of scans that are left out."""
    index: dict[str, int] = {}
    for number, entry in enumerate(data):
        if index.setdefault(entry["seriesuid"], number) != number:
            raise ValueError(f"expected each seriesuid once, found {entry['seriesuid']} twice in a split.")
    # code -1, a row without a series, takes the last index
    scan = np.array([*(index.get(name, -1) for name in table.series), -1], np.int32)
    unknown = np.array([*(name not in known and name not in left_out for name in table.series), False])
    out = np.array([*(name in left_out and name not in known for name in table.series), False])
    table.mark(np.flatnonzero(unknown[table.series_code]), "unknown seriesuid")
    rows = np.flatnonzero(out[table.series_code])
    table.mark(
        rows,
        "scan left out",
        {int(row): f"{(name := table.series[table.series_code[row]])}: {left_out[name]}" for row in rows},
    )
    return scan[table.series_code]


def scan_candidates(
    image: str | Path,
    candidates: str | Path,
    seriesuid: str | None = None,
    with_class: bool = False,
    on_bad_row: OnBadRow = "report",
) -> CandidateSet:
    """Read a table for one scan, or for the scans of a folder, without a data list, as inference does.

    Args:
        image: a scan (file or DICOM folder), or a folder with many.
        candidates: the table; the class may be missing.
        seriesuid: what the table calls the one scan, where it is not the name of the scan.
        with_class: whether each row needs a class.
        on_bad_row: ``"report"`` bad rows, or ``"raise"`` an error for the first.

    Returns:
        Scans and candidates; rows of other series are marked as bad.

    Raises:
        FileNotFoundError: When the scan or the table is missing.
        ValueError: When no row of the table is of a scan there, or a name means several scans.
        BadRowError: With ``on_bad_row="raise"``.
    """
    table = read_candidates(candidates, with_class)
    path = Path(str(image).split("::")[0])
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a scan or a folder of scans, found no such file or folder.")
    root, images = path.parent, [str(image)]
    if path.is_dir() and "::" not in str(image) and seriesuid is None:
        root = path
        matched, ambiguous, _ = match_scans(root, table.series)
        if ambiguous:
            name, several = next(iter(ambiguous.items()))
            raise ValueError(f"{root}: expected one scan named {name}, found {', '.join(several)}.")
    elif seriesuid is not None:
        matched = {seriesuid: os.path.relpath(images[0], root)}
    else:
        relative = os.path.relpath(images[0], root)
        matched = {name: relative for name in sorted(scan_names(root, relative) & set(table.series))[:1]}
    data = [
        {"image": os.path.normpath(root.absolute() / matched[name]), "seriesuid": name, "patient": name}
        for name in table.series
        if name in matched
    ]
    if not data:
        shown = ", ".join(table.series[:3])
        raise ValueError(
            f"{table.path}: expected candidates of {image}, found those of {len(table.series)} other series: {shown};"
            " name the series if it is one of them."
        )
    scan = _bind(table, data, {entry["seriesuid"] for entry in data}, {})
    table.check(on_bad_row)
    return CandidateSet(data, table, scan, name=str(table.path))


def subsample_negatives(data: CandidateSet, negatives_per_positive: float | None = None, seed: int = 0) -> CandidateSet:
    """Keep all positives of a split and a fixed share of its negatives.

    LUNA16's validation folds have 150,000 candidates: to score them all after each epoch costs more than the epoch. The
    same negatives are kept whatever the epoch, so that epochs can be compared. The AUC's expectation stays the same;
    precision and everything else that depends on the share of positives does not.

    Args:
        data: scans and candidates of the validation split.
        negatives_per_positive: how many negatives to keep for each positive, above 0; None keeps all.
        seed: of the draw.

    Returns:
        The same table, of which other rows belong to no scan.

    Raises:
        ValueError: when there are no positives or no negatives, so that no validation could tell anything.
    """
    positives, negatives = data.positives, data.negatives
    for kind, rows in (("positive", positives), ("negative", negatives)):
        if not len(rows):
            raise ValueError(
                f"{data.name}: expected {kind} candidates to validate on, found none in {len(data.data)} scans\n"
                f"{data.table.summary()}"
            )
    if negatives_per_positive is None:
        return data
    if not 0 < negatives_per_positive < np.inf:
        raise ValueError(f"negatives_per_positive: expected a number above 0, found {negatives_per_positive}")
    count = min(max(round(len(positives) * negatives_per_positive), 1), len(negatives))
    kept = np.random.default_rng(seed).choice(negatives, count, replace=False)
    scan = np.full_like(data.scan, -1)
    chosen = np.concatenate([positives, kept])
    scan[chosen] = data.scan[chosen]
    return replace(data, scan=scan)
