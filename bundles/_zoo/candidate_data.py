# SPDX-License-Identifier: Apache-2.0
"""Data of the classification bundles."""

import csv
import json
import os

import nibabel as nib
import numpy as np


def make_data(folder):
    """Write four scans with bright balls, a table of candidates on and off them, and the data list that names both."""
    rows, entries = [("seriesuid", "coordX", "coordY", "coordZ", "class")], []
    grid = np.stack(np.meshgrid(*(np.arange(48) for _ in range(3)), indexing="ij"))
    images = os.path.join(folder, "images")
    os.makedirs(images)
    for number in range(4):
        image = np.random.RandomState(number).normal(-800, 20, grid.shape[1:])
        for place in ((12, 12, 12), (36, 36, 36), (12, 36, 24)):
            image[np.sum((grid - np.reshape(place, (3, 1, 1, 1))) ** 2, axis=0) < 16] = 100
            rows.append((f"scan{number}", -place[0], -place[1], place[2], 1))  # the table is in LPS, the scan in RAS
        for place in ((24, 12, 36), (24, 24, 24), (36, 12, 12), (12, 24, 36)):
            rows.append((f"scan{number}", -place[0], -place[1], place[2], 0))
        path = os.path.join(images, f"scan{number}.nii.gz")
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), path)
        entries.append({"image": path, "seriesuid": f"scan{number}", "patient": str(number)})
    table = os.path.join(folder, "candidates.csv")
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    content = {"candidates": table, "training": entries[:2], "validation": entries[2:3], "testing": entries[3:]}
    datalist = os.path.join(folder, "datalist.json")
    with open(datalist, "w") as file:
        json.dump(content, file)
    train = {"dataset_dir": images, "datalist": datalist, "candidates": table}
    return train, {"dataset_dir": images, "candidates": table}


def check_output(case, folder):
    """Expect the table's rows, each with a probability."""
    with open(os.path.join(folder, "candidates.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    case.assertEqual(len(rows), 28)
    case.assertTrue(all(0 <= float(row["probability"]) <= 1 for row in rows))
