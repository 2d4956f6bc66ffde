# SPDX-License-Identifier: Apache-2.0
"""Data of the pretraining bundle."""

import json
import os

import nibabel as nib
import numpy as np


def make_data(folder):
    """Write four scans of soft tissue with air in it, and the data list that names them."""
    entries = []
    for number in range(4):
        image = np.random.RandomState(number).normal(40, 20, (48, 48, 32))
        image[16:32, 16:32, 8:24] = -900
        entries.append({"image": f"scan{number}.nii.gz", "patient": str(number)})
        path = os.path.join(folder, entries[-1]["image"])
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), path)
    datalist = os.path.join(folder, "datalist.json")
    with open(datalist, "w") as file:
        json.dump({"training": entries[:2], "validation": entries[2:]}, file)
    data = {"dataset_dir": folder, "datalist": datalist}
    return data, data


def check_output(case, folder):
    """Expect restored scans, each in its space."""
    saved = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if ".nii" in name]
    case.assertTrue(saved)
    for path in saved:
        np.testing.assert_allclose(nib.load(path).affine, np.eye(4), atol=1e-4)
