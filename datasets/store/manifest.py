# SPDX-License-Identifier: Apache-2.0
"""The table of a store's scans, one row each, in Parquet; and the records that say which scans are whole."""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .location import Location, import_extra
from .settings import Settings, differences, fingerprint

__all__ = ["ScanRow", "Store", "duplicates", "name_of_datalist", "shared_patients"]

VERSION = 2
"""Of the layout of a store."""


@dataclass(frozen=True)
class ScanRow:
    """One scan of a data list, and what a store has of it.

    Attributes:
        datalist: name of the data list, see :func:`name_of_datalist`.
        split: ``"training"``, ``"validation"``, ``"testing"``, or another list of the file.
        number: of the entry in its split, from 0.
        entries: entries of the whole list, by which a list that is not done is known.
        key: name of the scan in the store.
        preparation: fingerprint of the settings by which it was prepared, see ``store.json``.
        source: absolute path of the scan, with ``::`` and the series where a folder holds several.
        patient: name that keeps a patient's scans in one split; ``""`` where the list has none.
        series: identifier of the DICOM series; ``""`` where the list has none.
        entry: the entry of the data list, as JSON.
        sha256: of the file, or of the names and hashes of the scan's files.
        hash: of the prepared voxels, see :func:`~.scan_arrays.content_hash`: equal for one scan in two files.
        shape: of the prepared scan, (C, X, Y, Z).
        dtype: of its voxels, ``"int16"`` but for ranges that do not fit.
        spacing: mm along its spatial axes.
        affine: (4, 4) by rows, its voxels to mm in RAS.
        orientation: axes of the scan before it was turned, such as ``"LPS"``.
        low: lowest prepared value, in HU for CT.
        high: highest.
        windows: name of the settings by which the starts were found, see ``Store.windows``.
        starts: number of admissible starts.
        starts_type: integer type of a start.
        starts_runs: number of runs of consecutive starts.
        starts_before: see :func:`~.start_runs.starts_before_blocks`.
        skipped: why the scan is not in the store; ``""`` where it is.
    """

    datalist: str = ""
    split: str = ""
    number: int = 0
    entries: int = 0
    key: str = ""
    preparation: str = ""
    source: str = ""
    patient: str = ""
    series: str = ""
    entry: str = "{}"
    sha256: str = ""
    hash: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = "int16"
    spacing: tuple[float, ...] = ()
    affine: tuple[float, ...] = ()
    orientation: str = ""
    low: float = 0.0
    high: float = 0.0
    windows: str = ""
    starts: int = 0
    starts_type: str = "int32"
    starts_runs: int = 0
    starts_before: tuple[int, ...] = (0,)
    skipped: str = ""

    @property
    def image_name(self) -> str:
        """Path of the scan's voxels in the store."""
        return f"scans/{self.key}/image"

    @property
    def starts_name(self) -> str:
        """Path of the scan's starts in the store."""
        return f"scans/{self.key}/starts-{self.windows}"


SCAN_FACTS = ("preparation", "sha256", "hash", "shape", "dtype", "spacing", "affine", "orientation", "low", "high")
"""What the record of a scan holds."""

START_FACTS = ("starts", "starts_type", "starts_runs", "starts_before")
"""What the record of a scan's starts holds."""


def name_of_datalist(path: str | Path) -> str:
    """Name a data list by its file and its content: a list that was changed is another list."""
    return f"{Path(path).stem}-{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"


class _NotDoneError(ValueError):
    """Parts of a data list's manifest are missing."""


class Store:
    """A store's settings, records and manifest.

    ``store.json`` says how all its scans were prepared, ``windows/NAME.json`` how starts were found. A scan counts from
    when its record is there, which is written after its voxels were read back; the same holds for its starts. The
    manifest of a data list, ``manifest/LIST/WINDOWS/PART.parquet``, is what a training reads.

    Args:
        location: the store.
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    def preparation(self) -> Settings | None:
        """Read how the scans were prepared; None where there is no store.

        Raises:
            ValueError: When this is no store, or one of another version.
        """
        content = self._json("store.json")
        if content is None:
            return None
        if not isinstance(content.get("preparation"), dict) or content.get("version") != VERSION:
            raise ValueError(
                f"{self.location.url}/store.json: expected a store of version {VERSION}, found {str(content)[:80]}"
            )
        return content["preparation"]

    def arguments(self) -> dict[str, Any]:
        """Read by which arguments the scans were prepared; empty where there is no store."""
        return (self._json("store.json") or {}).get("arguments", {})

    def set_preparation(self, wanted: Settings, arguments: Mapping[str, Any], made_by: str) -> str:
        """Begin a store, or check that it was prepared in the same way.

        Args:
            wanted: settings of the steps, which count.
            arguments: that make these steps, for who is to make them again.
            made_by: program and version.

        Returns:
            The settings' fingerprint, which is part of the key of each scan: of two runs that begin at once with other
            settings, neither takes a scan of the other for its own.

        Raises:
            ValueError: When it was prepared otherwise, with each setting that differs.
        """
        found = self.preparation()
        if found is None:
            content = {"version": VERSION, "made_by": made_by, "arguments": arguments, "preparation": wanted}
            self._write_json("store.json", content)
        self.check_preparation(wanted)  # of two that begin at once, the last decides for both
        return fingerprint(wanted)

    def check_preparation(self, wanted: Settings) -> None:
        """Check that the store is prepared in this way.

        Raises:
            ValueError: When it is prepared otherwise, with each setting that differs.
        """
        found = self.preparation() or {}
        if text := differences(found, wanted):
            raise ValueError(f"{self.location.url}: the scans were prepared otherwise: {text}")

    def set_windows(self, settings: Settings) -> str:
        """Note by which settings starts are found, and give their name."""
        name = fingerprint(settings)
        if self._json(f"windows/{name}.json") is None:
            self._write_json(f"windows/{name}.json", settings)
        return name

    def windows(self) -> dict[str, Settings]:
        """Read all settings by which starts were found, by name."""
        names = [name for name in self.location.names("windows/") if name.endswith(".json")]
        return {Path(name).stem: self._json(name) or {} for name in names}

    def record(self, row: ScanRow) -> ScanRow | None:
        """Complete a row by the record of its scan; None where the scan is not whole.

        Raises:
            ValueError: When it was prepared otherwise than the row says.
        """
        found = self._completed(row, f"records/{row.key}.json", SCAN_FACTS)
        if found is not None and found.preparation != row.preparation:
            raise ValueError(
                f"{self.location.url}/records/{row.key}.json: expected a scan prepared by {row.preparation}, found"
                f" {found.preparation}"
            )
        return found

    def starts_record(self, row: ScanRow) -> ScanRow | None:
        """Complete a row by the record of its starts; None where those are not whole."""
        return self._completed(row, f"records/{row.key}-{row.windows}.json", START_FACTS)

    def _completed(self, row: ScanRow, name: str, facts: Sequence[str]) -> ScanRow | None:
        content = self._json(name)
        if content is None:
            return None
        if set(content) != set(facts):
            raise ValueError(
                f"{self.location.url}/{name}: expected {', '.join(sorted(facts))}, found {', '.join(sorted(content))}"
            )
        return replace(row, **{fact: _frozen(content[fact]) for fact in facts})

    def write_record(self, row: ScanRow) -> None:
        """Let a scan count; its voxels must have been written and read back."""
        self._write_json(f"records/{row.key}.json", {fact: getattr(row, fact) for fact in SCAN_FACTS})

    def write_starts_record(self, row: ScanRow) -> None:
        """Let a scan's starts count."""
        facts = {fact: getattr(row, fact) for fact in START_FACTS}
        self._write_json(f"records/{row.key}-{row.windows}.json", facts)

    def check_sources(self, rows: Sequence[ScanRow]) -> None:
        """Check that a data list of this name, if it is here already, names the same files.

        The name of a list is that of its file and its content; relative paths may mean other files elsewhere.

        Args:
            rows: all scans of one list.

        Raises:
            ValueError: When it names others, with the first of them.
        """
        wanted = {(row.split, row.number): row for row in rows}
        folder = f"manifest/{rows[0].datalist}/"
        for name in self.location.names(folder):
            for found in self._read_part(name) if name.endswith(".parquet") else ():
                row = wanted.get((found.split, found.number))
                if row is None or row.source != found.source:
                    here = "no such entry" if row is None else row.source
                    raise ValueError(
                        f"{self.location.url}: holds the data list {rows[0].datalist} with {found.split} {found.number}"
                        f" = {found.source}, expected {here}: give the same dataset_dir, or the list another file name"
                    )

    def write_manifest(self, rows: Sequence[ScanRow], index: int, shards: int) -> None:
        """Write rows of one data list and one way to find starts.

        Parts of a former division of the list are removed, so that none of their rows hides a newer one; a list that is
        divided anew is whole again when all its new parts are there.

        Args:
            rows: at least one.
            index: which part of the list they are, from 0.
            shards: number of parts.
        """
        arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
        table = arrow.Table.from_pylist([asdict(row) for row in rows], schema=_schema(arrow))
        stream = io.BytesIO()
        parquet.write_table(table, stream, compression="zstd")
        folder = f"manifest/{rows[0].datalist}/{rows[0].windows}/"
        self.location.write(f"{folder}{index}-of-{shards}.parquet", stream.getvalue())
        for name in self.location.names(folder):
            if name.endswith(".parquet") and not name.endswith(f"-of-{shards}.parquet"):
                self.location.remove(name)

    def rows(self, datalist: str | None = None, windows: str | None = None) -> list[ScanRow]:
        """Read the manifest of one data list, sorted by split and number.

        Args:
            datalist: its name; None where the store holds one list only.
            windows: name of the way to find starts; None takes each scan from the first whole way that has it, and
                leaves those alone that are not done.

        Returns:
            One row for each entry of the list.

        Raises:
            ValueError: When there is no such list or way, several to choose from, or a list that is not done.
        """
        if windows is None:
            chosen: dict[tuple[str, int], ScanRow] = {}
            for row in self.rows_of_all_ways(datalist):
                chosen.setdefault((row.split, row.number), row)
            return list(chosen.values())
        parts = self._parts(datalist)
        if windows not in parts:
            raise ValueError(f"{self.location.url}: {self._no_windows(windows, list(parts))}")
        return self._rows_of_way(parts[windows])

    def rows_of_all_ways(self, datalist: str | None = None) -> list[ScanRow]:
        """Read the manifest of one data list for all ways to find starts in which it is whole.

        Args:
            datalist: its name; None where the store holds one list only.

        Returns:
            Sorted by split and number, a row for each content of a scan (a file that was changed between two ways has
            several); of scans that no way has, one row that says why.

        Raises:
            ValueError: See :meth:`rows`; a list that is done in no way is not done.
        """
        found: dict[tuple[str, int], dict[str, ScanRow]] = defaultdict(dict)
        not_done = None
        for names in self._parts(datalist).values():
            try:
                rows = self._rows_of_way(names)
            except _NotDoneError as error:
                not_done = not_done or error
                continue
            for row in rows:
                found[row.split, row.number].setdefault("" if row.skipped else row.hash, row)
        if not found:
            assert not_done is not None  # a list has a way
            raise not_done
        return [
            row
            for place in sorted(found)
            for row in ([row for row in found[place].values() if not row.skipped] or found[place].values())
        ]

    def _parts(self, datalist: str | None) -> dict[str, list[str]]:
        """List the files of a data list's manifest by the way to find starts."""
        names = [name for name in self.location.names("manifest/") if name.endswith(".parquet")]
        lists = sorted({name.split("/")[1] for name in names})
        url = self.location.url
        if not lists:
            raise ValueError(f"{url}: expected a store of scans with a manifest, found none; prepare it first")
        if datalist is None and len(lists) > 1:
            raise ValueError(f"{url}: holds the data lists {', '.join(lists)}: say which with datalist")
        if datalist is not None and datalist not in lists:
            raise ValueError(f"{url}: expected the data list {datalist}, found {', '.join(lists)}; prepare it first")
        parts = defaultdict(list)
        for name in names:
            _, found, way, _ = name.split("/")
            if found == (datalist or lists[0]):
                parts[way].append(name)
        return {way: parts[way] for way in sorted(parts)}

    def _rows_of_way(self, names: Sequence[str]) -> list[ScanRow]:
        found = {(row.split, row.number): row for name in names for row in self._read_part(name)}
        rows = [found[place] for place in sorted(found)]
        here = fingerprint(self.preparation() or {})
        for row in rows:
            if row.preparation != here:
                raise ValueError(
                    f"{self.location.url}: {row.datalist}: {row.source} was prepared by {row.preparation or '(none)'},"
                    f" expected {here}, that of store.json; run prepare again"
                )
        if not rows or len(rows) != rows[0].entries:
            wanted = rows[0].entries if rows else "some"
            raise _NotDoneError(
                f"{self.location.url}: {names[0].split('/')[1]}: expected {wanted} scans, found {len(rows)} prepared;"
                " run prepare to its end"
            )
        return rows

    def _no_windows(self, windows: str, ways: Sequence[str]) -> str:
        known = self.windows()
        wanted = known.get(windows)
        found = " / ".join(json.dumps(known.get(way, {})) for way in ways)
        about = "" if wanted is None else f" {json.dumps(wanted)}"
        return f"expected starts found by{about or ' other settings'}, found those by {found}; run prepare with yours"

    def _read_part(self, name: str) -> list[ScanRow]:
        content = self.location.read(name) or b""
        arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
        try:
            table = parquet.read_table(arrow.BufferReader(content))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.location.url}/{name}: cannot be read: {error}") from error
        if odd := {field.name for field in fields(ScanRow)} ^ set(table.column_names):
            raise ValueError(
                f"{self.location.url}/{name}: expected the fields of a scan, found others: {', '.join(sorted(odd))}"
            )
        return [ScanRow(**{key: _frozen(value) for key, value in row.items()}) for row in table.to_pylist()]

    def _json(self, name: str) -> dict[str, Any] | None:
        content = self.location.read(name)
        if content is None:
            return None
        try:
            found = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{self.location.url}/{name}: expected JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.location.url}/{name}: expected a JSON object, found {str(found)[:80]}")
        return found

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.location.write(name, json.dumps(content).encode())


def duplicates(rows: Sequence[ScanRow]) -> list[tuple[ScanRow, ...]]:
    """Find scans that a store has more than once, whatever their files are called.

    Args:
        rows: of the manifest.

    Returns:
        Groups of two rows and more with the same prepared voxels.
    """
    groups = defaultdict(list)
    for row in rows:
        if row.hash:
            groups[row.hash].append(row)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def shared_patients(rows: Sequence[ScanRow]) -> list[str]:
    """Name the patients that have scans in several splits, in order."""
    splits = defaultdict(set)
    for row in rows:
        if row.patient and not row.skipped:
            splits[row.patient].add(row.split)
    return sorted(patient for patient, found in splits.items() if len(found) > 1)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _schema(arrow: Any) -> Any:
    types = {
        "str": arrow.string(),
        "int": arrow.int64(),
        "float": arrow.float64(),
        "tuple[int, ...]": arrow.list_(arrow.int64()),
        "tuple[float, ...]": arrow.list_(arrow.float64()),
    }
    return arrow.schema([(field.name, types[str(field.type)]) for field in fields(ScanRow)])
