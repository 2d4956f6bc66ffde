# SPDX-License-Identifier: Apache-2.0
"""Training, validation and inference of each bundle give the network the same numbers, whatever type a scan has."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[2] / "bundles"
LITS, LIDC = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
BRATS, MSD = "genesis_brats_mri_segmentation", "genesis_msd_segmentation"
LUNA, PECAD = "genesis_luna16_nodule_ct_classification", "genesis_pecad_embolism_ct_classification"
PRETRAINING = "genesis_chest_ct_pretraining"
CT_SEGMENTATION, CLASSIFICATION = [LITS, LIDC, MSD], [LUNA, PECAD]

TYPES = [np.int16, np.uint16, np.int32, np.float64]
SHAPE = (24, 20, 18)


def scan(folder: Path, dtype: Any) -> tuple[Path, Path, np.ndarray]:
    """A scan with both ends of its type, and a label, in an orientation that must be turned."""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    low, high = (info.min, info.max) if info else (-1e30, 1e30)
    rng = np.random.default_rng(0)
    values = rng.integers(max(low, -1100), 1200, SHAPE).astype(np.float64)
    # around each place where a difference of two numbers of the type wraps
    ends = [low, low + 1, high, high - 1, min(high, 31767), min(high, 31768), max(low, -32768), 999, 1000, 1001]
    values.flat[: len(ends)] = ends
    values = values.astype(dtype)
    image, label = folder / "image.nii.gz", folder / "label.nii.gz"
    affine = np.diag([-1.0, 1, 2, 1])
    nib.save(nib.Nifti1Image(values, affine), image)
    nib.save(nib.Nifti1Image((rng.random(SHAPE) > 0.5).astype(np.uint8), affine), label)
    return image, label, values


def parsed(bundle: str, stages: list[str], key: str, **settings: Any) -> Any:
    parser = ConfigParser()
    parser.read_config([str(ROOT / bundle / "configs" / f"{stage}.json") for stage in stages])
    given = {"cube_size": [8, 8, 8], "max_shift": [2, 2, 2], "bundle_root": str(ROOT / bundle)}
    given |= {"ckpt_dir": "no weights, whose settings would count", **settings}
    if bundle in (*CLASSIFICATION, PRETRAINING):
        given["modality"] = None  # of unsigned numbers none is a CT
    parser.update({name: value for name, value in given.items() if name in parser})
    return parser.get_parsed_content(key)


def array(item: dict[str, Any]) -> np.ndarray:
    return np.asarray(item["image"])


def scaling(bundle: str, **settings: Any) -> Any:
    """The one step of the random transforms that changes the values of every cube."""
    steps = parsed(bundle, ["train"], "train#random_transforms", **settings).transforms
    (step,) = [step for step in steps if type(step).__name__ == "ScaleHounsfieldd"]
    return step


@pytest.mark.parametrize("limits", [[-1000, 1000], [-1024, 3071], [-32768, 32767]], ids=str)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bundle", CT_SEGMENTATION)
def test_ct_segmentation_sees_the_same_in_every_stage(bundle, dtype, limits, tmp_path):
    image, label, values = scan(tmp_path, dtype)
    modality = {} if dtype is not np.uint16 or bundle == MSD else {"modality": None}  # no air below zero
    # the Decathlon's default task is of MR, and so are the weights that are enclosed
    task = {"task": "Task09_Spleen"} if bundle == MSD else {}
    settings = {"intensity_range": limits, **modality, **task}
    if bundle == MSD and dtype is np.uint16:
        pytest.skip("the Decathlon's CTs have air: of unsigned numbers none is a CT")
    item = {"image": str(image), "label": str(label)}
    trained = scaling(bundle, **settings)(parsed(bundle, ["train"], "train#preprocessing", **settings)(item))
    stages = {
        "validation": parsed(bundle, ["train"], "validate#preprocessing", **settings)(item),
        "evaluation": parsed(bundle, ["train", "evaluate"], "validate#preprocessing", **settings)(item),
        "inference": parsed(bundle, ["inference"], "preprocessing", **settings)({"image": str(image)}),
    }
    for stage, result in stages.items():
        np.testing.assert_array_equal(array(result), array(trained), err_msg=stage)
    low, high = limits
    clipped = [min(max(Fraction(value), Fraction(low)), Fraction(high)) for value in values.ravel().tolist()]
    expected = np.array([float((value - low) / (high - low)) for value in clipped], np.float32).reshape(SHAPE)
    np.testing.assert_allclose(array(trained)[0], expected[::-1], rtol=0, atol=1e-7)  # to the right, as RAS has it


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bundle", CLASSIFICATION)
def test_classification_sees_the_same_in_every_stage(bundle, dtype, tmp_path):
    image, _, _ = scan(tmp_path, dtype)
    prepared = [
        parsed(bundle, stages, key)({"image": str(image)})
        for stages, key in ((["train"], "train#preprocessing"), (["train"], "validate#preprocessing"))
    ]
    prepared.append(parsed(bundle, ["inference"], "preprocessing")({"image": str(image)}))
    for each in prepared[1:]:
        np.testing.assert_array_equal(array(each), array(prepared[0]))
    centre = {"image": array(prepared[0]), "image_affine": np.asarray(prepared[0]["image"].affine)}
    item = {**centre, "center": np.array([12.0, 10.0, 9.0])}
    cubes = [
        array(parsed(bundle, ["train"], "validate#cubes")(item)),
        array(parsed(bundle, ["inference"], "cubes")(item)),
    ]
    np.testing.assert_array_equal(*cubes)
    window = array(prepared[0])[:, 8:16, 6:14, 5:13]
    np.testing.assert_array_equal(cubes[0], scaling(bundle)({"image": window})["image"])


@pytest.mark.parametrize("dtype", TYPES)
def test_pretraining_sees_the_same_in_every_stage(dtype, tmp_path):
    image, _, _ = scan(tmp_path, dtype)
    item = {"image": str(image)}
    trained = parsed(PRETRAINING, ["train"], "train#preprocessing", border="proportional")(item)
    validated = parsed(PRETRAINING, ["train"], "validate#preprocessing")(item)
    np.testing.assert_array_equal(array(trained), array(validated))
    steps = parsed(PRETRAINING, ["inference"], "preprocessing").transforms
    last = [type(step).__name__ for step in steps].index("ClipHounsfieldd")
    inferred = item
    for step in steps[: last + 1]:
        inferred = step(inferred)
    np.testing.assert_array_equal(array(trained), array(inferred))


@pytest.mark.parametrize("normalise", ["minmax", "zscore"])
@pytest.mark.parametrize("dtype", TYPES)
def test_mr_is_normalised_alike_in_every_stage(dtype, normalise, tmp_path):
    image, label, values = scan(tmp_path, dtype)
    values = np.maximum(values, 0)
    nib.save(nib.Nifti1Image(values, np.diag([-1.0, 1, 2, 1])), image)
    item = {"image": [str(image)], "label": str(label)}
    trained = parsed(BRATS, ["train"], "train#preprocessing", normalise=normalise)(item)
    for stages, key in ((["train"], "validate#preprocessing"), (["inference"], "preprocessing")):
        result = parsed(BRATS, stages, key, normalise=normalise)(item if "train" in stages else {"image": [str(image)]})
        np.testing.assert_array_equal(array(result), array(trained))
    # the order of the values is kept: nothing wraps (zscore leaves the background at 0)
    tissue = values[::-1] > 0
    order = np.argsort(values[::-1][tissue].astype(np.float32), kind="stable")
    assert (np.diff(array(trained)[0][tissue][order]) >= 0).all()
