# SPDX-License-Identifier: Apache-2.0
"""Data of the studies in ``docs/evidence``: splits by patient, and files where the bundles need other ones.

``hippocampus``, ``hippocampus_people`` and ``nodule_crops`` write data lists alone; ``nodules`` and ``candidates``
write NIfTI files and their data list.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import zoom

SEEN = ("LIDC-IDRI-0001", "LIDC-IDRI-0314")
"""Patients of ``lidc/voi`` whose scans are among the unlabelled ones for pretraining: never test patients."""

FIELD = (40, 40, 16)
"""Voxels of a nodule's field."""


def ordered(patients: Sequence[str], seed: int | str) -> list[str]:
    """Put patients in an order that depends on the seed and on their names alone."""
    return sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}/{patient}".encode()).hexdigest())


def write_json(path: Path, content: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def unlabelled(entries: Sequence[dict[str, Any]], seed: int) -> dict[str, list[dict[str, Any]]]:
    """Make the lists of a pretraining on the images of training patients, every 15th patient for its validation."""
    patients = ordered(sorted({entry["patient"] for entry in entries}), seed)
    held_out = set(patients[: len(patients) // 15])
    images = [{"image": entry["image"], "patient": entry["patient"]} for entry in entries]
    return {
        "training": [each for each in images if each["patient"] not in held_out],
        "validation": [each for each in images if each["patient"] in held_out],
    }


def by_person(source: Path, out: Path, seed: int, share: float = 0.28) -> None:
    """Split the hippocampus task by person (:func:`person_of`), who is the list's ``patient``.

    Next to the list lie that of the pretraining on the training people's images, and that of its probe: 8 of these
    people with labels to fit to, 12 others to score on.

    Args:
        source: folder of the task.
        out: the data list to write.
        seed: seed of the split.
        share: share of the people for testing.
    """
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    entries = [
        {
            **{key: Path(each[key]).as_posix() for key in ("image", "label")},
            "patient": f"person_{person_of(Path(each['image']).name.removesuffix('.nii.gz')):03d}",
        }
        for each in sorted(content["training"], key=lambda each: str(each["image"]))
    ]
    people = ordered(sorted({entry["patient"] for entry in entries}), seed)
    tested = set(people[: round(share * len(people))])
    lists = {
        "training": [each for each in entries if each["patient"] not in tested],
        "testing": [each for each in entries if each["patient"] in tested],
    }
    header = {key: content[key] for key in ("name", "licence", "reference", "modality")}
    header["split_rule"] = f"people, files 2k - 1 and 2k, by sha256('{seed}/person_KKK'), {share:.0%} for testing"
    write_json(out, {**header, "labels": content["labels"], **lists})
    pretraining = unlabelled(lists["training"], seed)
    stem = out.name.split(".", 1)[0]
    write_json(out.with_name(f"{stem}.pretraining.json"), {**header, **pretraining})
    trained = ordered(sorted({entry["patient"] for entry in pretraining["training"]}), "probe")
    probe = {
        key: [each for each in lists["training"] if each["patient"] in chosen]
        for key, chosen in (("training", trained[:8]), ("validation", trained[8:20]))
    }
    write_json(out.with_name(f"{stem}.probe.json"), {**header, "labels": content["labels"], **probe})


def with_validation(lists: dict[str, list[dict[str, Any]]], share: float = 0.1) -> dict[str, list[dict[str, Any]]]:
    """Take a share of the training patients for validation, for a training that chooses its weights: those to ship."""
    patients = ordered(sorted({entry["patient"] for entry in lists["training"]}), "ship")
    entries = sorted(lists["training"], key=lambda entry: patients.index(entry["patient"]))
    held_out = set(patients[: int(share * len(patients))])
    return {
        "training": [each for each in entries if each["patient"] not in held_out],
        "validation": [each for each in entries if each["patient"] in held_out],
        "testing": lists["testing"],
    }


def person_of(name: str) -> int:
    """Tell the person whom a crop of the hippocampus task is of: its two sides have numbers 2k - 1 and 2k.

    The task does not say so. Its 394 crops are of 195 people. Of the crops at hand, those of an odd and the next even
    number differ by 0.027 in the logarithm of their median intensity (median of 54 pairs, at most 0.078), those of an
    even and the next odd number by 0.31 (55 pairs).
    """
    return (int(name.rsplit("_", 1)[1]) + 1) // 2


def hippocampus(source: Path, out: Path, seed: int, test: int = 58) -> None:
    """Split the hippocampus task of the Decathlon by file, as was done before :func:`person_of` was known.

    The images of the training patients alone are listed for pretraining in ``hippocampus.pretraining.json`` next to it,
    the list of the weights to ship is ``hippocampus.weights.json``, and ``hippocampus.tested.json`` has the crops that
    these weights are tested on: those of other people.

    Args:
        source: folder of the task.
        out: the data list to write.
        seed: seed of the split.
        test: number of patients for testing.
    """
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    entries = {
        Path(each["image"]).name.removesuffix(".nii.gz"): {
            key: Path(each[key]).as_posix() for key in ("image", "label")
        }
        for each in content["training"]
    }
    names = ordered(list(entries), seed)
    header = {key: content[key] for key in ("name", "licence", "reference", "modality")}
    header["split_rule"] = f"patients by sha256('{seed}/NAME'), the first {test} for testing"
    parts = {"testing": names[:test], "training": names[test:]}
    lists = {key: [{**entries[name], "patient": name} for name in sorted(each)] for key, each in parts.items()}
    write_json(out, {**header, "labels": content["labels"], **lists})
    write_json(out.with_name("hippocampus.pretraining.json"), {**header, **unlabelled(lists["training"], seed)})
    chosen = with_validation(lists)
    write_json(out.with_name("hippocampus.weights.json"), {**header, "labels": content["labels"], **chosen})
    seen = {person_of(entry["patient"]) for part in ("training", "validation") for entry in chosen[part]}
    others = [entry for entry in lists["testing"] if person_of(entry["patient"]) not in seen]
    header["split_rule"] += "; of these the crops of people whose other side neither trains nor validates"
    write_json(out.with_name("hippocampus.tested.json"), {**header, "labels": content["labels"], "testing": others})


def nodules(source: Path, out: Path, seed: int) -> None:
    """Bring all nodules of ``lidc/voi`` to one field, LUNA16's folds 0 to 6 for training and 7 and 8 for testing.

    The crops are as large as their nodules ask for: 20 voxels of margin in plane and next to none along z. A network
    that sees where a crop ends knows the nodule's box. So each gives a window of 40 x 40 voxels in plane, which lies
    within every crop (the smallest has 43) and is never padded, about the crop's middle moved by up to 4 voxels at
    random; and along z the whole crop, stretched to 16 planes, so that the field ends where the crop ends for every
    nodule, thin or thick. A nodule larger than the window is cut.

    Args:
        source: ``lidc/voi``.
        out: folder of the files.
        seed: seed of the moves.
    """
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folds = defaultdict(set)
    for row in rows:
        folds[row["patient_id"]].add(int(row["luna16_fold"]))
    with ThreadPoolExecutor() as pool:
        voxels = list(pool.map(partial(_field, source, out, seed), [row["file"] for row in rows]))
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    left_out = {}
    for row, count in zip(rows, voxels, strict=True):
        patient, test = row["patient_id"], max(folds[row["patient_id"]]) >= 7
        entry = {"image": f"image/{row['file']}", "label": f"label/{row['file']}", "patient": patient}
        if count == 0:
            left_out[row["file"]] = "no voxel of the nodule lies in the field"
        elif test and (min(folds[patient]) < 7 or patient in SEEN):
            left_out[row["file"]] = "the patient is in training folds, or was seen by the pretraining, as well"
        else:
            lists["testing" if test else "training"].append({**entry, "luna16_fold": int(row["luna16_fold"])})
    header = {
        "name": "LIDC nodules in one field",
        "licence": "CC BY 3.0, LIDC-IDRI, doi 10.7937/K9/2015.LO9QL9SX",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "nodule"},
        "field": f"{FIELD} voxels, in plane as scanned, along z the crop stretched; moves by seed {seed}",
        "left_out": left_out,
    }
    write_json(out / "dataset.json", {**header, **lists})
    write_json(out / "pretraining.json", {**header, **unlabelled(lists["training"], seed)})
    write_json(out / "weights.json", {**header, **with_validation(lists)})


def nodule_crops(source: Path, out: Path) -> None:
    """List the crops of ``lidc/voi`` as they are, for the weights of the nodules' bundle: the split of the study.

    A crop ends where its nodule ends along z, so scores on crops say nothing of finding nodules in whole scans.

    Args:
        source: ``lidc/voi``.
        out: the data list to write.
    """
    with (source / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folds = defaultdict(set)
    for row in rows:
        folds[row["patient_id"]].add(int(row["luna16_fold"]))
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    for row in rows:
        patient, test = row["patient_id"], max(folds[row["patient_id"]]) >= 7
        if test and (min(folds[patient]) < 7 or patient in SEEN):
            continue
        files = {"image": f"image/{row['file']}", "label": f"nodule_mask/{row['file']}"}
        lists["testing" if test else "training"].append({**files, "patient": patient})
    header = {
        "name": "LIDC nodules, crops as they are",
        "licence": "CC BY 3.0, LIDC-IDRI, doi 10.7937/K9/2015.LO9QL9SX",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "nodule"},
        "split_rule": "LUNA16's folds 7 and 8 for testing; a tenth of the other patients for validation",
    }
    write_json(out, {**header, **with_validation(lists)})


def _field(source: Path, out: Path, seed: int, name: str) -> int:
    """Write one nodule's field; give the number of its voxels."""
    volumes = [nib.load(source / folder / name) for folder in ("image", "nodule_mask")]
    shape = volumes[0].shape
    word = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    generator = np.random.default_rng(word)
    starts = []
    for side, wanted in zip(shape[:2], FIELD[:2], strict=True):
        middle = (side - wanted) / 2
        starts.append(int(np.clip(round(middle + generator.uniform(-4, 4)), 0, side - wanted)))
    window = (*(slice(start, start + wanted) for start, wanted in zip(starts, FIELD[:2], strict=True)), slice(None))
    stretch = shape[2] / FIELD[2]
    # the first and the last voxel's outer faces stay where they are
    moved = np.eye(4)
    moved[:3, 3] = (*starts, stretch / 2 - 0.5)
    moved[2, 2] = stretch
    affine = volumes[0].affine @ moved
    arrays = [np.asarray(volume.dataobj)[window].astype(np.float32) for volume in volumes]
    image, mask = (_stretched(array) for array in arrays)
    (out / "image").mkdir(parents=True, exist_ok=True)
    (out / "label").mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.clip(np.rint(image), -1024, 3071).astype(np.int16), affine), out / "image" / name)
    label = (mask >= 0.5).astype(np.uint8)
    nib.save(nib.Nifti1Image(label, affine), out / "label" / name)
    return int(label.sum())


def _stretched(array: np.ndarray) -> np.ndarray:
    """Interpolate linearly along z to the field's planes, the outer faces of the first and last voxel kept."""
    return zoom(array, (1, 1, FIELD[2] / array.shape[2]), order=1, mode="nearest", grid_mode=True)


def candidates(source: Path, out: Path) -> None:
    """Write each cube of ``lidc/fp_candidates`` as a scan with one candidate in its middle.

    All cubes are alike in shape and spacing, and are written with the same affine. ``probe.json`` has the classes for
    the probe of a pretraining: the cubes of 40 patients to fit to, those of the others to score on. ``weights.json``
    has the split of the weights to ship: a quarter of the patients for testing, a fifth of the others for validation.

    Args:
        source: ``lidc/fp_candidates``.
        out: folder of the files.
    """
    content = np.load(source / "candidates.npz")
    with (source / "candidates.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    (out / "image").mkdir(parents=True, exist_ok=True)
    entries, table, classes = [], [], {}
    for row, image, label in zip(rows, content["image"], content["label"], strict=True):
        if int(row["class"]) != int(label):
            raise ValueError(
                f"{source}: expected class {label} of cube {row['index']} in both files, found {row['class']}"
            )
        name = f"c{int(row['index']):04d}"
        nib.save(
            nib.Nifti1Image(np.ascontiguousarray(image), np.diag([-1.0, -1.0, 1.0, 1.0])),
            out / "image" / f"{name}.nii.gz",
        )
        middle = [(side - 1) / 2 for side in image.shape]  # LPS, as the affine above has x and y
        table.append([name, *middle, row["class"]])
        entries.append({"image": f"image/{name}.nii.gz", "seriesuid": name, "patient": f"p{int(row['patient']):04d}"})
        classes[name] = int(label)
    with (out / "candidates.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["seriesuid", "coordX", "coordY", "coordZ", "class"], *table])
    header = {
        "name": "LIDC nodules and bright spots that are none",
        "licence": "CC BY 3.0, LIDC-IDRI, doi 10.7937/K9/2015.LO9QL9SX; derived candidates",
        "modality": {"0": "CT"},
        "candidates": "candidates.csv",
    }
    write_json(out / "dataset.json", {**header, "training": entries})
    patients = sorted({entry["patient"] for entry in entries})
    tested = set(ordered(patients, "ship")[: len(patients) // 4])
    lists: dict[str, list[dict[str, Any]]] = {"training": [], "testing": []}
    for entry in entries:
        lists["testing" if entry["patient"] in tested else "training"].append(entry)
    write_json(out / "weights.json", {**header, **with_validation(lists, 0.2)})
    fitted = set(ordered(patients, "probe")[:40])
    probe: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for entry in entries:
        probe["training" if entry["patient"] in fitted else "validation"].append(
            {"image": entry["image"], "patient": entry["patient"], "class": classes[entry["seriesuid"]]}
        )
    write_json(out / "probe.json", {**header, **probe})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["hippocampus", "hippocampus_people", "nodules", "nodule_crops", "candidates"])
    parser.add_argument("--source", type=Path, required=True, help="folder of the data as they came")
    parser.add_argument("--out", type=Path, required=True, help="data list (hippocampus) or folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.study == "hippocampus":
        hippocampus(arguments.source, arguments.out, arguments.seed)
    elif arguments.study == "hippocampus_people":
        by_person(arguments.source, arguments.out, arguments.seed)
    elif arguments.study == "nodules":
        nodules(arguments.source, arguments.out, arguments.seed)
    elif arguments.study == "nodule_crops":
        nodule_crops(arguments.source, arguments.out)
    else:
        candidates(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
