# SPDX-License-Identifier: Apache-2.0
"""Data lists in the layout of the Medical Segmentation Decathlon: summaries to lists, written, read and checked."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .io.atomic_write import atomic_text
from .io.csv_file import printable, safe_cell
from .io.json_file import read_json
from .io.scan_header import ScanHeader, paths_of, split_series
from .splits import SPLITS

logger = logging.getLogger(__name__)

NAME_EXCLUDED = "name excluded"
"""Reason of scans that are passed over because they are called as label maps are."""

OWN_RESULT = "written by a bundle"
"""Reason of files that are passed over because a bundle wrote them, as a prediction or a restored scan."""

PASSED_OVER = {NAME_EXCLUDED: "they are called as label maps are", OWN_RESULT: "a bundle wrote them"}
"""What may be no scan at all, and why."""

DECATHLON_TEST = "test"
"""What the Decathlon calls its list of test images, which have no labels."""

PATH_KEYS = ("image", "label")
"""Keys of an entry that hold paths; a label that is no text, such as the number of a class, is left as it is."""


def made_by() -> str:
    """Name the package and its version; in a packed bundle this code belongs to the bundle's own ``scripts``."""
    installed = __name__.split(".")[0] == "models_genesis"
    return f"models-genesis {version('models-genesis')}" if installed else "models-genesis, packed in a bundle"


def smaller_than(shape: Sequence[int], least: Sequence[int]) -> str:
    """Say what is wrong with a scan that is too small for a cube.

    Args:
        shape: its voxels along each axis.
        least: how many are needed.

    Returns:
        What was expected and what was found; empty where it is large enough.

    Example:
        >>> smaller_than((512, 512, 20), (64, 64, 32)), smaller_than((64, 64, 32), (64, 64, 32))
        ('expected at least 64 x 64 x 32 voxels, found 512 x 512 x 20', '')
    """
    if all(size >= needed for size, needed in zip(shape, least, strict=True)):
        return ""
    expected, found = (" x ".join(map(str, sizes)) for sizes in (least, shape))
    return f"expected at least {expected} voxels, found {found}"


@dataclass(frozen=True)
class ScanRecord:
    """One scan that was found, and its status.

    Attributes:
        image: path, relative to the root with forward slashes; ``folder::series`` for one DICOM series of several;
            several paths where each channel has its own file.
        patient: name that keeps a patient's scans in one split.
        split: the split it goes to; ``""`` where it is left out.
        reason: short reason for leaving it out; ``""`` where it is kept.
        detail: what was expected and what was found.
        shape: voxels along each axis, as ``"512 x 512 x 133"``.
        spacing: mm along each axis.
        label: path of the label map, relative to the root; ``""`` where there is none.
        facts: what else the data list says of the scan.
    """

    image: str | tuple[str, ...]
    patient: str = ""
    split: str = ""
    reason: str = ""
    detail: str = ""
    shape: str = ""
    spacing: str = ""
    label: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The scan's path, that of the first channel where each has its own file."""
        return self.image if isinstance(self.image, str) else self.image[0]

    def entry(self, root: Path | None = None) -> dict[str, Any]:
        """Write the scan as an entry of a data list, with absolute paths where a root is given."""

        def join(path: str) -> str:
            return path if root is None else str(root / path)

        image = join(self.image) if isinstance(self.image, str) else [join(path) for path in self.image]
        label = {"label": join(self.label)} if self.label else {}
        return {"image": image, **label, "patient": self.patient, **self.facts}

    @staticmethod
    def geometry(header: ScanHeader) -> dict[str, Any]:
        """Write a header's shape and spacing as text."""
        return {
            "shape": " x ".join(map(str, header.shape)),
            "spacing": " x ".join(f"{side:.4g}" for side in header.spacing),
        }


@dataclass(frozen=True)
class DatasetSummary:
    """What was found below a folder.

    Attributes:
        root: the folder.
        scans: all scans found, kept and left out.
        notes: warnings about the whole, such as a missing subset.
        header: what the data list says besides its entries.
    """

    root: Path
    scans: Sequence[ScanRecord]
    notes: Sequence[str]
    header: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Leave out scans whose names no list, log or report could hold."""
        object.__setattr__(self, "scans", [_with_readable_name(scan) for scan in self.scans])

    def datalist(self, absolute: bool = False) -> dict[str, Any]:
        """Build the data list.

        Args:
            absolute: whether paths are absolute instead of relative to the root.

        Returns:
            The list as ``monai.data.load_decathlon_datalist`` reads it (``is_segmentation=False`` where there are no
            labels), with the splits ``training``, ``validation`` and ``testing``.

        Raises:
            ValueError: When nothing is left for training.
        """
        entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for scan in self.scans:
            if scan.split:
                entries[scan.split].append(scan.entry(self.root.resolve() if absolute else None))
        if not entries["training"]:
            reasons = Counter(scan.reason for scan in self.scans if scan.reason)
            found = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common()) or "no scans at all"
            raise ValueError(f"{self.root}: expected scans to train on, found {found}.")
        return {
            "labels": {},
            **self.header,
            "numTraining": len(entries["training"]),
            "numValidation": len(entries["validation"]),
            "numTest": len(entries["testing"]),
            "made_by": made_by(),
            **entries,
        }

    def table(self, names: int = 5) -> str:
        """Write a summary for people: counts by split and by reason, with the first names of those left out."""
        lines = [f"{self.root}: {len(self.scans)} scans found"]
        for split in SPLITS:
            kept = [scan for scan in self.scans if scan.split == split]
            patients = len({scan.patient for scan in kept})
            lines.append(f"  {split:<28}{len(kept):>7} scans of {patients} patients")
        for reason, number in Counter(scan.reason for scan in self.scans if scan.reason).most_common():
            lines.append(f"  left out, {reason:<18}{number:>7}")
            left_out = [scan for scan in self.scans if scan.reason == reason]
            lines += [f"      {scan.name}: {scan.detail}" for scan in left_out[:names]]
            if number > names:
                lines.append(f"      and {number - names} more")
        return printable("\n".join(lines + [f"  note: {note}" for note in self.notes]))

    def warn_of_passed_over(self) -> None:
        """Log which files are passed over as no scans: one of them may be wanted after all."""
        for reason, why in PASSED_OVER.items():
            names = [scan.name for scan in self.scans if scan.reason == reason]
            if names:
                logger.warning(
                    "%s: %d of %d scans are passed over, since %s; name them in a data list to use them:\n  %s",
                    self.root, len(names), len(self.scans), why, "\n  ".join(names),
                )  # fmt: skip

    def write_report(self, path: str | Path) -> None:
        """Write one row of CSV for each scan found, whole or not at all; no cell is a formula to a spreadsheet."""
        fields = list(ScanRecord.__dataclass_fields__)
        with atomic_text(path, errors="backslashreplace") as stream:
            rows = csv.DictWriter(stream, fields)
            rows.writeheader()
            cells = ({**asdict(scan), "image": scan.name, "facts": json.dumps(scan.facts)} for scan in self.scans)
            rows.writerows({name: safe_cell(value) for name, value in row.items()} for row in cells)


def _with_readable_name(scan: ScanRecord) -> ScanRecord:
    paths = (*paths_of(scan.image), scan.label, scan.patient)
    if all(printable(path) == path for path in paths):
        return scan
    image = scan.image if isinstance(scan.image, str) else tuple(map(printable, scan.image))
    detail = scan.detail or "expected a name in UTF-8, found other bytes: rename the file or its folder"
    return replace(
        scan,
        image=printable(image) if isinstance(image, str) else image,
        patient=printable(scan.patient),
        label=printable(scan.label),
        split="",
        reason=scan.reason or "name is not UTF-8",
        detail=printable(detail),
    )


def write_datalist(path: str | Path, datalist: Mapping[str, Any]) -> None:
    """Write a data list as JSON, whole or not at all.

    Args:
        path: the file; its folder is made where it lacks.
        datalist: see :meth:`DatasetSummary.datalist`.
    """
    with atomic_text(path) as stream:
        stream.write(json.dumps(datalist, indent=2, ensure_ascii=False) + "\n")


def read_datalist(
    datalist: str | Path, dataset_dir: str | Path | None = None, key: str = "training", with_label: bool = False
) -> list[dict[str, Any]]:
    """Read one split of a data list and check that its images and labels are there.

    Args:
        datalist: JSON file in the layout of the Medical Segmentation Decathlon.
        dataset_dir: folder that relative paths start from, by default the JSON file's own.
        key: the split, ``"training"``, ``"validation"`` or ``"testing"``, or another list of the file.
        with_label: whether to leave out the entries without a ``label``, which a warning names; the class 0 is one.

    Returns:
        The entries, each a dictionary with the absolute path (or paths) of its ``image``, and of its ``label`` if it
        has one. A label of another kind, such as the number of a class, is given as it is.

    Raises:
        FileNotFoundError: When the data list, or images or labels that it names, are missing.
        ValueError: When the file is no such data list, lacks the split, or names no label with ``with_label``.
    """
    path = Path(datalist)
    content = read_json(path, "a data list")
    entries = content.get(key)
    if not isinstance(entries, list):
        found = [name for name, value in content.items() if isinstance(value, list)]
        raise ValueError(f"{path}: expected a list named {key!r}, found {found}.")
    # MSD lists its test images as bare paths
    entries = [{"image": entry} if isinstance(entry, str) else entry for entry in entries]
    for number, entry in enumerate(entries):
        if not _has_image(entry):
            raise ValueError(f"{path}: expected an 'image' in entry {number} of {key!r}, found {str(entry)[:80]}.")
    if with_label:
        entries = _labelled(entries, f"{path} ({key})")
    return resolve_paths(entries, Path(dataset_dir) if dataset_dir is not None else path.parent, f"{path} ({key})")


def _labelled(entries: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Leave out the entries without a label, and name them: a key may be misspelt."""
    labelled = [entry for entry in entries if has_label(entry)]
    if entries and not labelled:
        raise ValueError(f"{name}: expected labels, found none in {len(entries)} entries.")
    if len(labelled) < len(entries):
        others = [entry for entry in entries if not has_label(entry)]
        shown = [f"{paths_of(entry['image'])[0]}, whose keys are {', '.join(map(str, entry))}" for entry in others[:5]]
        shown += [f"and {len(others) - 5} more"] if len(others) > 5 else []
        logger.warning(
            "%s: %d of %d entries have no 'label' and are left out:\n  %s",
            name, len(others), len(entries), printable("\n  ".join(shown)),
        )  # fmt: skip
    return labelled


def read_all_splits(datalist: str | Path, dataset_dir: str | Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Read every list of a file whose entries have images, whatever it is called; others are named in a warning.

    The Decathlon calls its test images ``"test"``, and lists them as bare paths.

    Args:
        datalist: see :func:`read_datalist`.
        dataset_dir: see there.

    Returns:
        Entries by the list's name: our splits first, then the others in the file's order; no empty list.

    Raises:
        FileNotFoundError: See :func:`read_datalist`.
        ValueError: See there; or when the file has no list of images.
    """
    content = read_json(datalist, "a data list")
    known = (*SPLITS, DECATHLON_TEST)
    lists = [key for key in dict.fromkeys((*known, *content)) if isinstance(content.get(key), list) and content[key]]
    images = [key for key in lists if key in known or any(_has_image(entry) for entry in content[key])]
    if ignored := [key for key in lists if key not in images]:
        logger.warning("%s: ignored, since no entry has an image: %s", datalist, printable(", ".join(ignored)))
    if not images:
        raise ValueError(f"{datalist}: expected scans in one of {', '.join(known)}, found none.")
    return {key: read_datalist(datalist, dataset_dir, key) for key in images}


def _has_image(entry: Any) -> bool:
    return isinstance(entry, dict) and bool(paths_of(entry.get("image")))


def has_label(entry: Mapping[str, Any]) -> bool:
    """Say whether an entry has a label: files, or the number of a class, which may be 0.

    Example:
        >>> [has_label({"label": label}) for label in ("a.nii.gz", 0, "", None)]
        [True, True, False, False]
    """
    return entry.get("label") not in (None, "", [])


def resolve_paths(entries: list[dict[str, Any]], root: Path, name: str) -> list[dict[str, Any]]:
    """Join the paths of images and labels to a root, and check that they are there.

    Args:
        entries: entries of a data list.
        root: folder that relative paths start from.
        name: what messages call the list.

    Returns:
        The entries with absolute paths.

    Raises:
        FileNotFoundError: When images or labels are missing; it names the first of them.
    """

    def join(path: str | list[str]) -> str | list[str]:
        if isinstance(path, str):
            return os.path.normpath(root.absolute() / path)
        return [os.path.normpath(root.absolute() / part) for part in path]

    resolved = [
        {**entry, **{key: join(entry[key]) for key in PATH_KEYS if paths_of(entry.get(key))}} for entry in entries
    ]
    paths = [path for entry in resolved for key in PATH_KEYS for path in paths_of(entry.get(key))]
    # os.path, since Path raises OSError for names that no file can have
    missing = [path for path in paths if not os.path.exists(split_series(path)[0])]
    if missing:
        listed = printable("\n  ".join(missing[:5]))
        kind = "images and labels" if any(paths_of(entry.get("label")) for entry in entries) else "images"
        raise FileNotFoundError(f"{name}: {len(missing)} of {len(paths)} {kind} are missing, the first:\n  {listed}")
    return resolved
