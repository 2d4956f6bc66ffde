# SPDX-License-Identifier: Apache-2.0
"""Scans that weights were trained on, among those that are to measure them."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from monai.utils import ensure_tuple

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

    Whole files are read only where two of the parts have one size and the same bytes in their middle. Of DICOM series
    paths and patients are compared.

    Args:
        training: the data set, whose ``data`` are the entries of a data list, or a set of candidates with such.
        validation: the same of the validation.

    Returns:
        A text for each scan of the validation that is in the training, see :func:`find_seen_scans`.
    """
    trained, measured = (list(entries_of(dataset) or ()) for dataset in (training, validation))
    sizes = [{size for entry in entries for size in _sizes(entry)} for entries in (trained, measured)]
    keys = [[_keys(entry, sizes[0] & sizes[1]) for entry in entries] for entries in (trained, measured)]
    common = set().union(*keys[0]) & set().union(*keys[1])
    suspects = [
        SimpleNamespace(data=[entry for entry, own in zip(entries, each, strict=True) if own & common])
        for entries, each in zip((trained, measured), keys, strict=True)
    ]
    if not common:
        return []
    data = {"training": data_of_birth(suspects[0], ["image"])}
    shared = find_seen_scans(data_of_birth(suspects[1], ["image"]), {"data": data, "pretrained": None})
    if shared:
        logger.warning(
            "validation: %d of %d scans are trained on too, so that the scores by which the weights are chosen say "
            "little of new scans: %s",
            len(shared), len(measured), _shown(shared),
        )  # fmt: skip
    return shared


def _shown(scans: Sequence[str]) -> str:
    return "; ".join(scans[:_SHOWN]) + ("; ..." if len(scans) > _SHOWN else "")


def _files(entry: Mapping[str, Any]) -> list[str]:
    return [os.path.abspath(name) for name in ensure_tuple(entry["image"]) if isinstance(name, str | os.PathLike)]


def _sizes(entry: Mapping[str, Any]) -> set[int]:
    return {os.path.getsize(file) for file in _files(entry) if os.path.isfile(file)}


def _keys(entry: Mapping[str, Any], sizes: set[int]) -> set[Hashable]:
    """What a copy of the scan, or another scan of the patient, has in common with it."""
    stored = entry.get("stored")  # of a store of prepared scans, which knows the files by their hashes
    keys: set[Hashable] = {stored["sha256"]} if isinstance(stored, Mapping) and stored.get("sha256") else set()
    keys |= {("patient", str(entry["patient"]))} if entry.get("patient") else set()
    for file in _files(entry):
        keys.add(file)
        if os.path.isfile(file) and (size := os.path.getsize(file)) in sizes:
            with open(file, "rb") as stream:
                stream.seek(max(size - _GLIMPSE, 0) // 2)
                keys.add((size, zlib.crc32(stream.read(_GLIMPSE))))
    return keys
