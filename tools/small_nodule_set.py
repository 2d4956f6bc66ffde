# SPDX-License-Identifier: Apache-2.0
"""Makes a small real set for the LUNA16 bundle from ready cubes of LIDC nodules, one LUNA16 scan and LUNA16 crops.

``python tools/small_nodule_set.py --cubes CUBES --luna16 LUNA16 --out OUT --seed 0`` writes

- ``OUT/cubes.json``: the cubes split by patient. A positive candidate is a nodule's centre; negatives are the densest
  places of the same cube away from the nodule, as a detector would propose vessels and pleura. Both classes come from
  the same scans, so a network cannot tell them apart by their source.
- ``OUT/other.json``: all of the LUNA16 scan and crops for testing alone. Nearly all negatives are of one scan there.

Cubes are ``.npz`` with ``image`` and ``mask`` at 1 mm, their name begins with the patient's number; crops are ``.npz``
with ``image`` (z, y, x) and a ``labels.csv`` whose class 2 is no nodule.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "class")


def dense_places(
    image: NDArray[np.int16], mask: NDArray[np.bool_], margin: int = 12, clearance_mm: float = 6.0, limit: int = 4
) -> NDArray[np.int64]:
    """Find the densest places of a cube away from its nodule.

    Args:
        image: HU at 1 mm.
        mask: the nodule.
        margin: least distance from the faces of the cube, voxels.
        clearance_mm: least distance from the nodule, mm.
        limit: largest number of places.

    Returns:
        (N, 3) voxels, the densest first, 10 mm apart.
    """
    smooth = ndimage.gaussian_filter(np.clip(image, -1000, 400).astype(np.float32), 1.5)
    allowed = ndimage.distance_transform_edt(~mask) > clearance_mm
    inner = np.zeros_like(allowed)
    inner[(slice(margin, -margin),) * 3] = True
    peaks = np.argwhere((smooth == ndimage.maximum_filter(smooth, 5)) & allowed & inner & (smooth > -700))
    peaks = peaks[np.argsort(-smooth[tuple(peaks.T)], kind="stable")]
    kept: list[NDArray[np.int64]] = []
    for peak in peaks:
        if all(np.linalg.norm(peak - other) >= 10 for other in kept):
            kept.append(peak)
    return np.array(kept[:limit], dtype=np.int64).reshape(-1, 3)


def save(folder: Path, name: str, image: NDArray[np.int16]) -> None:
    """Write an image as NIfTI of 1 mm voxels, in RAS from the origin."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), folder / f"{name}.nii.gz")


def row(name: str, voxel: NDArray, label: int) -> list[Any]:
    """Make a row of the table; the voxels are mm in RAS, the table's mm are LPS."""
    return [name, *(round(float(side), 3) for side in np.asarray(voxel) * (-1, -1, 1)), label]


def write_table(path: Path, rows: list[list[Any]]) -> None:
    """Write candidates."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def cubes_of_lidc(source: Path, out: Path, seed: int) -> None:
    """Write the cubes, their candidates and a split by patient: 55 % training, 15 % validation, 30 % testing."""
    entries, rows = [], []
    for path in sorted(source.glob("*.npz")):
        content = np.load(path)
        image, mask = content["image"], content["mask"] > 0
        save(out / "cubes", path.stem, image)
        rows.append(row(path.stem, np.argwhere(mask).mean(axis=0), 1))
        rows += [row(path.stem, place, 0) for place in dense_places(image, mask)]
        patient = path.stem.split("_")[0]
        entries.append({"image": f"cubes/{path.stem}.nii.gz", "seriesuid": path.stem, "patient": patient})
    write_table(out / "cubes.csv", rows)
    patients = np.random.default_rng(seed).permutation(sorted({entry["patient"] for entry in entries}))
    first, second = round(0.55 * len(patients)), round(0.7 * len(patients))
    parts = {"training": patients[:first], "validation": patients[first:second], "testing": patients[second:]}
    splits = {key: [entry for entry in entries if entry["patient"] in part] for key, part in parts.items()}
    write_list(out / "cubes.json", "cubes.csv", splits)


def scan_and_crops(source: Path, out: Path) -> None:
    """Write the crops, and a list of them and the scan, all for testing."""
    (scan,) = (source / "subset0").glob("*.mhd")
    with (source / "candidates_V2.csv").open() as file:
        rows: list[list[Any]] = [[line[name] for name in COLUMNS] for line in csv.DictReader(file)]
    entries = [{"image": str(scan.absolute()), "seriesuid": scan.stem, "patient": scan.stem}]
    with (source / "crops" / "labels.csv").open() as file:
        for line in csv.DictReader(file):
            name = Path(line["file"]).stem
            image = np.load(source / "crops" / line["file"])["image"].transpose(2, 1, 0)
            save(out / "crops", name, image)
            rows.append(row(name, np.array(image.shape) // 2, int(line["class"] != "2")))
            entries.append({"image": f"crops/{name}.nii.gz", "seriesuid": name, "patient": line["seriesuid"]})
    write_table(out / "other.csv", rows)
    write_list(out / "other.json", "other.csv", {"training": [], "validation": [], "testing": entries})


def write_list(path: Path, table: str, splits: dict[str, list[dict[str, str]]]) -> None:
    """Write a data list."""
    content = {"name": "small set of real nodules", "modality": {"0": "CT"}, "candidates": table, **splits}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cubes", "luna16", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient")
    arguments = parser.parse_args()
    cubes_of_lidc(arguments.cubes, arguments.out, arguments.seed)
    scan_and_crops(arguments.luna16, arguments.out)


if __name__ == "__main__":
    main()
