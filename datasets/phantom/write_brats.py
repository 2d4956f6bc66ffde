# SPDX-License-Identifier: Apache-2.0
"""Write the brain phantom's patients as a data set in the layout of BraTS 2018, once."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ...transforms.brats_regions import BRATS_LABELS
from ..layouts.brats import MODALITIES
from .brain_mr import BRAIN_SHAPE, BRAIN_VERSION, make_brain_phantom
from .write_decathlon import check_patients, write_once


def write_brain_phantom(
    root: str | os.PathLike[str],
    num_patients: int = 8,
    seed: int = 0,
    shape: Sequence[int] = BRAIN_SHAPE,
    spacing: Sequence[float] = (2.0, 2.0, 2.0),
    validation_fraction: float = 0.25,
) -> Path:
    """Write a data set of phantom patients, or return the one that is already there.

    The folder appears whole or not at all, also when several processes write it at once. It holds
    ``<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz`` as BraTS 2018 does (NIfTI, RAS, labels 1, 2, 4), and ``dataset.json``
    (lists ``training`` and ``validation``, no patient in both, paths relative to the folder). Every fifth
    patient's tumour does not enhance and has no label 4.

    Args:
        root: the data set's folder; it must not exist, be empty, or hold the same data set.
        num_patients: how many, >= 1.
        seed: decides all patients, >= 0.
        shape: as in ``make_brain_phantom``.
        spacing: as in ``make_brain_phantom``.
        validation_fraction: share of the patients in ``validation``, in [0, 1), rounded; the last ones.

    Returns:
        the path of ``dataset.json``.

    Raises:
        FileExistsError: if the folder holds something else: other files, or a phantom of other arguments or version.
        ValueError: for arguments out of range.
    """
    check_patients(num_patients, seed, validation_fraction)
    manifest = {
        "version": BRAIN_VERSION,
        "part": "brain",
        "seed": int(seed),
        "num_patients": int(num_patients),
        "shape": [int(n) for n in shape],
        "spacing": [float(s) for s in spacing],
        "validation_fraction": float(validation_fraction),
    }
    return write_once(root, manifest, _write)


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    count = manifest["num_patients"]
    entries = [_write_patient(folder, number, manifest) for number in range(count)]
    held_out = round(count * manifest["validation_fraction"])
    content = {
        "name": "Models Genesis brain phantom",
        "description": "Synthetic MR of the brain with a tumour of three parts; no patient data",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {str(number): name for number, name in enumerate(MODALITIES)},
        "labels": {str(value): name for value, name in BRATS_LABELS["2018"].items()},
        "label_convention": "2018",
        "in_channels": len(MODALITIES),
        "out_channels": 3,
        "numTraining": count - held_out,
        "numValidation": held_out,
        "numTest": 0,
        "training": entries[: count - held_out],
        "validation": entries[count - held_out :],
        "testing": [],
        "phantom": manifest,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_patient(folder: Path, number: int, manifest: dict[str, Any]) -> dict[str, Any]:
    seed = int(np.random.SeedSequence([manifest["seed"], number]).generate_state(1)[0])
    phantom = make_brain_phantom(seed, manifest["shape"], manifest["spacing"], enhancing=number % 5 != 4)
    name = f"Phantom_{number:03d}"
    (folder / name).mkdir()
    paths = {part: f"{name}/{name}_{part}.nii.gz" for part in (*MODALITIES, "seg")}
    for part, path in paths.items():
        picture = nib.Nifti1Image(phantom.label if part == "seg" else phantom.images[part], phantom.affine)
        picture.header.set_xyzt_units("mm")
        nib.save(picture, folder / path)
    return {"image": [paths[part] for part in MODALITIES], "label": paths["seg"], "patient": name}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets phantom-brain``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--patients", type=int, default=8, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="decides all patients")
    parser.add_argument("--shape", type=int, nargs=3, metavar="N", default=BRAIN_SHAPE, help="voxels")
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM", default=(2.0, 2.0, 2.0), help="voxel sides")
    parser.add_argument("--validation-fraction", type=float, default=0.25, help="share of the patients")


def run(arguments: argparse.Namespace) -> int:
    """Write the data set, or find it there, say where its data list lies, and return the exit code, 0."""
    path = write_brain_phantom(
        arguments.out,
        arguments.patients,
        arguments.seed,
        arguments.shape,
        arguments.spacing,
        arguments.validation_fraction,
    )
    print(f"written: {path}")
    return 0
