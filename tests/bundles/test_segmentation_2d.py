# SPDX-License-Identifier: Apache-2.0
"""Segmentation of slices by ``configs/2d.json``: trained, measured, predicted as volumes, and never run as cubes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from models_genesis.networks import GenesisUNet, save_weights

ROOT = Path(__file__).resolve().parents[2] / "bundles"
LITS, LIDC = "genesis_lits_liver_ct_segmentation", "genesis_lidc_nodule_ct_segmentation"
BRATS, MSD = "genesis_brats_mri_segmentation", "genesis_msd_segmentation"
BUNDLES = [LITS, LIDC, BRATS, MSD]

FEATURES = [8, 16, 32]
WINDOW = {"cube_size": [40, 40], "overlap": 0.25}
TRAINING = {
    "features": FEATURES, "epochs": 6, "val_interval": 3, "warmup_epochs": 1, "learning_rate": 0.01, "batch_size": 16,
    "cubes_per_case": 48,
}  # fmt: skip
# as in test_segmentation_bundles.py: calling everything foreground gives at most 0.12 for these livers
BOUND = 0.3


def config(bundle: str, stage: str) -> dict:
    return json.loads((ROOT / bundle / "configs" / f"{stage}.json").read_text())


def folders(folder: Path) -> dict[str, Path]:
    return {"output_dir": folder / "eval", "ckpt_dir": folder / "models"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict[int, Path]:
    """What the pretraining bundle leaves: of slices and of cubes, by the number of dimensions."""
    folder, paths = tmp_path_factory.mktemp("pretraining"), {}
    for dims in (2, 3):
        torch.manual_seed(0)
        paths[dims] = folder / f"pretrained_{dims}d.pt"
        save_weights(GenesisUNet(dims, features=FEATURES).state_dict(), paths[dims])
    return paths


@pytest.fixture(scope="module")
def trained(run_bundle, data_of, pretrained, tmp_path_factory) -> Path:
    """The Decathlon's bundle after a training on axial slices, from weights of slices."""
    folder = tmp_path_factory.mktemp("trained")
    given = {**data_of(MSD), **WINDOW, **TRAINING, **folders(folder), "pretrained": pretrained[2]}
    done = run_bundle(MSD, ["train", "2d"], **given)
    assert "matched, 0 adapted" in done.stdout
    return folder


def test_the_weights_say_that_they_are_of_slices(trained):
    state = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert {tensor.ndim for name, tensor in state.items() if "conv" in name and "weight" in name} == {4}
    settings = json.loads((trained / "models" / "model.json").read_text())["settings"]
    assert settings["slice_axis"] == 2 and settings["cube_size"] == WINDOW["cube_size"]


@pytest.mark.parametrize(
    "stages", [["train", "evaluate"], ["train", "2d", "evaluate"], ["train", "evaluate", "2d"]], ids="+".join
)
def test_whole_scans_are_measured_slice_by_slice_as_training_did(stages, trained, run_bundle, data_of, tmp_path):
    given = {"overlap": 0.25} if stages[-1] == "evaluate" else WINDOW
    run_bundle(MSD, stages, **data_of(MSD), **given, ckpt_dir=trained / "models", output_dir=tmp_path)
    rows = list(csv.DictReader((tmp_path / "segmentation.csv").open()))
    dice = np.mean([float(row["dice"]) for row in rows])
    history = list(csv.DictReader((trained / "eval" / "history.csv").open()))
    assert dice > BOUND
    assert dice == pytest.approx(max(float(row["val_metric"]) for row in history if row["val_metric"]), abs=2e-3)


@pytest.mark.parametrize("stages", [["inference"], ["inference", "2d"]], ids="+".join)
def test_a_prediction_is_a_volume_in_the_space_of_its_scan(
    stages, trained, run_bundle, decathlon_task, data_of, tmp_path
):
    (tmp_path / "scans").mkdir()
    scan = decathlon_task / "imagesTr" / "liver_100.nii.gz"
    shutil.copy(scan, tmp_path / "scans")
    given = {"task": data_of(MSD)["task"], "dataset_dir": tmp_path / "scans", **WINDOW}
    run_bundle(MSD, stages, **given, ckpt_dir=trained / "models", output_dir=tmp_path / "out")
    (saved,) = (tmp_path / "out").glob("*/*_seg.nii.gz")
    prediction, original = nib.load(saved), nib.load(scan)
    assert prediction.shape == original.shape and prediction.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(prediction.affine) == nib.aff2axcodes(original.affine) == ("L", "P", "S")
    np.testing.assert_allclose(prediction.affine, original.affine, atol=1e-4)
    found = np.asarray(prediction.dataobj) > 0
    truth = np.asarray(nib.load(str(scan).replace("imagesTr", "labelsTr")).dataobj) > 0
    # the truth turned in any way overlaps less: no axis is turned
    overlaps = {
        axes: 2 * np.sum(found & np.flip(truth, axes)) / (found.sum() + truth.sum())
        for axes in [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    }
    assert overlaps[()] > BOUND and max(overlaps, key=lambda axes: overlaps[axes]) == ()


def test_slices_that_the_weights_are_not_of_are_refused_by_name(trained, run_bundle, data_of, tmp_path):
    given = {**data_of(MSD), "ckpt_dir": trained / "models", "output_dir": tmp_path}
    done = run_bundle(MSD, ["train", "evaluate"], status=1, slice_axis=1, **given)
    assert "--slice_axis: trained with 2, given 1" in done.stderr
    done = run_bundle(MSD, ["inference"], status=1, slice_axis="None", cube_size=[32, 32, 16], **given)
    assert "--slice_axis: trained with 2, given null" in done.stderr
    # the enclosed weights are of cubes, and their model.json is older than slices are
    given["ckpt_dir"] = ROOT / MSD / "models"
    done = run_bundle(MSD, ["train", "2d", "evaluate"], status=1, **given)
    assert "2d.json says 2, the weights are for None" in done.stderr
    done = run_bundle(MSD, ["inference", "2d"], status=1, **given)
    assert "--slice_axis: trained with null, given 2" in done.stderr


@pytest.mark.parametrize(("dims", "stages", "remedy"), [
    (2, ["inference"], "add configs/2d.json"), (3, ["inference", "2d"], "leave out configs/2d.json"),
])  # fmt: skip
def test_weights_without_settings_of_another_network_are_refused_too(
    dims, stages, remedy, run_bundle, data_of, tmp_path
):
    (tmp_path / "models").mkdir()
    network = GenesisUNet(dims, out_channels=2, features=FEATURES)
    save_weights(network.state_dict(), tmp_path / "models" / "model.pt")
    given = {**data_of(MSD), "features": FEATURES, **folders(tmp_path)}
    assert remedy in run_bundle(MSD, stages, status=1, **given).stderr


@pytest.mark.parametrize(("bundle", "axis"), [(LITS, 0), (LIDC, 2), (BRATS, 1)], ids=[LITS, LIDC, BRATS])
def test_each_bundle_trains_on_slices_from_3d_weights_and_predicts_volumes(
    bundle, axis, run_bundle, data_of, pretrained, tmp_path
):
    own = {**data_of(bundle), "slice_axis": axis, "cube_size": [16, 24], "overlap": 0.1}
    short = {"features": FEATURES, "epochs": 1, "val_interval": 1, "batch_size": 16, "cubes_per_case": 8}
    short |= {"warmup_epochs": 0, "pretrained": pretrained[3]}
    done = run_bundle(bundle, ["train", "2d"], **own, **short, **folders(tmp_path))
    assert f"the centre slice of each kernel along axis {axis}" in done.stdout
    assert json.loads((tmp_path / "models" / "model.json").read_text())["settings"]["slice_axis"] == axis
    given = {**data_of(bundle), "overlap": 0.1, "split": "validation"}
    run_bundle(bundle, ["inference"], **given, ckpt_dir=tmp_path / "models", output_dir=tmp_path / "out")
    predictions = sorted((tmp_path / "out").glob("*/*_seg.nii.gz"))
    assert predictions
    for path in predictions:
        name = path.name.removesuffix("_seg.nii.gz")
        (scan, *_) = sorted(Path(own["dataset_dir"]).rglob(f"{name}*.nii*"))
        assert nib.load(path).shape == nib.load(scan).shape
        np.testing.assert_allclose(nib.load(path).affine, nib.load(scan).affine, atol=1e-4)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_the_overlay_has_as_many_voxels_in_a_batch_and_an_epoch_as_the_cubes(bundle):
    train, overlay = config(bundle, "train"), config(bundle, "2d")
    cube = ConfigParser(train).get_parsed_content("cube_size")
    for key in ("batch_size", "cubes_per_case", "sw_batch_size"):
        assert overlay[key] * np.prod(overlay["cube_size"]) == train[key] * np.prod(cube), key
    assert set(overlay) <= set(train)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("bundle", BUNDLES)
def test_samples_are_slices_of_the_prepared_scan(bundle, axis, data_of):
    """Without flips and intensity changes a sample is a slice of image and label, wherever it was drawn."""
    parser = ConfigParser({**config(bundle, "train"), **config(bundle, "2d")})
    parser.update({**data_of(bundle), "cube_size": [16, 24], "slice_axis": axis, "flip_prob": 0, "intensity_prob": 0})
    parser.update({"pretrained": "none", "device": torch.device("cpu"), "cubes_per_case": 4})
    dataset = parser.get_parsed_content("train#dataset")
    scale = {BRATS: lambda image: image}.get(bundle, lambda image: (image.astype(np.float32) + 1000) / 2000)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["image"].shape[1:] == sample["label"].shape[1:] == (16, 24)
        scan = np.moveaxis(scale(np.asarray(dataset.scans[sample["scan"]]["image"])), axis + 1, 1)[0]
        plane = np.asarray(sample["image"])[0]
        windows = np.lib.stride_tricks.sliding_window_view(scan, (16, 24), axis=(1, 2))
        assert np.isclose(windows, plane, atol=1e-6).all(axis=(-1, -2)).any()
