# SPDX-License-Identifier: Apache-2.0
"""The weights in the repository do what their birth certificates say, in the hands of a user who gives no key."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from models_genesis.networks.weight_container import sha256_of

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
DATA = ROOT.parent / "shared" / "data"
MSD, LIDC = "genesis_msd_segmentation", "genesis_lidc_nodule_ct_segmentation"
LUNA = "genesis_luna16_nodule_ct_classification"
PRETRAINING = "genesis_chest_ct_pretraining"
SHIPPED = sorted(path.parents[1].name for path in BUNDLES.glob("*/models/birth_certificate.json"))
SEGMENTATION = {MSD: DATA / "msd" / "Task04_Hippocampus", LIDC: DATA / "lidc" / "voi"}


def certificate_of(bundle: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((BUNDLES / bundle / "models" / "birth_certificate.json").read_text())
    return content


def test_what_ships():
    assert SHIPPED == sorted([MSD, LIDC, LUNA, PRETRAINING])


@pytest.mark.parametrize("bundle", SHIPPED)
def test_certificate_settings_and_metadata_are_of_the_weights(bundle):
    models = BUNDLES / bundle / "models"
    certificate = certificate_of(bundle)
    settings = json.loads((models / "model.json").read_text())
    digest = sha256_of(models / "model.pt")
    assert certificate["weights"]["sha256"] == settings["weights"]["sha256"] == digest
    assert (models / "model.pt").stat().st_size <= 25 * 1024**2
    tensors = torch.load(models / "model.pt", weights_only=True).values()
    assert certificate["weights"]["values"] == sum(each.numel() for each in tensors if each.is_floating_point())
    assert all(report["report"]["weights_sha256"] == digest for report in certificate["evaluations"].values())
    metadata = json.loads((BUNDLES / bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"]
    assert not re.search(r'"(/|\.\./|[A-Za-z]:\\)', json.dumps([certificate, settings]))  # no paths of the machine


@pytest.mark.parametrize("bundle", SHIPPED)
def test_what_was_measured_was_not_trained_on_and_may_be_given_away(bundle):
    certificate = certificate_of(bundle)
    licence = certificate["datalist"]["licence"]
    assert licence and "NC" not in licence.upper().replace("-", " ").split()
    trained = {scan["image"]["file"] for part in certificate["data"].values() for scan in part}
    assert trained and all(scan["image"]["sha256"] for part in certificate["data"].values() for scan in part)
    for part, evaluation in certificate["evaluations"].items():
        if part not in ("training", "validation") and bundle == LUNA:
            stems = {Path(name).name.removesuffix(".nii.gz") for name in trained}
            assert not stems & set(evaluation["probabilities_by_scan"])
        elif part not in ("training", "validation") and bundle == PRETRAINING:
            assert not {Path(name).name for name in trained} & set(evaluation["errors_by_scan"])
        elif part not in ("training", "validation"):
            assert not {Path(name).name for name in trained} & set(evaluation["dice_by_case"])
            if bundle == MSD:  # the two sides of a person are files of neighbouring numbers
                person = [
                    {(int(name[-10:-7]) + 1) // 2 for name in names} for names in (trained, evaluation["dice_by_case"])
                ]
                assert not person[0] & person[1]


def dice(predicted: np.ndarray, truth: np.ndarray, value: int) -> float:
    a, b = predicted == value, truth == value
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture
def infer(forked_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., None]:
    """Run a bundle's inference from another folder, on ``folder/scans`` to ``folder/out``."""

    def run(bundle: str, folder: Path, **keys: Any) -> None:
        root = BUNDLES / bundle
        given = {"bundle_root": root, "dataset_dir": folder / "scans", "output_dir": folder / "out", **keys}
        words = [part for key, value in given.items() for part in (f"--{key}", str(value))]
        command = ["monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json"), *words]
        done = forked_python([sys.executable, "-m", *command], folder, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.mark.parametrize("bundle", [bundle for bundle in SHIPPED if bundle in SEGMENTATION])
def test_inference_needs_no_key_and_scores_as_certified(bundle, infer, tmp_path):
    source = SEGMENTATION[bundle]
    if not source.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    certificate = certificate_of(bundle)
    lists = json.loads((ROOT / "docs" / "evidence" / certificate["datalist"]["file"]).read_text())
    labels = {name: int(value) for value, name in lists["labels"].items() if int(value) > 0}
    cases = certificate["evaluations"]["testing"]["dice_by_case"]
    tested = [entry for entry in lists["testing"] if Path(entry["image"]).name in cases]
    chose = {scan["patient"] for part in certificate["data"].values() for scan in part}
    assert chose and not chose & {entry["patient"] for entry in tested}
    assert len(tested) == len(cases)
    entries = tested[:: len(tested) // 3][:3]
    (tmp_path / "scans").mkdir()
    for entry in entries:
        shutil.copy(source / entry["image"], tmp_path / "scans")
    infer(bundle, tmp_path)
    for entry in entries:
        stem = Path(entry["image"]).name.removesuffix(".nii.gz")
        predicted = nib.load(tmp_path / "out" / stem / f"{stem}_seg.nii.gz")
        truth = nib.load(source / entry["label"])
        assert predicted.shape == truth.shape
        np.testing.assert_allclose(predicted.affine, truth.affine, atol=1e-4)
        certified = cases[Path(entry["image"]).name]
        for name, value in labels.items():
            found = dice(np.asarray(predicted.dataobj), np.asarray(truth.dataobj), value)
            # the certificate's machine computed in float32; bfloat16 moves a few voxels at the surface
            assert found == pytest.approx(certified[name], abs=0.02), (stem, name)


@pytest.mark.parametrize("bundle", [bundle for bundle in SHIPPED if bundle in SEGMENTATION])
def test_the_mean_of_the_cases_is_the_reported_one(bundle):
    evaluation = certificate_of(bundle)["evaluations"]["testing"]
    for region, means in evaluation["report"]["regions"].items():
        values = [scores[region] for scores in evaluation["dice_by_case"].values()]
        assert np.mean(values) == pytest.approx(means["dice"]["mean"], abs=1e-4)
    assert len(evaluation["dice_by_case"]) == evaluation["report"]["cases"]


def test_candidates_are_told_apart_as_certified(infer, load_script, tmp_path):
    """The candidates of test patients, cut again from the source, in a table that a user would have."""
    source = DATA / "lidc" / "fp_candidates"
    if not source.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    load_script(ROOT / "tools" / "study_data.py").candidates(source, tmp_path / "data")
    certificate = certificate_of(LUNA)
    assert sha256_of(tmp_path / "data" / "weights.json") == certificate["datalist"]["sha256"]
    evaluation = certificate["evaluations"]["testing"]
    certified = {name: values[0] for name, values in evaluation["probabilities_by_scan"].items()}
    tested = json.loads((tmp_path / "data" / "weights.json").read_text())["testing"]
    assert {entry["seriesuid"] for entry in tested} == set(certified)
    chose = {scan["patient"] for part in certificate["data"].values() for scan in part}
    assert chose and not chose & {entry["patient"] for entry in tested}
    (tmp_path / "scans").mkdir()
    for name in certified:
        shutil.copy(tmp_path / "data" / "image" / f"{name}.nii.gz", tmp_path / "scans")
    with (tmp_path / "data" / "candidates.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["seriesuid"] in certified]
    truth = {row["seriesuid"]: int(row["class"]) for row in rows}
    with (tmp_path / "candidates.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seriesuid", "coordX", "coordY", "coordZ"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    infer(LUNA, tmp_path, candidates=tmp_path / "candidates.csv")
    with (tmp_path / "out" / "candidates.csv").open(newline="") as file:
        found = {row["seriesuid"]: float(row["probability"]) for row in csv.DictReader(file)}
    assert found == pytest.approx(certified, abs=0.02)  # float32 here and there
    positives, negatives = (np.array([found[name] for name in truth if truth[name] == kind]) for kind in (1, 0))
    area = np.mean(np.sign(positives[:, None] - negatives[None]) / 2 + 0.5)
    assert area == pytest.approx(evaluation["report"]["ranking"]["auc"], abs=0.005)


def test_cubes_are_restored_as_certified(forked_python, tmp_path):
    """The command of the certificate; no scan of a test patient has trained or chosen the weights."""
    if not DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    certificate = certificate_of(PRETRAINING)
    evaluation = certificate["evaluations"]["testing"]
    datalist = ROOT / "docs" / "evidence" / "ct.tested.json"
    tested = json.loads(datalist.read_text())["validation"]
    assert {Path(entry["image"]).name for entry in tested} == set(evaluation["errors_by_scan"])
    chose = {scan["patient"] for part in certificate["data"].values() for scan in part}
    assert chose and not chose & {entry["patient"] for entry in tested}
    root = BUNDLES / PRETRAINING
    given = {"bundle_root": root, "dataset_dir": DATA, "datalist": datalist, "output_dir": tmp_path}
    given |= {"tissue_score_range": "[0.05,1.0]", "val_cubes_per_scan": 64, "batch_size": 8}
    configs = str([str(root / "configs" / f"{stage}.json") for stage in ("train", "evaluate")])
    words = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", configs, *words]
    done = forked_python(line, tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "restoration.json").read_text())
    certified = evaluation["report"]
    assert found["weights_sha256"] == certificate["weights"]["sha256"]
    assert found["mse_deformed"] == pytest.approx(certified["mse_deformed"], abs=1e-5)
    assert found["mse_restored"] == pytest.approx(certified["mse_restored"], abs=5e-4)  # bfloat16 where there is one


def test_the_mean_of_the_restored_scans_is_the_reported_one():
    evaluation = certificate_of(PRETRAINING)["evaluations"]["testing"]
    values = [errors["mse_restored"] for errors in evaluation["errors_by_scan"].values()]
    assert np.mean(values) == pytest.approx(evaluation["report"]["mse_restored"], abs=1e-6)  # as many cubes of each
