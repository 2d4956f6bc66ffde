# SPDX-License-Identifier: Apache-2.0
"""What scans are prepared to: where that changes, the version does, and prepared scans on disk are not taken."""

from __future__ import annotations

import hashlib

import numpy as np

from models_genesis.datasets import Preparation, ScanCache
from models_genesis.datasets.loading.mapped_scans import VERSION

PREPARED = {
    2: {
        "nifti": "7edb3e47b5459a8b",
        "metaimage": "7edb3e47b5459a8b",
        "padded series": "7edb3e47b5459a8b",
        "beyond": "27207817601ee56d",
    },
}
"""By version, what each kind of scan is prepared to. A new version gets a new row; none of the old ones may return."""


def write_scans(folder, tools):
    """A scan of each kind whose reading could change: turned, padded, scaled, beyond the window."""
    scan = np.pad(tools.make_scan(0, (24, 20, 16)), ((2, 2), (2, 2), (0, 0)), constant_values=-3024)
    turned = np.diag([-2.0, -2.0, 3.0, 1.0])
    yield "nifti", tools.write_nifti(folder / "scan.nii.gz", scan, turned)
    yield "beyond", tools.write_nifti(folder / "beyond.nii.gz", np.where(scan > 0, scan.astype(np.int32) * 30, scan))
    header = "ObjectType = Image\nNDims = 3\nDimSize = {} {} {}\nElementSpacing = 2 2 3\nElementType = MET_SHORT\n"
    (folder / "scan.raw").write_bytes(scan.T.astype("<i2").tobytes())
    (folder / "scan.mhd").write_text(header.format(*scan.shape) + "ElementDataFile = scan.raw\n")
    yield "metaimage", str(folder / "scan.mhd")

    def pad(each, number):
        stored = np.clip(scan[..., number].astype(np.int64), -1000, None) + 1024
        stored[scan[..., number] == -3024] = 63536
        each.PixelData = stored.T.astype("<u2").tobytes()
        each.add_new("PixelPaddingValue", "US", 63536)

    tools.write_series(folder / "series", np.maximum(scan, -1000), edit=pad)
    yield "padded series", str(folder / "series")


def test_scans_are_prepared_as_this_version_says(tmp_path, tools):
    """Raise ``VERSION`` and add a row where this fails on purpose: a cache of the old kind would be trained on."""
    preparation = Preparation(cube_size=tools.cube)
    steps = [*preparation.steps(), preparation.windows()]
    found = {}
    for name, path in write_scans(tmp_path, tools):
        digest = hashlib.sha256()
        for key, array in sorted(ScanCache([{"image": path}], steps, cache_gib=1, progress=False)[0].items()):
            digest.update(f"{key} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        found[name] = digest.hexdigest()[:16]
    assert found == PREPARED[VERSION]
    assert len({str(row) for row in PREPARED.values()}) == len(PREPARED) and max(PREPARED) == VERSION
