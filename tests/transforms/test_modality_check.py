# SPDX-License-Identifier: Apache-2.0
"""Scans that are not in HU are refused by name before a network learns from them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged

from models_genesis.datasets import BadScanError, ScanCache, ScanReader
from models_genesis.transforms import BadCaseError, CheckModalityd

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
CT = np.full((1, 10, 10, 10), 40, np.int16)
CT[0, :, :, 0] = -1000


def test_a_ct_passes_unchanged():
    item = {"image": CT, "patient": "P7"}
    assert CheckModalityd("image", "CT")(item) == item


@pytest.mark.parametrize("values", [CT + 1024, np.clip(CT, 0, None), CT * 0 + 40])
def test_what_is_no_ct_in_hu_is_refused_by_name(values):
    with pytest.raises(BadCaseError, match="P7: not CT: expected a CT, fat and air below -50 HU"):
        CheckModalityd("image", "CT")({"image": values, "patient": "P7"})
    CheckModalityd("image", None)({"image": values})
    CheckModalityd("image", "MR")({"image": values})


def scanned(padding: float | None = None) -> np.ndarray:
    """Noisy air and tissue, 100 voxels wide, within a circle where there is padding."""
    ct = np.random.default_rng(0).normal(-995, 25, (1, 100, 100, 4)).round()
    ct[:, 30:70, 30:70] += 1035
    x, y = np.indices((100, 100)) - 49.5
    if padding is not None:
        ct[:, np.hypot(x, y) > 50] = padding
    return ct.astype(np.int16)


@pytest.mark.parametrize("padding", [None, -1024, -2000, -2048, -3024, -32768])
def test_padding_does_not_matter_to_a_ct(padding):
    for values in (scanned(padding), scanned(padding).astype(np.float32) + 0.25):
        CheckModalityd("image", "CT")({"image": values})


@pytest.mark.parametrize("padding", [-2000, -2048, -3024])
def test_padding_is_no_air(padding):
    """Stored values, of which the rescale was forgotten, have padding below zero and their air above."""
    stored = scanned(padding)
    stored[stored > -1500] += 1024
    with pytest.raises(
        BadCaseError, match=r"not CT: expected a CT, fat and air .* found 0\.\d+% .* 21\.\d+% of them padding"
    ):
        CheckModalityd("image", "CT")({"image": stored})
    with pytest.raises(BadCaseError, match="not MR"):
        CheckModalityd("image", "MR")({"image": stored})


def test_paddings_of_several_values_do_not_matter_to_a_ct_with_soft_tissue():
    """Merged and resampled series have two, filtered ones noise."""
    two, noisy = scanned(-3024), scanned(-2000).astype(np.float32)
    two[:, :20] = -2000
    noisy[noisy == -2000] += np.random.default_rng(1).normal(0, 12, np.count_nonzero(noisy == -2000))
    for values in (two, noisy):
        CheckModalityd("image", "CT")({"image": values})


@pytest.mark.parametrize("padding", [None, -1024, -2000])
def test_an_intercept_that_was_added_twice_is_refused(padding):
    """Air is at -2024 then, with its noise, and water is taken for air."""
    for values in (scanned(padding) - 1024, scanned(padding).astype(np.float64) - 1024):
        with pytest.raises(BadCaseError, match="was the rescale intercept added twice"):
            CheckModalityd("image", "CT")({"image": values})


def test_values_that_are_not_finite_are_refused_for_any_modality():
    with pytest.raises(BadCaseError, match="not finite"):
        CheckModalityd("image", None)({"image": np.full((1, 2, 2, 2), np.nan), "patient": "P7"})


def test_other_modalities_are_refused():
    with pytest.raises(ValueError, match="modality: expected 'CT', 'MR' or None, found 'PT'"):
        CheckModalityd("image", "PT")


def test_a_cache_names_the_scan_or_skips_it(tmp_path):
    for name, values in {"good": CT[0], "raw": CT[0] + 1024}.items():
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
    data = [{"image": str(tmp_path / f"{name}.nii.gz")} for name in ("good", "raw")]
    steps = [LoadImaged("image", ScanReader, None, ensure_channel_first=True), CheckModalityd("image")]
    with pytest.raises(BadScanError, match=r"raw.nii.gz: cannot be prepared: .*not CT: expected a CT"):
        ScanCache(data, steps, progress=False, cache_gib=1)
    kept = ScanCache(data, steps, progress=False, cache_gib=1, on_bad_scan="skip")
    assert len(kept) == 1 and "raw.nii.gz" in kept.left_out[0].reason


@pytest.mark.parametrize("path", sorted(BUNDLES.glob("*/configs/*.json")), ids=lambda path: "/".join(path.parts[-3:]))
def test_every_bundle_checks_what_it_loads(path):
    """Right after each step that loads an image stands one that checks it."""
    found = []

    def look(node):
        if isinstance(node, list):
            names = [each.get("_target_", "") if isinstance(each, dict) else "" for each in node]
            found.extend(names[place + 1] for place, name in enumerate(names) if name == "LoadImaged")
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            look(each)

    look(json.loads(path.read_text()))
    assert all(name.rsplit(".", 1)[-1] in ("CheckModalityd", "CheckSegmentationCased") for name in found), found
