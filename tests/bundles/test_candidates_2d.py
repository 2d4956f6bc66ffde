# SPDX-License-Identifier: Apache-2.0
"""Candidates by slices of their cubes: ``configs/2d.json`` and ``configs/2.5d.json`` of the classification bundles."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from models_genesis.networks import GenesisUNet, read_checkpoint, save_weights
from models_genesis.training import CandidateScorer
from models_genesis.transforms import CentreSlices

ROOT = Path(__file__).resolve().parents[2] / "bundles"
LUNA, PE = "genesis_luna16_nodule_ct_classification", "genesis_pecad_embolism_ct_classification"
AXES = {"2d": [2], "2.5d": [2, 1, 0]}
FEATURES = [4, 8]


def parser(bundle: str, *stages: str, **settings) -> ConfigParser:
    found = ConfigParser()
    found.read_config([str(ROOT / bundle / "configs" / f"{stage}.json") for stage in stages])
    found.update({"bundle_root": str(ROOT / bundle), "device": torch.device("cpu"), "pretrained": "none", **settings})
    return found


@pytest.mark.parametrize("overlay", AXES)
@pytest.mark.parametrize("bundle", [LUNA, PE])
def test_samples_are_centre_slices_of_the_augmented_cubes(bundle, overlay, data_of):
    """The same seed gives the same cube, shifted, flipped and turned in 3D; the slices are taken of that.

    The sides are odd, and there is no shift that slices do not allow; else the cubes before slicing are others.
    """
    given = {**data_of(bundle), "cube_size": [15, 15, 15], "max_shift": [2, 2, 0] if overlay == "2d" else 0}
    given |= {"spacing": None}
    given |= {"samples_per_epoch": 6}
    cubes, slices = (
        parser(bundle, *stages, **given).get_parsed_content("train#dataset")
        for stages in (("train",), ("train", overlay))
    )
    for index in range(6):
        cube, found = cubes[index]["image"], slices[index]["image"]
        assert found.shape == (len(AXES[overlay]), 15, 15) and cube.shape == (1, 15, 15, 15)
        assert torch.equal(found, CentreSlices(AXES[overlay])(cube))


SLICES = {
    "2d": (["2d"], {}),
    "2.5d": (["2.5d"], {}),
    "2d, coronal": (["2d"], {"slice_axes": [1]}),
    "axial with other sides": (["2d"], {"cube_size": [40, 40, 31]}),
    "sagittal alone": ([], {"slice_axes": [0], "max_shift": [6, 6, 6]}),
    "two of three": ([], {"slice_axes": [2, 0], "cube_size": [48, 48, 48]}),
}


def one_voxel(bundle: str, name: str, **settings) -> tuple:
    """The augmentation of a training, and a scan of air with a single bright voxel as its candidate."""
    overlay, keys = SLICES[name]
    found = parser(bundle, "train", *overlay, **{**keys, **settings})
    scan = np.full((1, 90, 90, 90), -1000, np.float32)
    scan[0, 45, 44, 46] = 1000
    item = {"image": scan, "center": np.array([45.0, 44.0, 46.0]), "image_affine": np.eye(4)}
    augment = found.get_parsed_content("train#random_transforms")
    augment.set_random_state(0)
    return augment, item, found.get_parsed_content("cube_size"), found.get_parsed_content("slice_axes")


@pytest.mark.parametrize("name", SLICES)
@pytest.mark.parametrize("bundle", [LUNA, PE])
def test_every_training_sample_shows_its_candidate_in_every_channel(bundle, name):
    """A candidate of one voxel. Across a slice it is not blurred; an affine map blurs it along two axes at most.

    By linear interpolation at distances of at most half a voxel along each of the two, one voxel of a slice has at
    least a quarter of it.
    """
    augment, item, sides, axes = one_voxel(bundle, name)
    places = set()
    for _ in range(60):
        image = np.asarray(augment(item)["image"])
        wanted = [tuple(side for other, side in enumerate(sides) if other != axis) for axis in axes]
        assert [channel.shape for channel in image] == wanted
        assert image.max(axis=(1, 2)).min() >= 0.25, image.max(axis=(1, 2))
        places.add(tuple(np.unravel_index(image[0].argmax(), image[0].shape)))
    assert (len(places) > 20) is (axes == [2])  # axial slices are still shifted within their plane


@pytest.mark.parametrize("name", SLICES)
def test_without_shift_the_candidate_is_where_evaluation_has_it(name):
    augment, item, sides, axes = one_voxel(LUNA, name, **{"train#augmentation#affine#prob": 0, "max_shift": 0})
    middle = [[sides[other] // 2 for other in range(3) if other != axis] for axis in axes]
    for _ in range(40):
        image = np.asarray(augment(item)["image"])
        assert [np.argwhere(channel > 0).tolist() for channel in image] == [[place] for place in middle]


@pytest.mark.parametrize(("axes", "kinds"), [([1], "x"), ([0], "y"), ([2, 1], "x"), ([2, 1, 0], "xy")], ids=str)
def test_a_quarter_turn_makes_no_sagittal_slice_of_a_coronal_one(axes, kinds):
    """The scan is bright along x through the candidate: of its last slice a row, or one point across x."""
    found = parser(LUNA, "train", slice_axes=axes, cube_size=[16, 16, 16], **{"train#augmentation#affine#prob": 0.0})
    scan = np.full((1, 40, 40, 40), -1000, np.float32)
    scan[0, :, 20, 20] = 1000
    item = {"image": scan, "center": np.array([20.0, 20, 20]), "image_affine": np.eye(4)}
    augment = found.get_parsed_content("train#random_transforms")
    augment.set_random_state(0)
    seen = {"x" if (np.asarray(augment(item)["image"])[-1] > 0).sum() > 1 else "y" for _ in range(40)}
    assert seen == set(kinds)


@pytest.mark.parametrize("name", ["2d", "2.5d", "2d, coronal"])
def test_vessel_cubes_keep_the_candidate_in_every_slice_too(name):
    """Without contrast around it a vessel cube is cut along the scan's axes, turned about z by any angle."""
    augment, item, _, _ = one_voxel(PE, name, vessel=True)
    for _ in range(25):
        assert (np.asarray(augment(item)["image"]).max(axis=(1, 2)) > 0.2).all()


@pytest.mark.parametrize("overlay", AXES)
@pytest.mark.parametrize("bundle", [LUNA, PE])
def test_the_overlays_make_networks_of_two_dimensions(bundle, overlay):
    found = parser(bundle, "train", overlay, features=FEATURES)
    network = found.get_parsed_content("network_def")
    images = len(AXES[overlay])
    assert network(torch.zeros(2, images, 16, 16)).shape == (2, 1)
    assert found.get_parsed_content("train#run#model_settings")["slice_axes"] == AXES[overlay]
    cube = found.get_parsed_content("cube_size")
    assert images == 1 or len(set(cube)) == 1  # else the three slices differ in size


@pytest.mark.parametrize(("bundle", "overlay"), [(LUNA, "2d"), (PE, "2.5d")], ids=[LUNA, PE])
def test_trained_from_3d_weights_evaluated_and_scored_as_slices(bundle, overlay, run_bundle, data_of, tmp_path):
    weights = tmp_path / "pretrained.pt"
    save_weights(GenesisUNet(features=FEATURES).state_dict(), weights)
    given = {**data_of(bundle), "features": FEATURES, "cube_size": [16, 16, 16], "spacing": [2.0] * 3, "amp": False}
    short = {"epochs": 1, "warmup_epochs": 0, "samples_per_epoch": 16, "batch_size": 8, "pretrained": weights}
    models = {"ckpt_dir": tmp_path / "models"}
    done = run_bundle(bundle, ["train", overlay], **given, **short, **models, output_dir=tmp_path / "eval")
    assert "the centre slice of each kernel along axis 2" in done.stdout
    kernel = read_checkpoint(tmp_path / "models" / "model.pt")["encoder.levels.0.conv1.weight"]
    assert kernel.shape[1:] == (len(AXES[overlay]), 3, 3)
    settings = json.loads((tmp_path / "models" / "model.json").read_text())["settings"]
    assert settings["slice_axes"] == AXES[overlay]

    # evaluation takes the slices from the weights, and refuses others by name
    run_bundle(bundle, ["train", "evaluate"], **data_of(bundle), **models, output_dir=tmp_path / "test")
    rows = list(csv.DictReader((tmp_path / "test" / "predictions.csv").open()))
    done = run_bundle(
        bundle, ["train", "evaluate"], status=1, slice_axes=[1], **data_of(bundle), **models, output_dir=tmp_path
    )
    assert f"--slice_axes: trained with {AXES[overlay]}, given [1]" in done.stderr
    other = {"2d": "2.5d", "2.5d": "2d"}[overlay]
    done = run_bundle(bundle, ["train", other, "evaluate"], status=1, **data_of(bundle), **models, output_dir=tmp_path)
    assert f"--slice_axes: {ROOT / bundle / 'configs' / other}.json says {AXES[other]}" in done.stderr

    # a point scored from Python has the probability of the evaluation
    data = parser(bundle, "train", "evaluate", **data_of(bundle), **{key: str(path) for key, path in models.items()})
    candidates = data.get_parsed_content("validate#data")
    scorer = CandidateScorer(ROOT / bundle, ckpt_dir=tmp_path / "models", device="cpu")
    scan = 0
    world = candidates.table.world[candidates.rows[scan]]
    scores = scorer(candidates.data[scan]["image"], world).probability
    by_place = {tuple(float(row[f"coord{axis}"]) for axis in "XYZ"): float(row["probability"]) for row in rows}
    np.testing.assert_allclose([by_place[tuple(place)] for place in world.tolist()], scores, atol=1e-5)


@pytest.mark.parametrize("stages", [("train", "2.5d"), ("inference",)], ids=str)
@pytest.mark.parametrize("bundle", [LUNA, PE])
def test_flips_at_test_time_are_refused_for_slices_across_several_axes(bundle, stages):
    given = {"slice_axes": [2, 1, 0], "tta_flips": [0], "network": torch.nn.Identity(), "precision": None}
    inferer = "validate#inferer#inferer" if "train" in stages else "inferer#inferer"
    with pytest.raises(Exception, match="FlipInferer") as caught:
        parser(bundle, *stages, **given).get_parsed_content(inferer)
    assert "--tta_flips: expected []" in str(caught.value.__cause__ or caught.value)
    assert parser(bundle, *stages, **{**given, "slice_axes": [1]}).get_parsed_content(inferer).axes == (0,)


def test_the_enclosed_weights_are_of_cubes(run_bundle, data_of, tmp_path):
    done = run_bundle(LUNA, ["train", "2d", "evaluate"], status=1, **data_of(LUNA), output_dir=tmp_path)
    assert "2d.json says [2], the weights are for None" in done.stderr
