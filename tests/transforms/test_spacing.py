# SPDX-License-Identifier: Apache-2.0
"""Resampling as MONAI does it, of items with a path next to the scan."""

from __future__ import annotations

from pathlib import Path

import monai.transforms
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImaged

from models_genesis.transforms import Spacingd

PIXDIM = (2.0, 2.0, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A smooth scan of 1 x 1 x 3 mm."""
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in (16, 12, 8)), indexing="ij"))
    values = np.sin(grid[0] / 5) + np.cos(grid[1] / 4) + grid[2] / 8
    nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([1.0, 1, 3, 1])), tmp_path / "scan.nii.gz")
    return str(tmp_path / "scan.nii.gz")


def load(path: str) -> MetaTensor:
    return LoadImaged("image", ensure_channel_first=True)({"image": path})["image"]


def test_monai_itself_still_fails_at_a_path(path):
    """When this fails, MONAI has mended it: its own ``Spacingd`` can go back into the bundles' configs."""
    with pytest.raises(AttributeError, match="'str' object has no attribute 'update'"):
        monai.transforms.Spacingd("image", pixdim=PIXDIM)({"image": load(path), "image_path": path})


def test_the_scan_is_monai_s_and_all_else_is_as_it_was(path):
    others = {"image_path": path, "image_number": 3, "image_array": np.arange(3), "label": None, 5: "five"}
    item = {"image": load(path), **others}
    before = dict(item)
    found = Spacingd("image", pixdim=PIXDIM)(item)
    expected = monai.transforms.Spacingd("image", pixdim=PIXDIM)({"image": load(path)})["image"]
    torch.testing.assert_close(found["image"].as_tensor(), expected.as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(found["image"].affine, expected.affine, rtol=0, atol=0)
    assert list(found) == list(item)
    assert all(found[key] is value for key, value in others.items())
    assert all(item[key] is value for key, value in before.items())


def test_metadata_next_to_the_scan_are_kept_up_to_date_as_monai_does(path):
    found = Spacingd("image", pixdim=PIXDIM)({"image": load(path), "image_meta_dict": {"own": 1}, "image_path": path})
    meta = found["image_meta_dict"]
    assert meta["own"] == 1
    torch.testing.assert_close(torch.as_tensor(meta["affine"]), found["image"].affine)


def test_what_begins_with_a_scan_s_name_is_not_taken_for_its_metadata(path):
    """Another scan, in either order; and a dictionary of somebody else's, which MONAI writes into."""
    for keys in (["image", "image_seg"], ["image_seg", "image"]):
        item = {key: load(path) for key in keys}
        with pytest.raises(AttributeError, match="'MetaTensor' object has no attribute 'update'"):
            monai.transforms.Spacingd(keys, pixdim=PIXDIM)({"image": load(path), "image_seg": load(path)})
        others = {"image_settings": {"own": 1}, "image_meta_dict": {"own": 1}}
        found = Spacingd(keys, pixdim=PIXDIM, mode=["bilinear", "nearest"])({**item, **others})
        for key, mode in zip(keys, ("bilinear", "nearest"), strict=True):
            expected = monai.transforms.Spacingd(key, pixdim=PIXDIM, mode=mode)({key: load(path)})[key]
            torch.testing.assert_close(found[key].as_tensor(), expected.as_tensor(), rtol=0, atol=0)
        assert others == {"image_settings": {"own": 1}, "image_meta_dict": {"own": 1}}
        assert found["image_settings"] is others["image_settings"]
        assert "affine" in found["image_meta_dict"]


def test_a_missing_scan_is_named_or_passed_over(path):
    with pytest.raises(KeyError, match="`label` of transform `Spacingd` was missing"):
        Spacingd(["label", "image"], pixdim=PIXDIM)({"image": load(path)})
    modes = ["nearest", "bilinear"]
    found = Spacingd(["label", "image"], pixdim=PIXDIM, mode=modes, allow_missing_keys=True)({"image": load(path)})
    expected = monai.transforms.Spacingd("image", pixdim=PIXDIM, mode="bilinear")({"image": load(path)})
    assert list(found) == ["image"]
    torch.testing.assert_close(found["image"].as_tensor(), expected["image"].as_tensor(), rtol=0, atol=0)


def test_a_prediction_goes_back_to_the_space_of_the_file(path):
    """As the bundles do it, by ``Invertd``: a prediction that equals the image comes back as the scan."""
    chain = Compose([LoadImaged("image", ensure_channel_first=True), Spacingd("image", pixdim=PIXDIM)])
    item = chain({"image": path, "image_path": path})
    item["pred"] = MetaTensor(item["image"].as_tensor().clone(), affine=item["image"].affine)
    back = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False, to_tensor=True)(item)["pred"]
    scan = nib.load(path)
    assert back.shape[1:] == scan.shape
    np.testing.assert_allclose(back.affine, scan.affine)
    # linear interpolation of |f''| <= 1/16 per mm^2 and less, at 2 mm, twice, and of half a voxel at the border
    assert float(np.abs(back[0, 1:-1, 1:-1, 1:-1].numpy() - scan.get_fdata()[1:-1, 1:-1, 1:-1]).max()) < 0.13


def test_two_scans_of_one_item_keep_one_shape(path):
    item = {"image": load(path), "label": load(path), "image_path": path}
    found = Spacingd(["image", "label"], pixdim=PIXDIM, mode=["bilinear", "nearest"])(item)
    assert found["image"].shape == found["label"].shape
