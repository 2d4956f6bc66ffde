# SPDX-License-Identifier: Apache-2.0
"""Data of the segmentation bundles."""

import json
import os

import nibabel as nib
import numpy as np

LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}
BACKGROUND = 0


def make_data(folder):
    """Write five scans with a ball of each label, and the data list that names them."""
    entries = []
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in (32, 32, 24)), indexing="ij"))
    for number in range(5):
        random = np.random.RandomState(number)
        label = np.zeros(grid.shape[1:], np.uint8)
        for value in (int(key) for key in LABELS if key != "0"):
            center = random.randint(8, 16, 3)[:, None, None, None]
            label[np.sum((grid - center) ** 2, axis=0) < 30] = value
        image = BACKGROUND + 100.0 * label + random.normal(300, 20, label.shape)
        entry = {"image": f"image_{number}.nii.gz", "label": f"label_{number}.nii.gz", "patient": str(number)}
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), os.path.join(folder, entry["image"]))
        nib.save(nib.Nifti1Image(label, np.eye(4)), os.path.join(folder, entry["label"]))
        entries.append(entry)
    content = {"labels": LABELS, "training": entries[:3], "validation": entries[3:], "testing": entries[3:]}
    datalist = os.path.join(folder, "datalist.json")
    with open(datalist, "w") as file:
        json.dump(content, file)
    data = {"dataset_dir": folder, "datalist": datalist}
    return data, data


def check_output(case, folder):
    """Expect a label map for each scan of the test split, in its space and of its labels."""
    for number in (3, 4):
        saved = nib.load(os.path.join(folder, f"image_{number}", f"image_{number}_seg.nii.gz"))
        case.assertEqual(saved.shape, (32, 32, 24))
        np.testing.assert_allclose(saved.affine, np.eye(4), atol=1e-4)
        case.assertLessEqual({str(value) for value in np.unique(saved.dataobj)}, set(LABELS))
