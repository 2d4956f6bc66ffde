# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad case is an error that names it; good cases pass unchanged."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from models_genesis.transforms import BadCaseError, CheckSegmentationCased, check_case
from models_genesis.transforms.segmentation_case import declared_values, space_difference

NAME = "somewhere/volume-7.nii.gz"


def make_case(modality="CT", channels=1):
    """A good case of 8 x 7 x 6 voxels with labels 0, 1 and 2."""
    rng = np.random.default_rng(0)
    image = rng.normal(40, 20, (channels, 8, 7, 6))
    image[:, :, :3] = rng.normal(-900, 30, (channels, 8, 3, 6)) if modality == "CT" else 0
    label = np.zeros((1, 8, 7, 6))
    label[:, 2:5, 2:5, 2:5] = 1
    label[:, 3, 3, 3] = 2
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    meta = {"filename_or_obj": NAME}
    return {
        "image": MetaTensor(torch.as_tensor(image, dtype=torch.float32), affine=torch.as_tensor(affine), meta=meta),
        "label": MetaTensor(torch.as_tensor(label, dtype=torch.float32), affine=torch.as_tensor(affine)),
        "patient": "P7",
    }


def set_label(case, value):
    case["label"][0, 1, 1, 1] = value


def move(case, offset):
    case["label"].affine = case["label"].affine + torch.tensor([[0.0, 0, 0, offset]] + [[0.0] * 4] * 3)


def flip(case):
    case["label"].affine = torch.diag(torch.tensor([1.5, -1.5, 3.0, 1.0], dtype=torch.float64))


BAD = {
    "shape": (
        lambda case: case.update(label=case["label"][..., 1:]),
        "label of another shape: expected 8 x 7 x 6 voxels as the image, found 8 x 7 x 5",
    ),
    "label channels": (
        lambda case: case.update(label=torch.cat([case["label"]] * 2)),
        r"label of another shape: expected one channel and 3 axes, found \(2, 8, 7, 6\)",
    ),
    "label axes": (
        lambda case: case.update(label=case["label"][0]),
        r"label of another shape: expected one channel and 3 axes, found \(8, 7, 6\)",
    ),
    # the smaller voxel side is 1.5 mm, the tolerance 0.15 mm
    "moved": (
        lambda case: move(case, 0.16),
        "label in another space: .* within 0.1 voxels, found voxels 0.106667 apart",
    ),
    # mirrored, the voxels at the far end lie 2 * 7 * 1.5 mm off
    "mirrored": (flip, "label in another space: .* found voxels 14 apart"),
    "undeclared": (lambda case: set_label(case, 3), r"undeclared label: expected values of \[0, 1, 2\], found \[3\]"),
    "negative": (lambda case: set_label(case, -1), r"undeclared label: .* found \[-1\]"),
    "not whole": (lambda case: set_label(case, 0.5), r"label not whole: expected whole numbers, found \[0.5\]"),
    "not a number": (lambda case: set_label(case, np.nan), r"label not whole: .* found \[nan\]"),
    "no foreground": (lambda case: case["label"].zero_(), r"no foreground: .* found background \(0\) only"),
    "not finite": (
        lambda case: case["image"][0, 0, 0].fill_(torch.inf),
        "not finite: expected finite voxels, found 6 of 336 NaN or infinite",
    ),
    "channels": (
        lambda case: case.update(image=torch.cat([case["image"]] * 2)),
        "channels missing: expected 1 channels, found 2",
    ),
    "MR": (
        lambda case: case.update(image=make_case("MR")["image"]),
        r"not CT: expected a CT, fat and air below -50 HU in at least 0\.5% of the voxels, found 0\.00% of",
    ),
    "offset CT": (lambda case: case.update(image=case["image"] + 1024), "not CT: .* values"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_cases_are_named(kind):
    spoil, message = BAD[kind]
    case = make_case()
    check = CheckSegmentationCased(labels={"0": "background", "1": "liver", "2": "tumour"}, modality="CT", channels=1)
    assert check(case).keys() == case.keys()
    spoil(case)
    with pytest.raises(BadCaseError, match=message) as caught:
        check(case)
    assert str(caught.value).startswith(f"{NAME}: {caught.value.reason}: expected ")
    # errors cross the borders of processes whole
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda array: array])
def test_good_cases_pass_unchanged(kind):
    case = make_case("MR", channels=4)
    case = {key: value if key == "patient" else kind(value) for key, value in case.items()}
    copies = {key: value if key == "patient" else np.array(value) for key, value in case.items()}
    passed = CheckSegmentationCased(labels=[1, 2], modality="MR", channels=4)(case)
    for key in ("image", "label"):
        assert passed[key] is case[key]
        np.testing.assert_array_equal(np.asarray(passed[key]), copies[key])
    with pytest.raises(
        BadCaseError, match=r"not MR: expected an MR, less than 0\.5% of the voxels below -50, found 42\.86%"
    ):
        check_case(make_case("CT"), [1, 2], "MR")


def test_a_case_without_label_or_without_a_file_name():
    case = make_case()
    del case["label"]
    with pytest.raises(KeyError, match="label"):
        CheckSegmentationCased(labels=[1])(case)
    assert CheckSegmentationCased(labels=[1], allow_missing_keys=True)(case).keys() == case.keys()
    case["image"] = np.full((1, 4, 4, 4), np.nan)
    with pytest.raises(BadCaseError, match=r"^P7: not finite"):
        CheckSegmentationCased(labels=[1], allow_missing_keys=True)(case)
    with pytest.raises(BadCaseError, match=r"^case: not finite"):
        check_case({"image": case["image"]}, [1])


def test_what_may_be_allowed():
    case = make_case()
    move(case, 0.3)
    CheckSegmentationCased(labels=[1, 2], tolerance=0.25)(case)
    case["label"].zero_()
    CheckSegmentationCased(labels=[1, 2], tolerance=0.25, require_foreground=False)(case)


@pytest.mark.parametrize("seed", range(20))
def test_space_difference_is_the_largest_over_all_voxels(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 6, 3))
    affines = rng.normal(0, 1, (2, 4, 4)) + np.diag([2.0, 3, 4, 0])
    affines[:, 3] = [0, 0, 0, 1]
    points = np.vstack([np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
    apart = np.linalg.norm(((affines[0] - affines[1]) @ points)[:3], axis=0).max()
    side = np.linalg.norm(affines[:, :3, :3], axis=1).min()
    assert space_difference(shape, *affines) == pytest.approx(apart / side, abs=1e-6)
    assert space_difference(shape, affines[0], affines[0]) == 0
    nan = affines[0] * np.nan
    assert not space_difference(shape, affines[0], nan) <= 0.1


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"keys: expected those of image and label, found \('image',\)"):
        CheckSegmentationCased(keys="image")
    with pytest.raises(ValueError, match="modality: expected 'CT', 'MR' or None, found 'PET'"):
        CheckSegmentationCased(modality="PET")
    assert declared_values({"1": "a", "10": "b", "2": "c"}) == [1, 2, 10]


def test_real_ct_and_mr_are_told_apart(shared):
    ct = [*(shared / "data/ct").glob("*.nii.gz"), *(shared / "data/lits").glob("volume*")]
    ct.append(shared / "data/lidc/volume/lidc_idri_0314_image.nii.gz")
    mr = [path for path in (shared / "data/brats").glob("*/*.nii.gz") if "seg" not in path.name]
    load = LoadImaged("image", ensure_channel_first=True)
    assert len(ct) == 9 and len(mr) == 8
    for modality, other, paths in (("CT", "MR", ct), ("MR", "CT", mr)):
        for path in paths:
            case = load({"image": path})
            check_case(case, [], modality)
            with pytest.raises(BadCaseError, match=f"{path.name}: not {other}"):
                check_case(case, [], other)
    for path in (shared / "data/lidc/cubes").glob("*.npz"):
        with np.load(path) as content:
            check_case({"image": content["image"][None], "label": content["mask"][None]}, [1], "CT")


def test_files_as_monai_loads_them(tmp_path):
    image = np.full((6, 5, 4), -1000, np.int16)
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4] = 1
    paths = {"image": tmp_path / "volume-3.nii", "label": tmp_path / "segmentation-3.nii"}
    for key, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 3, 1])), paths[key])
    load = LoadImaged(["image", "label"], ensure_channel_first=True)
    check = CheckSegmentationCased(labels=[1], modality="CT")
    check(load(paths))
    nib.save(nib.Nifti1Image(label * 7, np.diag([2.0, 2, 3, 1])), paths["label"])
    said = r"volume-3\.nii: undeclared label: expected values of \[1\], found \[7\], in .*segmentation-3\.nii"
    with pytest.raises(BadCaseError, match=said):  # the file at fault is the label
        check(load(paths))
