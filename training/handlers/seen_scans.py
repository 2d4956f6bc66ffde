# SPDX-License-Identifier: Apache-2.0
"""Scans that weights were trained on, among those that are to measure them."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.utils import ensure_tuple

from ...datasets.io.file_hash import hash_of_files
from .birth_certificate import data_of_birth, images_of
from .run_settings import entries_of

__all__ = ["find_seen_scans", "warn_of_seen_scans", "warn_of_shared_scans"]

logger = logging.getLogger(__name__)

_SHOWN = 5

_GLIMPSE = 65536
"""Bytes from the middle of a file that tell most scans of one size apart; at their begin lies air."""


def find_seen_scans(scans: Sequence[Mapping[str, Any]], source: Mapping[str, Any] | None) -> list[str]:
    """Find the scans that weights were trained on, they themselves or the weights that they started from.

    Args:
        scans: of a data set, see :func:`~models_genesis.training.handlers.birth_certificate.data_of_birth`.
        source: what a birth certificate says of the weights: ``data``, and ``pretrained`` of the same kind; None where
            there is none.

    Returns:
        A text for each scan that was trained on: its file, and whether the bytes are the same, or a patient has the
        same name, who may be another one where names are numbers.

    Example:
        >>> trained = {"training": [{"patient": "P1", "image": {"file": "a.nii", "sha256": "1f"}}]}
        >>> scans = [{"image": {"file": "x.nii", "sha256": "1f"}}, {"image": {"file": "y.nii", "sha256": "2e"}}]
        >>> find_seen_scans(scans, {"data": trained, "pretrained": None})
        ['x.nii (the file a.nii)']
    """
    trained = list(_trained_on(source))
    files = {image["sha256"]: image["file"] for scan in trained for image in images_of(scan) if image["sha256"]}
    patients = {str(scan["patient"]) for scan in trained if scan.get("patient")}
    seen = []
    for scan in scans:
        same = [files[image["sha256"]] for image in images_of(scan) if image["sha256"] in files]
        name = ", ".join(image["file"] for image in images_of(scan)) or "a scan"
        if same:
            seen.append(f"{name} (the file {same[0]})")
        elif scan.get("patient") and str(scan["patient"]) in patients:
            seen.append(f"{name} (a patient of the same name, {scan['patient']})")
    return seen


def _trained_on(source: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    while source:
        yield from (source.get("data") or {}).get("training") or []
        source = source.get("pretrained")


def warn_of_seen_scans(
    dataset: Any, use: str, source: Mapping[str, Any], scans: Sequence[Mapping[str, Any]] | None = None
) -> list[str] | None:
    """Warn when a data set that measures weights has scans that they were trained on.

    A birth certificate next to the weights knows them, by their bytes and by the names of patients. The images are
    hashed only where there is one.

    Args:
        dataset: whose ``data`` are the entries of a data list, or a set of candidates with such.
        use: what the data set is for, such as ``"validation"``.
        source: of the weights, see :func:`~models_genesis.training.handlers.birth_certificate.source_of_weights`.
        scans: of the data set, where they have been hashed already, see :func:`find_seen_scans`.

    Returns:
        The scans, as :func:`find_seen_scans` gives them; None where nothing could be compared, which is logged.
    """
    name = source["file"]
    if next(_trained_on(source), None) is None or not entries_of(dataset):
        logger.info("%s: which scans %s was trained on is not known here, so none is looked for", use, name)
        return None
    if scans is None:
        scans = data_of_birth(dataset, ["image"])
    seen = find_seen_scans(scans, source)
    if seen:
        logger.warning(
            "%s: %d of %d scans were trained on by %s or by what it started from, so that their scores say little of "
            "new scans: %s",
            use, len(seen), len(scans), name, _shown(seen),
        )  # fmt: skip
    return seen


def warn_of_shared_scans(training: Any, validation: Any) -> list[str]:
    """Warn when a training validates on scans that it trains on too: the same files, copies of them, or patients.

    A file is read whole only where one of the other part has the same size and the same bytes in its middle. Of DICOM
    series paths and patients are compared.

    Args:
        training: the data set, whose ``data`` are the entries of a data list, or a set of candidates with such.
        validation: the same of the validation.

    Returns:
        A text for each scan of the validation that is in the training.
    """
    trained, measured = (list(entries_of(dataset) or ()) for dataset in (training, validation))
    found = _Trained(trained)
    shared = [text for entry in measured if (text := found.told_of(entry))]
    if shared:
        logger.warning(
            "validation: %d of %d scans are trained on too, so that the scores by which weights may be chosen say "
            "little of new scans: %s",
            len(shared), len(measured), _shown(shared),
        )  # fmt: skip
    return shared


class _Trained:
    """The scans of a training: their paths, patients, sizes, and hashes where a store knows them."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.files = {file for entry in entries for file in _files(entry)}
        self.patients = {str(entry["patient"]) for entry in entries if entry.get("patient")}
        self.stored = {hashed: _files(entry) for entry in entries if (hashed := _stored_hash(entry))}
        self.sizes: dict[int, list[str]] = {}
        self.glimpses: dict[int, dict[int, list[str]]] = {}
        for file in sorted(self.files):
            self.sizes.setdefault(_size(file), []).append(file)

    def told_of(self, entry: Mapping[str, Any]) -> str:
        """Say what a scan of another data set has in common with these; empty for nothing."""
        files = _files(entry)
        name = ", ".join(files)
        if same := next((file for file in files if file in self.files), None):
            return f"{name} (the file {same})"
        if kept := self.stored.get(_stored_hash(entry)):
            return f"{name} (the file {', '.join(kept)})"
        if copied := next((other for file in files for other in self._copies(file)), None):
            return f"{name} (the file {copied})"
        if entry.get("patient") and str(entry["patient"]) in self.patients:
            return f"{name} (a patient of the same name, {entry['patient']})"
        return ""

    def _copies(self, file: str) -> Iterator[str]:
        """Give the files of the same bytes; files that cannot be read are like no other."""
        size = _size(file)
        if size not in self.sizes or size < 0:
            return
        try:
            if size not in self.glimpses:
                self.glimpses[size] = {}
                for other in self.sizes[size]:
                    self.glimpses[size].setdefault(_glimpse(other, size), []).append(other)
            for other in self.glimpses[size].get(_glimpse(file, size), []):
                if hash_of_files(file) == hash_of_files(other):
                    yield other
        except OSError as error:
            logger.warning("%s could not be compared with scans of its size: %s", file, error)


def _shown(scans: Sequence[str]) -> str:
    return "; ".join(scans[:_SHOWN]) + ("; ..." if len(scans) > _SHOWN else "")


def _files(entry: Mapping[str, Any]) -> list[str]:
    return [os.path.abspath(name) for name in ensure_tuple(entry["image"]) if isinstance(name, str | os.PathLike)]


def _stored_hash(entry: Mapping[str, Any]) -> str:
    """Give the hash of a file that a store of prepared scans knows; empty where there is none."""
    stored = entry.get("stored")
    return str(stored.get("sha256") or "") if isinstance(stored, Mapping) else ""


def _size(file: str) -> int:
    """Give the bytes of a file, -1 of anything else."""
    try:
        return os.path.getsize(file) if os.path.isfile(file) else -1
    except OSError:  # gone since
        return -1


def _glimpse(file: str, size: int) -> int:
    with open(file, "rb") as stream:
        stream.seek(max(size - _GLIMPSE, 0) // 2)
        return zlib.crc32(stream.read(_GLIMPSE))
