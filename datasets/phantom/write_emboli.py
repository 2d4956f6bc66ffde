# SPDX-License-Identifier: Apache-2.0
"""Phantom angiograms with emboli as a data set with a candidate table, in the open contract that private data use."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..splits import RULE, SPLITS, split_patients
from .chest_abdomen_ct import VERSION, Phantom, make_phantom
from .texture import stream
from .write_decathlon import write_once

SHAPE, SPACING = (128, 112, 96), (1.6, 1.6, 1.6)
"""Voxels and mm of a patient: the middle of the chest, fine enough for segmental arteries."""


def write_embolism_phantom(
    root: str | os.PathLike[str],
    num_patients: int = 8,
    seed: int = 0,
    shape: Sequence[int] | None = SHAPE,
    spacing: Sequence[float] | None = SPACING,
    validation_fraction: float = 0.25,
    test_fraction: float = 0.25,
) -> Path:
    """Write phantom angiograms of the pulmonary arteries with their candidates, or find them there.

    The folder holds ``imagesTr/`` and ``labelsTr/`` (NIfTI; the label is the number of the embolus), ``candidates.csv``
    (the open contract, with columns ``patient``, ``lesion``, the number of the embolus that a positive belongs to, and
    ``kind``), ``annotations.csv`` (each embolus once), and ``dataset.json``, a data list by patient that names both. An
    embolus has one or two positive candidates near its middle; each look-alike is a negative one.

    Args:
        root: the data set's folder; it must not exist, be empty, or hold the same data set.
        num_patients: how many, >= 1.
        seed: decides all patients and the split, >= 0.
        shape: voxels; ``None`` for what a chest needs.
        spacing: voxel sides, mm; above 2 mm few emboli can be shown.
        validation_fraction: share of the patients for validation.
        test_fraction: share of the patients for testing.

    Returns:
        The path of ``dataset.json``.

    Raises:
        FileExistsError: When the folder holds something else.
        ValueError: When an argument is out of range.
    """
    if num_patients < 1 or seed < 0:
        raise ValueError(f"expected num_patients >= 1 and seed >= 0, got {num_patients} and {seed}.")
    split_patients([], validation_fraction, test_fraction)  # refuses shares out of range before the work
    manifest = {
        "layout": "embolism",
        "version": VERSION,
        "seed": int(seed),
        "num_patients": int(num_patients),
        "shape": None if shape is None else [int(n) for n in shape],
        "spacing": None if spacing is None else [float(s) for s in spacing],
        "validation_fraction": float(validation_fraction),
        "test_fraction": float(test_fraction),
    }
    return write_once(root, manifest, _write)


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    names = [f"phantom_{number:03d}" for number in range(manifest["num_patients"])]
    shares = (manifest["validation_fraction"], manifest["test_fraction"])
    splits = split_patients(names, *shares, manifest["seed"])
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    rows: list[list[Any]] = []
    emboli: list[list[Any]] = []
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    for number, name in enumerate(names):
        patient_seed = int(np.random.SeedSequence([manifest["seed"], number]).generate_state(1)[0])
        phantom = make_phantom(patient_seed, "chest", manifest["shape"], manifest["spacing"], "pulmonary")
        own = _candidates(phantom, stream(patient_seed, "candidates"))
        rows += [[name, *place, int(lesion > 0), name, lesion or "", kind] for place, lesion, kind in own]
        emboli += [
            [name, *_lps(np.array(found.center_mm)), round(found.diameter_mm, 4), lesion]
            for lesion, found in enumerate(phantom.emboli, 1)
        ]
        paths = _write_images(folder, name, phantom)
        positives = sum(lesion > 0 for _, lesion, _ in own)
        counts = {"candidates": len(own), "positives": positives}
        entries[splits[name]].append({**paths, "patient": name, "seriesuid": name, **counts})
    for name, columns, content_rows in (
        ("candidates.csv", ["class", "patient", "lesion", "kind"], rows),
        ("annotations.csv", ["diameter_mm", "lesion"], emboli),
    ):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", *columns])
            writer.writerows(content_rows)
    content = {
        "name": "Models Genesis phantom with emboli",
        "description": "Synthetic CT angiograms of the pulmonary arteries with candidates; no patient data",
        "licence": "Apache-2.0",
        "modality": {"0": "CT"},
        "labels": {},
        "candidates": "candidates.csv",
        "annotations": "annotations.csv",
        "split_rule": RULE,
        **{key: manifest[key] for key in ("seed", "validation_fraction", "test_fraction")},
        "numTraining": len(entries["training"]),
        "numValidation": len(entries["validation"]),
        "numTest": len(entries["testing"]),
        **entries,
        "phantom": manifest,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _candidates(phantom: Phantom, rng: np.random.Generator) -> list[tuple[list[float], int, str]]:
    """List the candidates of a patient in random order: world mm LPS, number of the embolus or 0, and kind."""
    rows: list[tuple[list[float], int, str]] = []
    for lesion, embolus in enumerate(phantom.emboli, 1):
        for _ in range(int(rng.integers(1, 3))):
            way = rng.standard_normal(3)
            way *= rng.uniform(0, 0.2 * embolus.diameter_mm) / np.linalg.norm(way)
            rows.append((_lps(np.array(embolus.center_mm) + way), lesion, embolus.kind))
    rows += [(_lps(np.array(found.center_mm)), 0, found.kind) for found in phantom.lookalikes]
    return [rows[place] for place in rng.permutation(len(rows))]


def _lps(ras: NDArray[np.float64]) -> list[float]:
    return [round(float(side), 4) for side in ras * (-1, -1, 1)]


def _write_images(folder: Path, name: str, phantom: Phantom) -> dict[str, str]:
    paths = {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
    for key, array in (("image", phantom.image), ("label", phantom.embolus_mask)):
        picture = nib.Nifti1Image(array, phantom.affine)
        picture.header.set_xyzt_units("mm")
        nib.save(picture, folder / paths[key])
    return paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets phantom-emboli``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--patients", type=int, default=8, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="decides all patients and the split")
    parser.add_argument("--shape", type=int, nargs=3, metavar="N", default=SHAPE, help="voxels")
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM", default=SPACING, help="voxel sides")
    parser.add_argument("--validation-fraction", type=float, default=0.25, help="share of the patients")
    parser.add_argument("--test-fraction", type=float, default=0.25, help="share of the patients")


def run(arguments: argparse.Namespace) -> int:
    """Write the data set that the command line names, and say where it is."""
    names = ("seed", "shape", "spacing", "validation_fraction", "test_fraction")
    options = {name: getattr(arguments, name) for name in names}
    print(f"written: {write_embolism_phantom(arguments.out, arguments.patients, **options)}")
    return 0
