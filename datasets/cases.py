# SPDX-License-Identifier: Apache-2.0
"""The scans and cases that a bundle trains on, measures and predicts: those of a data list, or of a folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..transforms.brats_regions import check_brats_convention
from .channels import choose_sequences, listed_channels, order_channels
from .datalist import PASSED_OVER, DatasetSummary, read_datalist, resolve_paths
from .io.json_file import read_json
from .io.scan_header import paths_of
from .layouts.brats import MODALITIES, brats_images, list_brats
from .layouts.image_folder import list_folder
from .layouts.label_maps import MOST_VALUES
from .layouts.lits import list_lits
from .layouts.luna16 import FOLDS, find_subsets, list_luna16
from .layouts.msd import list_msd
from .layouts.nnunet_raw import is_nnunet_dataset, list_nnunet, nnunet_images, read_nnunet_dataset
from .loading.stored_scans import load_stored_entries
from .splits import SPLITS

logger = logging.getLogger(__name__)

Layout = Literal["lits", "lidc", "brats", "msd"]


def load_datalist(
    datalist: str | Path | None,
    dataset_dir: str | Path | None = None,
    key: str = "training",
    with_label: bool = False,
    store: str | None = None,
    **rules: Any,
) -> list[dict[str, Any]]:
    """Give the scans of one split: of a data list, of a folder that is looked through and split, or of a store.

    Args:
        datalist: JSON file in the layout of the Medical Segmentation Decathlon; ``None`` looks through ``dataset_dir``
            and splits it, see :func:`build_datalist`.
        dataset_dir: folder that relative paths start from, by default the JSON file's own.
        key: the split, ``"training"``, ``"validation"`` or ``"testing"``, or another list of the file.
        with_label: whether to leave out the entries without a ``label``, which a warning names.
        store: path or URL of a store of prepared scans, whose scans are given instead, whether or not their files are
            here; ``datalist`` says which list, if the store was made of several.
        rules: how ``dataset_dir`` is looked through, see :class:`~models_genesis.datasets.FolderRules`.

    Returns:
        The entries, each a dictionary with the absolute path (or paths) of its ``image``, and of its ``label`` if it
        has one.

    Raises:
        FileNotFoundError: When the data list, or images or labels that it names, are missing.
        ValueError: When the file is no such data list, lacks the split, or names no label with ``with_label``.
    """
    if store is not None:
        return load_stored_entries(store, datalist, key)
    if datalist is not None:
        return read_datalist(datalist, dataset_dir, key, with_label)
    if dataset_dir is None:
        raise ValueError("expected a data list or a dataset_dir, found neither.")
    found = build_datalist(dataset_dir, **rules)
    if not found[key]:
        numbers = ", ".join(f"{len(found[split])} in {split}" for split in SPLITS)
        raise ValueError(
            f"{dataset_dir}: expected scans for {key}, found {numbers}: without a data list a folder is split by"
            " patient; name another split, or a data list (--datalist)"
        )
    return resolve_paths(found[key], Path(dataset_dir), f"{dataset_dir}")


def build_datalist(
    dataset_dir: str | Path, layout: Literal["auto", "folder", "luna16"] = "auto", **rules: Any
) -> dict[str, Any]:
    """Look through a folder and build its data list, as the command line does.

    Args:
        dataset_dir: the folder.
        layout: ``"luna16"`` splits by the folds of LUNA16, ``"folder"`` by patient; ``"auto"`` takes the first where
            the folds 0 to 6 are there, and says so.
        rules: see :class:`~models_genesis.datasets.FolderRules`; for ``"luna16"`` see
            :func:`~models_genesis.datasets.list_luna16`.

    Returns:
        The data list with paths relative to the folder.

    Raises:
        FileNotFoundError: When the folder is missing.
        ValueError: When it holds nothing to train on, or LUNA16 is given the rules of a folder.
    """
    subsets = find_subsets(Path(dataset_dir))
    if layout == "auto":
        layout = "luna16" if {*FOLDS["training"], *FOLDS["validation"]} <= set(subsets) else "folder"
        logger.info("%s: read as %s.", dataset_dir, "LUNA16, split by fold" if layout == "luna16" else "any folder")
        if layout == "folder" and subsets:
            # a part of LUNA16: its folders are folds, not patients
            rules = {"patient_pattern": r"([^/]+)\.mhd$", **rules}
    if layout == "luna16" and (others := sorted(set(rules) - {*SPLITS, "min_size"})):
        raise ValueError(
            f"{dataset_dir}: LUNA16 is split by its folds: expected {', '.join(SPLITS)} or min_size, found"
            f" {', '.join(others)}; layout 'folder' takes the rules of a folder."
        )
    summary = list_luna16(dataset_dir, **rules) if layout == "luna16" else list_folder(dataset_dir, **rules)
    for line in summary.table().splitlines():
        logger.info(line)
    summary.warn_of_passed_over()
    return summary.datalist()


def load_labelled_cases(
    layout: Layout,
    datalist: str | Path | None,
    dataset_dir: str | Path,
    key: str = "training",
    expected: Mapping[str, Any] | None = None,
    channels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Give the labelled cases of one split.

    Args:
        layout: how ``dataset_dir`` is laid out, where there is no data list.
        datalist: a data list of ``python -m models_genesis.datasets LAYOUT``; None lists ``dataset_dir``.
        dataset_dir: folder that the list's relative paths start from.
        key: the split, ``"training"``, ``"validation"`` or ``"testing"``.
        expected: what the data list must say where it says it, such as ``{"label_convention": "2018"}``.
        channels: names of the channels to take, for BraTS; for the Decathlon and nnU-Net those of the network, in whose
            order the files of each image are put; None for all as they are.

    Returns:
        Entries with ``image`` (a path, or one of each channel) and ``label``.

    Raises:
        FileNotFoundError: when the folder, the list or files that it names are missing.
        ValueError: when there is no labelled case, a label is no file, or the list says something else than expected,
            or has other channels.
    """
    if datalist is not None:
        cases = read_datalist(datalist, dataset_dir, key, with_label=True)
        for case in cases:
            if not paths_of(case["label"]):
                raise ValueError(f"{datalist}: {case['image']}: expected a label map, found {str(case['label'])[:80]}")
        content = read_json(datalist)
        _compare(datalist, content, expected)
        if layout == "brats" and expected and "label_convention" in expected:
            for case in cases:  # a list that was written by hand may say nothing
                check_brats_convention(_label_path(case), str(expected["label_convention"]))
        cases = _choose_channels(layout, datalist, cases, content, channels)
    else:
        summary = _list_scans(layout, dataset_dir, channels, (expected or {}).get("label_convention"))
        for line in summary.table().splitlines():
            logger.info(line)
        content = summary.datalist(absolute=True)
        _compare(dataset_dir, content, expected)
        cases = [case for case in content[key] if case.get("label")]
        if layout == "msd":
            cases = order_channels(dataset_dir, cases, content, channels)
    if not cases:
        raise ValueError(
            f"{datalist or dataset_dir}: expected labelled cases for {key}, found none; "
            f"python -m models_genesis.datasets {layout} --help tells how cases are split"
        )
    return cases


def load_cases(
    layout: Layout,
    datalist: str | Path | None,
    dataset_dir: str | Path,
    key: str = "testing",
    channels: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Give the cases to predict: images alone, whether or not they have labels.

    Without a data list these are all images below ``dataset_dir``, broken ones included: they are for the run to
    report, not to be dropped unseen. Files that are called like label maps are left out. For BraTS the files of a case
    are put together by their names, and so are those of ``imagesTs`` in a data set of nnU-Net.

    Args:
        layout: see :func:`load_labelled_cases`.
        datalist: a data list; None looks through ``dataset_dir``.
        dataset_dir: folder that relative paths start from.
        key: the split of the data list.
        channels: see :func:`load_labelled_cases`.

    Returns:
        Entries with ``image``.

    Raises:
        FileNotFoundError: when the folder, the list or files that it names are missing.
        ValueError: when there is no image, or the list has other channels.
    """
    if datalist is not None:
        content = read_json(datalist) if Path(datalist).is_file() else {}
        cases = _choose_channels(layout, datalist, read_datalist(datalist, dataset_dir, key), content, channels)
    else:
        cases = _images(layout, dataset_dir, channels)
    if not cases:
        raise ValueError(f"{datalist or dataset_dir}: expected images, found none for {key}")
    return [{name: value for name, value in case.items() if name != "label"} for case in cases]


def _images(layout: Layout, dataset_dir: str | Path, channels: Sequence[str] | None) -> list[dict[str, Any]]:
    root = Path(dataset_dir).resolve()
    if layout == "brats":
        return [scan.entry(root) for scan in brats_images(dataset_dir, MODALITIES if channels is None else channels)]
    if layout == "msd" and _is_nnunet(dataset_dir):
        names = read_nnunet_dataset(root / "dataset.json").channels
        cases = [scan.entry(root) for scan in nnunet_images(dataset_dir)]
        return order_channels(dataset_dir, cases, {"modality": dict(enumerate(names))}, channels)
    summary = list_folder(dataset_dir, min_size=(1, 1, 1), modality="any")
    summary.warn_of_passed_over()
    return [scan.entry(root) for scan in summary.scans if scan.reason not in PASSED_OVER]


def _is_nnunet(root: str | Path) -> bool:
    """Tell a data set of nnU-Net v2 by its ``dataset.json``."""
    path = Path(root) / "dataset.json"
    try:
        return path.is_file() and is_nnunet_dataset(read_json(path))
    except ValueError:
        return False  # who needs the file says what is wrong with it


def _label_path(case: Mapping[str, Any]) -> str:
    """Give the end of a label map's path, which names the sub-challenge."""
    return "/".join(Path(str(case["label"])).parts[-4:])


def _list_scans(
    layout: Layout, root: str | Path, channels: Sequence[str] | None, convention: Any = None
) -> DatasetSummary:
    """List a folder as its layout asks."""
    if layout == "lits":
        return list_lits(root)
    if layout == "brats":
        return list_brats(root, MODALITIES if channels is None else channels, expected=convention)
    if layout == "msd":
        return list_nnunet(root) if _is_nnunet(root) else list_msd(root)
    raise ValueError(
        f"{root}: expected a data list, for the cubes must be cut first: python -m models_genesis.datasets {layout} "
        "--root RAW --out DATALIST, then --datalist DATALIST"
    )


def _choose_channels(
    layout: Layout,
    source: str | Path,
    cases: list[dict[str, Any]],
    content: Mapping[str, Any],
    channels: Sequence[str] | None,
) -> list[dict[str, Any]]:
    choose = order_channels if layout == "msd" else choose_sequences
    return choose(source, cases, content, channels)


def _compare(source: str | Path, content: Mapping[str, Any], expected: Mapping[str, Any] | None) -> None:
    for name, value in (expected or {}).items():
        if name in content and content[name] != value:
            raise ValueError(f"{source}: expected {name} {value!r}, as the bundle is set, found {content[name]!r}")


def msd_task(task: str | Path) -> dict[str, Any]:
    """Tell channels, labels and modality of a task of the Medical Segmentation Decathlon.

    Args:
        task: one of the ten, such as ``"Task09_Spleen"``; or the path of a ``dataset.json`` of the same layout or of
            nnU-Net v2, or of a data list that says labels and modality.

    Returns:
        ``name``, ``modality`` (``"CT"`` or ``"MR"``), ``in_channels``, ``channels`` (their names in order), ``labels``
        (names by value, background first),
        ``out_channels``, ``regions`` (label values by name, without the background) and ``tolerance_mm`` of the surface
        Dice as the challenge has it (2 mm where the task is not one of the ten).

    Raises:
        ValueError: for another name, or a ``dataset.json`` whose labels are not numbered from 0 without a gap.
        FileNotFoundError: when the ``dataset.json`` is missing.

    Example:
        >>> msd_task("Task09_Spleen")["regions"], msd_task("Task05_Prostate")["channels"]
        ({'spleen': [1]}, ['T2', 'ADC'])
    """
    name = str(task)
    if name in MSD_TASKS:
        modality, channels, names, tolerance = MSD_TASKS[name]
    elif name.endswith(".json"):
        name, modality, channels, names = _read_task(Path(task))
        tolerance = next((each[3] for key, each in MSD_TASKS.items() if key.lower().endswith(f"_{name.lower()}")), 2.0)
    else:
        raise ValueError(f"task: expected one of {list(MSD_TASKS)} or the path of a dataset.json, found {name!r}")
    if len(names) > MOST_VALUES:
        raise ValueError(f"{task}: expected up to {MOST_VALUES} labels, which are kept as bytes, found {len(names)}")
    return {
        "name": name,
        "modality": modality,
        "in_channels": len(channels),
        "channels": list(channels),
        "labels": {str(value): label for value, label in enumerate(names)},
        "out_channels": len(names),
        "regions": {label: [value] for value, label in enumerate(names) if value > 0},
        "tolerance_mm": tolerance,
    }


def _read_task(path: Path) -> tuple[str, Literal["CT", "MR"], Sequence[str], Sequence[str]]:
    content = read_json(path, "the description of a task")
    if is_nnunet_dataset(content):
        dataset = read_nnunet_dataset(path)
        return dataset.name, _modality(dataset.channels), dataset.channels, tuple(dataset.labels.values())
    try:
        labels = {int(value): str(label) for value, label in content["labels"].items()}
        content["modality"].values()
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected 'labels' and 'modality' as names by number ({error!r})") from error
    if sorted(labels) != list(range(len(labels))):
        raise ValueError(f"{path}: expected labels 0, 1, 2, ... without a gap, found {sorted(labels)}")
    channels = listed_channels(path, content)
    names = tuple(labels[value] for value in sorted(labels))
    return str(content.get("name", path.parent.name)), _modality(channels), channels, names


def _modality(channels: Sequence[str]) -> Literal["CT", "MR"]:
    """Tell by the names of the channels; nnU-Net takes ``ct`` for CT too."""
    return "CT" if all("CT" in each or each.casefold() == "ct" for each in channels) else "MR"


_Task = tuple[Literal["CT", "MR"], Sequence[str], Sequence[str], float]

MSD_TASKS: dict[str, _Task] = {
    "Task01_BrainTumour": (
        "MR", ("FLAIR", "T1w", "t1gd", "T2w"), ("background", "edema", "non-enhancing tumor", "enhancing tumour"), 5.0
    ),
    "Task02_Heart": ("MR", ("MRI",), ("background", "left atrium"), 4.0),
    "Task03_Liver": ("CT", ("CT",), ("background", "liver", "cancer"), 7.0),
    "Task04_Hippocampus": ("MR", ("MRI",), ("background", "Anterior", "Posterior"), 1.0),
    "Task05_Prostate": ("MR", ("T2", "ADC"), ("background", "PZ", "TZ"), 4.0),
    "Task06_Lung": ("CT", ("CT",), ("background", "cancer"), 2.0),
    "Task07_Pancreas": ("CT", ("CT",), ("background", "pancreas", "cancer"), 5.0),
    "Task08_HepaticVessel": ("CT", ("CT",), ("background", "Vessel", "Tumour"), 3.0),
    "Task09_Spleen": ("CT", ("CT",), ("background", "spleen"), 3.0),
    "Task10_Colon": ("CT", ("CT",), ("background", "colon cancer primaries"), 4.0),
}  # fmt: skip
"""The ten tasks as the challenge has them: modality, channels, labels from 0, tolerance of the surface Dice in mm."""
