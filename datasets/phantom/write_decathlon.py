# SPDX-License-Identifier: Apache-2.0
"""Write the phantom's patients as a data set in the layout of the Medical Segmentation Decathlon, once."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..io.json_file import read_json
from .chest_abdomen_ct import REGIONS, VERSION, Phantom, make_phantom
from .labels import Label

logger = logging.getLogger(__name__)

# Patients take turns, so that every data set of three or more shows all contrast phases.
_PHASES = ("portal", "none", "arterial")


def write_phantom(
    root: str | os.PathLike[str],
    num_patients: int = 8,
    seed: int = 0,
    region: str = "chest_abdomen",
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    validation_fraction: float = 0.25,
    labels: Sequence[str] = (),
) -> Path:
    """Write a data set of phantom patients, or return the one that is already there.

    The folder appears whole or not at all, also when several processes write it at once. It holds ``imagesTr/``,
    ``labelsTr/`` (NIfTI, RAS, labels as in ``Label`` or as ``labels`` tells), ``dataset.json`` (lists ``training`` and
    ``validation``, no patient in both, paths relative to the folder) and ``nodules.csv`` in LUNA16's columns:
    ``seriesuid`` (the file name without ``.nii.gz``), centre in world mm **LPS**, diameter in mm.

    Args:
        root: the data set's folder; it must not exist, be empty, or hold the same data set.
        num_patients: how many, >= 1.
        seed: decides all patients, >= 0.
        region: as in ``make_phantom``.
        shape: as in ``make_phantom``.
        spacing: as in ``make_phantom``.
        validation_fraction: share of the patients in ``validation``, in [0, 1), rounded; the last ones.
        labels: names of ``Label`` to keep, e.g. ``["liver", "lesion"]``, numbered from 1 in this order; the rest is
            background. Empty keeps all, with their numbers.

    Returns:
        the path of ``dataset.json``.

    Raises:
        FileExistsError: if the folder holds something else: other files, or a phantom of other arguments or version.
        ValueError: for arguments out of range.
    """
    check_patients(num_patients, seed, validation_fraction)
    names = [label.name.lower() for label in Label]
    if len(set(labels)) < len(labels) or not set(labels) <= set(names[1:]):
        raise ValueError(f"expected labels, each once, among {', '.join(names[1:])}, got {', '.join(labels)}")
    manifest = {
        "version": VERSION,
        "seed": int(seed),
        "num_patients": int(num_patients),
        "region": region,
        "shape": None if shape is None else [int(n) for n in shape],
        "spacing": None if spacing is None else [float(s) for s in spacing],
        "validation_fraction": float(validation_fraction),
        "labels": list(labels),
    }
    return write_once(root, manifest, _write)


def check_patients(num_patients: int, seed: int, validation_fraction: float) -> None:
    """Refuse a number of phantom patients, a seed or a share for validation that is out of range."""
    if num_patients < 1 or seed < 0 or not 0 <= validation_fraction < 1:
        raise ValueError(
            "expected num_patients >= 1, seed >= 0 and validation_fraction in [0, 1), "
            f"got {num_patients}, {seed} and {validation_fraction}"
        )


def write_once(
    root: str | os.PathLike[str], manifest: dict[str, Any], write: Callable[[Path, dict[str, Any]], None]
) -> Path:
    """Write a data set of phantom patients, whole or not at all, or return the one that is already there.

    Args:
        root: the data set's folder; it must not exist, be empty, or hold the same data set.
        manifest: all that decides the content, as JSON; ``write`` puts it into ``dataset.json`` as ``"phantom"``.
        write: fills a new folder.

    Returns:
        the path of ``dataset.json``.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    folder = Path(root).resolve()
    if _holds(folder, manifest):
        return folder / "dataset.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(draft, manifest)
        # mkdtemp makes a private folder; the data set gets the rights that any new folder would have.
        draft.chmod(0o777 & ~_umask())
        try:
            os.replace(draft, folder)
        except OSError:
            # Another process was first: its data set is as good as this one, if it is the same.
            if not _holds(folder, manifest):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info("wrote %d phantom patients to %s", manifest["num_patients"], folder)
    return folder / "dataset.json"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _holds(folder: Path, manifest: dict[str, Any]) -> bool:
    """Return whether the data set is there; False for a missing or empty folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = read_json(folder / "dataset.json")["phantom"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{folder} exists but is not a phantom data set: name another folder") from error
    if found != manifest:
        raise FileExistsError(
            f"{folder} holds another phantom data set: expected {manifest}, found {found}; "
            "delete it or name another folder"
        )
    return True


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    entries, rows = [], []
    kept = [Label[name.upper()] for name in manifest["labels"]]
    numbers = {label: number for number, label in enumerate([Label.BACKGROUND, *kept] if kept else Label)}
    renumber = np.array([numbers.get(label, 0) for label in Label], np.uint8)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    count = manifest["num_patients"]
    for number in range(count):
        patient_seed = int(np.random.SeedSequence([manifest["seed"], number]).generate_state(1)[0])
        phantom = make_phantom(
            patient_seed,
            manifest["region"],
            manifest["shape"],
            manifest["spacing"],
            _PHASES[number % len(_PHASES)],
        )
        name = f"phantom_{number:03d}"
        entries.append(_write_patient(folder, name, phantom, renumber[phantom.label]))
        for nodule in phantom.nodules:
            x, y, z = nodule.center_mm
            rows.append([name, *(f"{value:.4f}" for value in (-x, -y, z, nodule.diameter_mm))])
    with open(folder / "nodules.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"])
        writer.writerows(rows)
    held_out = round(count * manifest["validation_fraction"])
    content = {
        "name": "Models Genesis phantom",
        "description": "Synthetic CT of chest and abdomen with labels; no patient data",
        "licence": "Apache-2.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(number): label.name.lower() for label, number in numbers.items()},
        "numTraining": count - held_out,
        "numValidation": held_out,
        "numTest": 0,
        "training": entries[: count - held_out],
        "validation": entries[count - held_out :],
        "test": [],
        "phantom": manifest,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_patient(folder: Path, name: str, phantom: Phantom, label: NDArray[np.uint8]) -> dict[str, str]:
    paths = {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}
    for key, array in (("image", phantom.image), ("label", label)):
        picture = nib.Nifti1Image(array, phantom.affine)
        picture.header.set_xyzt_units("mm")
        nib.save(picture, folder / paths[key])
    return {**{key: f"./{path}" for key, path in paths.items()}, "patient": name, "phase": phantom.phase}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``phantom`` to its parser.

    Args:
        parser: where to.
    """
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--patients", type=int, default=8, help="number of patients (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides all patients (default: %(default)s)")
    parser.add_argument("--region", choices=sorted(REGIONS), default="chest_abdomen", help="default: %(default)s")
    parser.add_argument("--shape", type=int, nargs=3, metavar="N", help="voxels; default: what the region needs")
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM", help="voxel sides; default: drawn by patient")
    parser.add_argument("--validation-fraction", type=float, default=0.25, help="share of patients, %(default)s")
    parser.add_argument("--labels", nargs="+", default=[], metavar="NAME", help="keep these alone, e.g. liver lesion")


def run_phantom(args: argparse.Namespace) -> int:
    """Run the command ``phantom``: write the data set, or find it there, and say where its data list lies.

    Args:
        args: what ``add_arguments`` reads.

    Returns:
        the exit code, 0.

    Raises:
        FileExistsError: as ``write_phantom``.
        ValueError: as ``write_phantom``.
    """
    path = write_phantom(
        args.out,
        args.patients,
        args.seed,
        args.region,
        args.shape,
        args.spacing,
        args.validation_fraction,
        args.labels,
    )
    print(f"written: {path}")
    return 0
