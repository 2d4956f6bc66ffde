# SPDX-License-Identifier: Apache-2.0
"""This project's app in a running server: pretraining, fine-tuning, the least certain scan, and clicked points.

The tests are the course of one study and run in this order: the server starts with no weights at all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from monai.inferers import SlidingWindowInferer

from models_genesis.datasets import Label, make_phantom
from models_genesis.networks import GenesisClassifier, GenesisUNet, load_pretrained, save_weights

LITS, PRETRAINING = "genesis_lits_liver_ct_segmentation", "genesis_chest_ct_pretraining"
NODULES = "genesis_luna16_nodule_ct_classification"
FEATURES = [4, 8, 16]
LABELLED = ("phantom_0", "phantom_1")
UNLABELLED = ("phantom_2", "volume-0")
"""Besides there is a scan that is too small to learn from, and a broken one."""


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    """The values as they are in the file."""
    return np.asarray(image.dataobj)


@dataclass
class Study:
    """The app with its bundles and studies."""

    server: Any
    bundles: Path
    studies: Path
    labels: Path

    def weights(self, bundle: str) -> Path:
        return self.bundles / bundle / "models" / "model.pt"

    def log(self) -> str:
        return self.server.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def study(start_server, copy_bundle, copy_app, shared, tmp_path_factory) -> Iterator[Study]:
    folder = tmp_path_factory.mktemp("study")
    bundles, studies, labels = folder / "bundles", folder / "studies", folder / "labels"
    settings = {"amp": False, "learning_rate": 0.01}
    copy_bundle(LITS, bundles / LITS, **settings, overlap=0.25, warmup_epochs=1)
    copy_bundle(PRETRAINING, bundles / PRETRAINING, **settings)
    copy_bundle(NODULES, bundles / NODULES)
    for made in (studies, labels):
        made.mkdir()
    for seed in range(3):
        phantom = make_phantom(seed, region="abdomen", shape=(72, 64, 48))
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), studies / f"phantom_{seed}.nii.gz")
        liver = np.isin(phantom.label, (Label.LIVER, Label.LESION)).astype(np.uint8)
        nib.save(nib.Nifti1Image(liver, phantom.affine), labels / f"phantom_{seed}.nii.gz")
    shutil.copy(shared / "data" / "lits" / "volume-0.nii.gz", studies)
    nib.save(nib.Nifti1Image(phantom.image[:20, :20, :5], phantom.affine), studies / "small.nii.gz")
    (studies / "broken.nii.gz").write_bytes((studies / "volume-0.nii.gz").read_bytes()[:5000])
    app = copy_app(folder / "app")
    with start_server(app, studies, bundles=str(bundles), uncertainty=LITS) as server:
        yield Study(server, bundles, studies, labels)


def test_starts_without_weights(study):
    info = study.server.get("/info/")
    assert info["models"] == {}
    assert set(info["trainers"]) == {LITS, PRETRAINING}
    assert {"uncertainty", "first", "random"} <= set(info["strategies"])
    assert list(info["scoring"]) == ["uncertainty"]
    assert info["trainers"][LITS]["config"]["start_from"] == ["model", "pretrained", "scratch"]
    assert info["trainers"][PRETRAINING]["config"]["start_from"] == ["model", "scratch"]


def write_telling_weights(path: Path, scan: np.ndarray) -> None:
    """Write random weights, normalised by cubes of the scan, so that one place gets another answer than the next."""
    torch.manual_seed(0)
    network = GenesisClassifier(features=FEATURES)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0
    starts = np.random.default_rng(0).integers(0, np.array(scan.shape) - (32, 32, 16), (16, 3))
    cubes = np.stack([scan[x : x + 32, y : y + 32, z : z + 16] for x, y, z in starts]).astype(np.float32)
    with torch.no_grad():
        logits = network.train()(torch.from_numpy(np.clip((cubes + 1000) / 2000, 0, 1))[:, None])
        network.classes.weight.div_(logits.std())
        network.classes.bias.sub_(logits.mean()).div_(logits.std())
    save_weights(network.state_dict(), path)


def test_clicked_points_are_scored_as_the_bundle_scores_candidates(study, run_bundle, shared, tmp_path):
    """Voxels of a scan that is sent along, against a list of candidates in mm in LPS, as LUNA16 has it."""
    from monailabel.client import MONAILabelClient

    scan = shared / "data" / "ct" / "lidc_idri_0314.nii.gz"
    header = nib.load(scan)
    write_telling_weights(study.weights(NODULES), voxels(header))
    assert study.server.get("/info/")["models"][NODULES]["labels"] == {"nodule": 1}
    points = np.array([[60, 70, 50], [120, 80, 90], [3, 5, 7], [150, 60, 20]])
    ras = nib.affines.apply_affine(header.affine, points)
    rows = [f"lidc_idri_0314,{-x},{-y},{z}" for x, y, z in ras]
    (tmp_path / "candidates.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ", *rows]) + "\n")
    given = {"dataset_dir": scan, "candidates": tmp_path / "candidates.csv", "output_dir": tmp_path / "out"}
    run_bundle(study.bundles / NODULES, "inference", tmp_path, **given)
    (written,) = (path for path in (tmp_path / "out").glob("*.csv") if "probability" in path.read_text())
    with written.open() as stream:
        expected = [float(row["probability"]) for row in csv.DictReader(stream)]
    assert min(abs(a - b) for number, a in enumerate(expected) for b in expected[:number]) > 1e-4

    client = MONAILabelClient(study.server.url, tmpdir=str(tmp_path))
    clicked = [*points.tolist(), [500, 0, 0]]
    file, result = client.infer(NODULES, "", {"nodule": clicked}, file=str(scan))
    assert [each["probability"] for each in result["points"][:4]] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose([each["ras"] for each in result["points"][:4]], ras, atol=1e-4)
    assert result["points"][4]["probability"] is None and result["points"][4]["reason"] == "outside its scan"
    names = [f"nodule {value:.3f} ({number})" for number, value in enumerate(expected, 1)]
    assert list(result["label_names"])[:4] == names and list(result["label_names"].values()) == [1, 2, 3, 4, 5]
    label = nib.load(file)
    assert label.shape == header.shape and label.get_data_dtype() == np.uint8
    np.testing.assert_allclose(label.affine, header.affine, atol=1e-4)
    assert voxels(label)[tuple(points.T)].tolist() == [1, 2, 3, 4]
    # the same by mm, and in a scan of the studies, which its file gives
    again = client.infer(NODULES, "", {"points_ras": ras.tolist()}, file=str(scan))[1]
    assert [each["probability"] for each in again["points"]] == pytest.approx(expected, abs=1e-5)
    assert client.infer(NODULES, "volume-0", {"foreground": [[60, 50, 15]]})[1]["points"][0]["probability"] is not None


def test_a_request_without_points_says_what_is_expected(study):
    import requests

    answer = requests.post(f"{study.server.url}/infer/{NODULES}", params={"image": "volume-0"}, timeout=60)
    assert answer.status_code == 400
    assert "expected points" in answer.json()["detail"]


def test_fine_tuning_without_labels_says_what_is_missing(study):
    request = {"start_from": "pretrained", "max_epochs": 1, "device": "cpu"}
    study.server.post(f"/train/{LITS}", request)
    status = study.server.wait("train", state="ERROR")
    assert "expected cases to train on, found none" in "\n".join(status["details"])


def test_pretraining_can_be_cancelled(study):
    study.server.post(f"/train/{PRETRAINING}", {"max_epochs": 1000, "device": "cpu", "cubes_per_scan": 8})
    deadline = time.monotonic() + 200
    while not any("epoch 1/1000" in line for line in study.server.get("/train/").get("details", [])):
        assert study.server.get("/train/")["status"] in ("SUBMITTED", "RUNNING"), study.server.tail()
        assert time.monotonic() < deadline, study.server.tail()
        time.sleep(0.5)
    (process,) = [
        each
        for each in psutil.Process(study.server.process.pid).children(recursive=True)
        if "train" in each.cmdline() and each.status() != psutil.STATUS_ZOMBIE
    ]
    assert study.server.delete("/train/")["status"] == "STOPPED"
    process.wait(20)
    assert study.server.get("/train/")["status"] == "STOPPED"
    if study.weights(PRETRAINING).exists():  # whole or not at all
        torch.load(study.weights(PRETRAINING), weights_only=True)


def test_pretraining_learns_from_all_scans_that_can_be_read(study):
    request = {"max_epochs": 2, "start_from": "scratch", "device": "cpu", "cubes_per_scan": 8}
    study.server.post(f"/train/{PRETRAINING}", request)
    status = study.server.wait("train")
    log = study.log()
    assert "epoch 2/2" in "\n".join(status["details"])
    for name in ("small.nii.gz", "broken.nii.gz"):
        assert f"{study.studies}/{name}" in log and "left out" in log
    network = GenesisUNet(features=FEATURES)
    report = load_pretrained(network, study.weights(PRETRAINING), strict=True)
    assert len(report.matched) == len(network.state_dict())
    assert LITS not in study.server.get("/info/")["models"]


def test_fine_tuning_starts_from_what_was_pretrained(study, tmp_path):
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(study.server.url, tmpdir=str(tmp_path))
    for name in LABELLED:
        client.save_label(name, str(study.labels / f"{name}.nii.gz"), tag="final")
    client.train_start(LITS, {"max_epochs": 6, "val_split": 0.5, "device": "cpu"})
    study.server.wait("train")
    assert f"{PRETRAINING}/models/model.pt" in study.log()
    assert "0 matched" not in study.log()
    # without a restart
    assert study.server.get("/info/")["models"][LITS]["labels"] == {"liver": 1}


def test_the_label_map_is_that_of_the_bundle(study, run_bundle, tmp_path):
    scan = study.studies / "volume-0.nii.gz"
    (tmp_path / "datalist.json").write_text(json.dumps({"testing": [{"image": str(scan)}]}))
    given = {"dataset_dir": tmp_path, "datalist": tmp_path / "datalist.json", "output_dir": tmp_path / "predicted"}
    run_bundle(study.bundles / LITS, "inference", tmp_path, **given)
    expected = voxels(nib.load(tmp_path / "predicted" / "volume-0" / "volume-0_seg.nii.gz"))
    found = study.server.infer(LITS, tmp_path / "found.nii.gz", image="volume-0")
    np.testing.assert_array_equal(voxels(found), expected)
    np.testing.assert_allclose(found.affine, nib.load(scan).affine, atol=1e-4)


def test_fine_tuning_can_start_over(study):
    """From the pretrained weights or from scratch, though there is a ``model.pt`` to go on from."""
    for start in ("pretrained", "scratch", "model"):
        length = len(study.log())
        study.server.post(f"/train/{LITS}", {"max_epochs": 1, "start_from": start, "device": "cpu"})
        study.server.wait("train")
        log = study.log()[length:]
        assert ("the training starts from" in log) == (start == "model")
        assert ("is trained from scratch" in log) == (start == "scratch")


def entropy(study: Study, name: str) -> float:
    """Mean entropy, written out: softmax of both ways round, their mean, in units of ln 2."""
    image = nib.as_closest_canonical(nib.load(study.studies / f"{name}.nii.gz"))
    scaled = np.clip((np.asarray(image.dataobj, np.float32) + 1000) / 2000, 0, 1)
    network = GenesisUNet(features=FEATURES, out_channels=2).eval()
    network.load_state_dict(torch.load(study.weights(LITS), weights_only=True))
    inferer = SlidingWindowInferer([32, 32, 16], sw_batch_size=4, overlap=0.25, mode="gaussian")
    batch = torch.from_numpy(scaled)[None, None]
    with torch.no_grad():
        mean = inferer(batch, network).softmax(1) + inferer(batch.flip(2), network).softmax(1).flip(2)
    mean = (mean / 2).double()
    return float(-(mean * mean.clamp_min(1e-300).log()).sum(1).mean() / np.log(2))


def test_the_next_scan_is_the_least_certain(study, tmp_path):
    """Scores come by themselves after the training; asking again changes nothing; a label makes the next one come."""
    from monailabel.client import MONAILabelClient

    study.server.wait("scoring")
    current = hashlib.sha256(study.weights(LITS).read_bytes()).hexdigest()[:16]
    deadline = time.monotonic() + 60  # the server sees what the scoring process has written a moment later
    while True:
        objects = study.server.get("/datastore/", output="all")["objects"]
        found = {name: each["image"]["info"].get("uncertainty", {}) for name, each in objects.items()}
        if all(found[name].get("weights") == current for name in (*UNLABELLED, "small")):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    scores = {name: each.get("score") for name, each in found.items()}
    assert {name for name, score in scores.items() if score is not None} == {*UNLABELLED, "small"}
    for name in UNLABELLED:
        # float32 against float32 in another order of operations
        assert scores[name] == pytest.approx(entropy(study, name), rel=1e-4)
    first, second, third = sorted((*UNLABELLED, "small"), key=lambda name: scores[name], reverse=True)
    for _ in range(2):
        chosen = study.server.post("/activelearning/uncertainty", {})
        assert (chosen["id"], chosen["score"]) == (first, scores[first])
    study.server.wait("scoring")  # each choice asks for scores, too
    again = study.server.post("/scoring/uncertainty", {}, run_sync=True)
    assert (
        again["scores"] == {} and set(again["skipped"]) == {first, second, third} and set(again["failed"]) == {"broken"}
    )
    scan = nib.load(study.studies / f"{first}.nii.gz")
    nib.save(nib.Nifti1Image(np.ones(scan.shape, np.uint8), scan.affine), tmp_path / "label.nii.gz")
    MONAILabelClient(study.server.url).save_label(first, str(tmp_path / "label.nii.gz"), tag="final")
    assert study.server.post("/activelearning/uncertainty", {})["id"] == second
