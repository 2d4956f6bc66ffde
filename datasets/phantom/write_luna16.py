# SPDX-License-Identifier: Apache-2.0
"""The phantom's chests in the raw layout of LUNA16: ten subsets of MetaImage files, annotations and candidates."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .chest_abdomen_ct import VERSION, Phantom, make_phantom
from .labels import Label
from .texture import stream
from .write_decathlon import write_once

FLIPPED_EVERY = 3
"""Of so many scans one has its first two axes reversed, as some scans of LUNA16 have."""

CLEARANCE_MM = 12.0
"""Least distance of a negative candidate from the surface of a nodule."""

EXCLUDED = 2
"""Findings of a patient in ``annotations_excluded.csv``."""


def write_luna16_phantom(
    root: str | os.PathLike[str],
    num_patients: int = 10,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    negatives: int = 24,
) -> Path:
    """Write phantom chests as LUNA16's raw layout, or find them there.

    Patient ``n`` goes to ``subset{n % 10}``. A nodule has one to three positive candidates near its middle, as the
    challenge's merged detectors give them; negatives lie on vessels, on the pleura, on airways and in the lung. Some of
    the negatives are findings of ``annotations_excluded.csv`` too. Every third scan is flipped.

    Args:
        root: the data set's folder; it must not exist, be empty, or hold the same data set.
        num_patients: how many, >= 1; ten fill each subset with one.
        seed: decides all patients, >= 0.
        shape: as in :func:`~models_genesis.datasets.phantom.chest_abdomen_ct.make_phantom`.
        spacing: as there.
        negatives: negative candidates of a patient, at least ``EXCLUDED``.

    Returns:
        The folder, for ``python -m models_genesis.datasets luna16-candidates --root``.

    Raises:
        FileExistsError: When the folder holds something else.
        ValueError: When an argument is out of range.
    """
    if num_patients < 1 or seed < 0 or negatives < EXCLUDED:
        raise ValueError(
            f"expected num_patients >= 1, seed >= 0 and negatives >= {EXCLUDED},"
            f" got {num_patients}, {seed} and {negatives}."
        )
    manifest = {
        "layout": "LUNA16",
        "version": VERSION,
        "seed": int(seed),
        "num_patients": int(num_patients),
        "shape": None if shape is None else [int(n) for n in shape],
        "spacing": None if spacing is None else [float(s) for s in spacing],
        "negatives": int(negatives),
    }
    return write_once(root, manifest, _write).parent


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    nodules: list[list[Any]] = []
    excluded: list[list[Any]] = []
    candidates: list[list[Any]] = []
    for number in range(manifest["num_patients"]):
        patient_seed = int(np.random.SeedSequence([manifest["seed"], number]).generate_state(1)[0])
        phantom = make_phantom(patient_seed, "chest", manifest["shape"], manifest["spacing"], "none")
        uid = f"1.3.6.1.4.1.99999.{manifest['seed']}.{number:04d}"
        subset = folder / f"subset{number % 10}"
        subset.mkdir(exist_ok=True)
        write_metaimage(subset / f"{uid}.mhd", phantom, flipped=number % FLIPPED_EVERY == 1)
        rng = stream(patient_seed, "candidates")
        negative = _negatives(phantom, manifest["negatives"], rng)
        nodules += [_row(uid, np.array(nodule.center_mm), nodule.diameter_mm) for nodule in phantom.nodules]
        excluded += [_row(uid, place, -1) for place in negative[:EXCLUDED]]
        rows = [_row(uid, place, 1) for place in _positives(phantom, rng)] + [_row(uid, p, 0) for p in negative]
        candidates += [rows[place] for place in rng.permutation(len(rows))]
    write_rows(folder / "annotations.csv", "diameter_mm", nodules)
    write_rows(folder / "annotations_excluded.csv", "diameter_mm", excluded)
    write_rows(folder / "candidates_V2.csv", "class", candidates)
    content = {"name": "Models Genesis phantom in the layout of LUNA16", "licence": "Apache-2.0", "phantom": manifest}
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _row(uid: str, ras: NDArray[np.float64], value: float) -> list[Any]:
    """Make a row of a table: series, place in world mm LPS, and class or diameter."""
    last = value if isinstance(value, int) else round(float(value), 4)
    return [uid, *(round(float(side), 4) for side in ras * (-1, -1, 1)), last]


def write_rows(path: Path, last: str, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table of LUNA16: series, world coordinates, and one more column."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seriesuid", "coordX", "coordY", "coordZ", last])
        writer.writerows(rows)


def write_metaimage(path: Path, phantom: Phantom, flipped: bool = False) -> None:
    """Write a phantom's image as compressed MetaImage, which keeps geometry in LPS.

    Args:
        path: the ``.mhd`` file.
        phantom: whose image.
        flipped: whether the first two axes point to the right and to the front, with the direction that says so.
    """
    import itk

    image = phantom.image if flipped else phantom.image[::-1, ::-1]
    first = np.zeros(3) if flipped else np.array([*np.array(phantom.image.shape[:2]) - 1, 0])
    origin = (phantom.affine[:3, :3] @ first + phantom.affine[:3, 3]) * (-1, -1, 1)
    picture = itk.image_from_array(np.ascontiguousarray(image.T))
    picture.SetOrigin(origin.tolist())
    picture.SetSpacing(list(phantom.spacing))
    picture.SetDirection(np.diag([-1.0, -1, 1]) if flipped else np.eye(3))
    itk.imwrite(picture, str(path), compression=True)


def _positives(phantom: Phantom, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Draw one to three places near the middle of each nodule, world mm."""
    places = []
    for nodule in phantom.nodules:
        for _ in range(int(rng.integers(1, 4))):
            way = rng.standard_normal(3)
            way *= rng.uniform(0, 0.25 * nodule.diameter_mm) / np.linalg.norm(way)
            places.append(np.array(nodule.center_mm) + way)
    return places


def _negatives(phantom: Phantom, count: int, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Draw places away from all nodules, in turn on a vessel, on the pleura, on an airway and in the lung."""
    label = phantom.label
    lung = label == Label.LUNG
    near = ndimage.binary_dilation(lung, iterations=2)
    away = ndimage.distance_transform_edt(label != Label.NODULE, sampling=phantom.spacing) > CLEARANCE_MM
    kinds = [
        (label == Label.VESSEL) & ndimage.binary_dilation(lung),
        (label == Label.BODY) & near,
        (label == Label.AIRWAY) & ndimage.binary_dilation(lung),
        lung,
    ]
    flat = [np.flatnonzero(kind & away) for kind in kinds]
    flat = [places for places in flat if len(places)]
    if not flat:
        raise ValueError(f"phantom {phantom.seed}: expected lung away from nodules, found none in {label.shape}.")
    # shuffled once, so that no place is drawn twice while there are others
    order = [rng.permutation(places) for places in flat]
    turns = (divmod(number, len(order)) for number in range(count))
    drawn = [order[kind][turn % len(order[kind])] for turn, kind in turns]
    index = np.stack(np.unravel_index(drawn, label.shape), 1)
    return list(index @ phantom.affine[:3, :3].T + phantom.affine[:3, 3])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets phantom-luna16``."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--patients", type=int, default=10, help="number of patients")
    parser.add_argument("--seed", type=int, default=0, help="decides all patients")
    parser.add_argument("--shape", type=int, nargs=3, metavar="N", help="voxels; default: what a chest needs")
    parser.add_argument("--spacing", type=float, nargs=3, metavar="MM", help="voxel sides; default: drawn by patient")
    parser.add_argument("--negatives", type=int, default=24, help="negative candidates of a patient")


def run(arguments: argparse.Namespace) -> int:
    """Write the data set that the command line names, and say where it is."""
    names = ("seed", "shape", "spacing", "negatives")
    options = {name: getattr(arguments, name) for name in names}
    print(f"written: {write_luna16_phantom(arguments.out, arguments.patients, **options)}")
    return 0
