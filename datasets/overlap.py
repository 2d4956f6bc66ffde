# SPDX-License-Identifier: Apache-2.0
"""Scans that are in two places: twice in a store, or in a store and in the data list of a task that it is to help."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.transforms import Compose
from tqdm import tqdm

from .datalist import read_all_splits
from .io.atomic_write import atomic_text
from .io.csv_file import printable
from .io.file_hash import hash_of_files
from .io.scan_header import BadScanError
from .loading.prepare_scan import PrepareScan
from .prepare import IMAGE, STARTS, Preparation, patient_of, series_of
from .store.location import Location
from .store.manifest import ScanRow, Store, duplicates, name_of_datalist
from .store.scan_arrays import content_hash

__all__ = ["Overlap", "find_overlap"]

NOT_COMPARED = 3
"""Exit code where nothing was found, but not all scans could be compared."""


@dataclass(frozen=True)
class Overlap:
    """What a store and a data list have in common.

    Attributes:
        kind: ``"scan"``: the same voxels, prepared as the store's were; ``"file"``: the same bytes; ``"series"`` or
            ``"patient"``: the same name.
        name: the hash or the name.
        stored: scans of the store, with their splits.
        listed: scans of the data list, with their splits.
    """

    kind: str
    name: str
    stored: tuple[str, ...]
    listed: tuple[str, ...]


def find_overlap(
    rows: Sequence[ScanRow],
    datalist: str | Path,
    dataset_dir: str | Path | None = None,
    preparation: Preparation | None = None,
    progress: bool = True,
) -> tuple[list[Overlap], list[str]]:
    """Compare a store with the data list of a task.

    Args:
        rows: of the store's manifest, for all ways to find starts, see ``Store.rows_of_all_ways``.
        datalist: the task's scans: every list of the file whose entries have images.
        dataset_dir: folder that its paths start from, by default the list's own.
        preparation: how the store was prepared: each scan of the list is prepared so, and its voxels are compared. None
            compares files and names alone, which takes seconds, but misses a scan in another format.
        progress: whether to show a progress bar.

    Returns:
        What is in both, the surest kind first, empty where nothing is; and why scans of the list could not be compared
        by their voxels, one text for each, of which nothing can be said.
    """
    kept = [row for row in rows if not row.skipped]
    stored: dict[str, dict[str, list[str]]] = {
        "scan": _by((row.hash, row) for row in kept),
        "file": _by((row.sha256, row) for row in kept),
        "series": _by((row.series, row) for row in kept),
        "patient": _by((row.patient, row) for row in kept),
    }
    listed: dict[str, dict[str, list[str]]] = {kind: defaultdict(list) for kind in stored}
    splits = read_all_splits(datalist, dataset_dir)
    entries = [(split, entry) for split, listed_there in splits.items() for entry in listed_there]
    prepare = None if preparation is None else PrepareScan(Compose(preparation.steps()), IMAGE, STARTS, "raise")
    not_compared: list[str] = []
    for split, entry in tqdm(entries, "Comparing scans", disable=not progress):
        names, errors = _names(entry, prepare)
        not_compared += (f"{split} {error}" for error in errors)
        for kind, name in names:
            if name in stored[kind]:
                listed[kind][name].append(f"{split} {_image(entry)}")
    found = [
        Overlap(kind, name, tuple(stored[kind][name]), tuple(scans))
        for kind in stored
        for name, scans in listed[kind].items()
    ]
    return found, not_compared


def _by(pairs: Iterable[tuple[str, ScanRow]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name, row in pairs:
        if name:
            groups[name].append(f"{row.split} {row.source}")
    return dict(groups)


def _image(entry: Mapping[str, Any]) -> str:
    image = entry[IMAGE]
    return str(image if isinstance(image, str) else image[0])


def _names(entry: Mapping[str, Any], prepare: PrepareScan | None) -> tuple[list[tuple[str, str]], list[BadScanError]]:
    """Name a scan of a data list in all the ways that a store does, and give what hinders."""
    errors = []
    images = [entry[IMAGE]] if isinstance(entry[IMAGE], str) else entry[IMAGE]
    names = [("series", series_of(entry)), ("patient", patient_of(entry))]
    for image in images:
        names.append(("file", hash_of_files(image) or ""))
        if prepare is not None:
            try:
                prepared = prepare({IMAGE: image})
            except BadScanError as error:
                errors.append(error)
                continue
            assert isinstance(prepared, dict)  # a bad scan was raised
            names.append(("scan", content_hash(prepared[IMAGE])))
    return [(kind, name) for kind, name in names if name], errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets overlap``."""
    parser.add_argument("--store", required=True, metavar="URL", help="a store of prepared scans")
    parser.add_argument(
        "--store_datalist", metavar="JSON", help="which of the store's data lists, if there are several"
    )
    parser.add_argument("--datalist", metavar="JSON", help="of the task; without it duplicates in the store are listed")
    parser.add_argument("--dataset_dir", help="folder that its paths start from (default: the list's own)")
    parser.add_argument("--names_only", action="store_true", help="compare files and names, and decode nothing")
    parser.add_argument("--out", metavar="JSON", help="write what was found")


def run(arguments: argparse.Namespace) -> int:
    """Print what is in two places; return 1 if a scan, file, series or patient is, else 3 if not all were compared."""
    store = Store(Location(arguments.store))
    listed = None if arguments.store_datalist is None else name_of_datalist(arguments.store_datalist)
    rows = store.rows_of_all_ways(listed)
    twice = duplicates(rows)
    scans = len({row.hash for row in rows if row.hash})
    print(f"{arguments.store}: {len(twice)} of {scans} scans are in it twice or more")
    for group in twice:
        print(printable("  " + " = ".join(f"{row.split} {row.source}" for row in group)))
    found: list[Overlap] = []
    not_compared: list[str] = []
    if arguments.datalist is not None:
        preparation = None if arguments.names_only else _preparation_of(store)
        found, not_compared = find_overlap(rows, arguments.datalist, arguments.dataset_dir, preparation)
        for kind in ("scan", "file", "series", "patient"):
            common = [each for each in found if each.kind == kind]
            print(f"{arguments.datalist}: {len(common)} {kind if kind == 'series' else kind + 's'} in common")
            for each in common:
                print(printable(f"  {each.name}: {', '.join(each.stored)} = {', '.join(each.listed)}"))
        if preparation is not None:
            print(f"{arguments.datalist}: {len(not_compared)} not compared by their voxels")
            for text in not_compared:
                print(printable(f"  {text}"))
    if arguments.out:
        content = {
            "duplicates": [[row.source for row in group] for group in twice],
            "overlap": [vars(each) for each in found],
            "not_compared": not_compared,
        }
        with atomic_text(arguments.out) as stream:
            stream.write(json.dumps(content, indent=2) + "\n")
    return 1 if found or twice else NOT_COMPARED if not_compared else 0


def _preparation_of(store: Store) -> Preparation:
    """Make the steps that prepared the store; scans of a task may be of any modality."""
    arguments: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in store.arguments().items()
    }
    known = set(Preparation().of_scans())
    if set(arguments) != known:
        raise ValueError(
            f"{store.location.url}/store.json: expected the arguments {', '.join(sorted(known))}, found"
            f" {', '.join(sorted(arguments)) or 'none'}"
        )
    arguments["modality"] = None
    return Preparation(**arguments)
