# SPDX-License-Identifier: Apache-2.0
"""Only weights, settings, certificate and reports that are about the same file come into a bundle together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from models_genesis.networks.weight_container import sha256_of
from models_genesis.training import save_trained_weights
from models_genesis.training.handlers.birth_certificate import CERTIFICATE, write_birth_certificate

ROOT = Path(__file__).resolve().parents[2]
LIDC = "genesis_lidc_nodule_ct_segmentation"


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script(ROOT / "tools" / "ship_weights.py")


@pytest.fixture
def trained(tmp_path) -> Path:
    folder = tmp_path / "trained"
    folder.mkdir()
    save_trained_weights({"head.weight": torch.ones(2, 1)}, folder / "model.pt", {"features": [8, 16]})
    write_birth_certificate(folder / "model.pt", {"seed": 0}, {"datalist": None}, {"training": []}, {"epochs": 1})
    return folder


@pytest.fixture
def bundle(tmp_path) -> Path:
    shutil.copytree(ROOT / "bundles" / LIDC / "configs", tmp_path / LIDC / "configs")
    return tmp_path / LIDC


def report(folder: Path, dice: float, **facts) -> Path:
    path = folder / "segmentation.json"
    content = {"regions": {"nodule": {"dice": {"mean": dice, "low": 0.7, "high": 0.8}}}, **facts}
    path.write_text(json.dumps(content))
    path.with_suffix(".csv").write_text(
        "case,region,dice,iou\n/a/P1.nii,nodule,0.75004,0.6\n/a/P2.nii,nodule,0.5,0.33\n"
    )
    return path


def test_all_four_come_together_and_the_metadata_state_the_unseen_score(tool, trained, bundle):
    path = report(trained, 0.7612, weights_sha256=sha256_of(trained / "model.pt"))
    tool.main([str(bundle), "--ckpt_dir", str(trained), "--report", f"testing={path}", "--report", f"validation={path}",
               "--command", "testing=run --a=b"])  # fmt: skip
    for name in ("model.pt", "model.json"):
        assert (bundle / "models" / name).read_bytes() == (trained / name).read_bytes()
    certificate = json.loads((bundle / "models" / CERTIFICATE).read_text())
    assert certificate["evaluations"]["testing"]["command"] == "run --a=b"
    assert certificate["evaluations"]["testing"]["report"]["regions"]["nodule"]["dice"]["mean"] == 0.7612
    assert certificate["evaluations"]["testing"]["dice_by_case"] == {
        "P1.nii": {"nodule": 0.75},
        "P2.nii": {"nodule": 0.5},
    }
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {"testing_dice_nodule": 0.7612}


def test_a_report_on_other_weights_is_refused(tool, trained, bundle):
    with pytest.raises(ValueError, match=r"segmentation\.json: expected it to be about .*model\.pt \([0-9a-f]{64}\)"):
        tool.ship(bundle, trained, {"testing": report(trained, 0.9, weights_sha256="0" * 64)}, {})
    with pytest.raises(ValueError, match="found None"):
        tool.ship(bundle, trained, {"testing": report(trained, 0.9)}, {})
    assert not (bundle / "models").exists()


def test_a_certificate_of_other_weights_is_refused(tool, trained, bundle):
    own = {"testing": report(trained, 0.9, weights_sha256=sha256_of(trained / "model.pt"))}
    certificate = json.loads((trained / CERTIFICATE).read_text())
    certificate["weights"]["sha256"] = "1" * 64
    (trained / CERTIFICATE).write_text(json.dumps(certificate))
    with pytest.raises(ValueError, match=rf"{CERTIFICATE}: expected it to be about"):
        tool.ship(bundle, trained, own, {})


def test_a_training_that_was_cut_off_is_not_shipped(tool, trained, bundle):
    (trained / CERTIFICATE).unlink()
    with pytest.raises(FileNotFoundError, match="reached its end"):
        tool.ship(bundle, trained, {}, {})


def test_weights_without_an_evaluation_are_not_shipped(tool, trained, bundle):
    own = report(trained, 0.9, weights_sha256=sha256_of(trained / "model.pt"))
    for reports in ({}, {"validation": own}):
        with pytest.raises(ValueError, match="expected a report on data that did not choose the weights, found"):
            tool.ship(bundle, trained, reports, {})


def test_a_report_on_cases_of_the_training_is_refused(tool, trained, bundle):
    seen = {"training": [{"image": {"file": "images/P2.nii", "sha256": "0"}}]}
    write_birth_certificate(trained / "model.pt", {"seed": 0}, {"datalist": None}, seen, {"epochs": 1})
    own = report(trained, 0.9, weights_sha256=sha256_of(trained / "model.pt"))
    with pytest.raises(ValueError, match=r"has not seen, found \['P2\.nii'\]"):
        tool.ship(bundle, trained, {"testing": own}, {})


def classification(folder: Path, *series: str) -> Path:
    """Write a report on candidates, two of the first series."""
    path = folder / "classification.json"
    ranking = {"auc": 0.91234, "average_precision": None}
    facts = {"candidates_file": "/home/me/candidates.csv", "weights_sha256": sha256_of(folder / "model.pt")}
    path.write_text(json.dumps({"ranking": ranking, **facts}))
    rows = [f"{name},1,2,3,0.{number}25" for number, name in enumerate([series[0], *series], start=1)]
    (folder / "predictions.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,probability", *rows]) + "\n")
    return path


def test_a_classification_keeps_the_probability_of_each_candidate(tool, trained, bundle):
    certificate = tool.ship(bundle, trained, {"testing": classification(trained, "1.2.3", "1.2.4")}, {})
    assert certificate["evaluations"]["testing"]["probabilities_by_scan"] == {
        "1.2.3": [0.125, 0.225],
        "1.2.4": [0.325],
    }
    assert "dice_by_case" not in certificate["evaluations"]["testing"]
    assert certificate["evaluations"]["testing"]["report"]["candidates_file"] == "candidates.csv"
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["eval_metrics"] == {"testing_auc": 0.9123}


def test_a_classification_of_the_trainings_scans_is_refused(tool, trained, bundle):
    seen = {"validation": [{"image": {"file": "subset0/1.2.4.mhd", "sha256": "0"}}]}
    write_birth_certificate(trained / "model.pt", {"seed": 0}, {"datalist": None}, seen, {"epochs": 1})
    with pytest.raises(ValueError, match=r"classification\.json: .* has not seen, found \['1\.2\.4'\]"):
        tool.ship(bundle, trained, {"testing": classification(trained, "1.2.3", "1.2.4")}, {})


def restoration(folder: Path) -> Path:
    path = folder / "restoration.json"
    errors = {"mse_restored": 0.01, "mse_deformed": 0.2, "mse_mean_image": 0.02}
    path.write_text(json.dumps({"scans": 1, **errors, "weights_sha256": sha256_of(folder / "model.pt")}))
    table = ",".join(["scan", "cubes", *errors]), "/a/ct_1.nii.gz,4,0.01,0.2,0.02", "all,4,0.01,0.2,0.02"
    path.with_suffix(".csv").write_text("\n".join(table) + "\n")
    return path


def test_a_pretraining_keeps_the_errors_of_each_scan(tool, trained, bundle):
    certificate = tool.ship(bundle, trained, {"testing": restoration(trained)}, {})
    assert certificate["evaluations"]["testing"]["errors_by_scan"] == {
        "ct_1.nii.gz": {"mse_restored": 0.01, "mse_deformed": 0.2, "mse_mean_image": 0.02}
    }


def test_a_restoration_of_the_trainings_scans_is_refused(tool, trained, bundle):
    seen = {"training": [{"image": {"file": "ct/ct_1.nii.gz", "sha256": "0"}}]}
    write_birth_certificate(trained / "model.pt", {"seed": 0}, {"datalist": None}, seen, {"epochs": 1})
    with pytest.raises(ValueError, match=r"restoration\.json: .* has not seen, found \['ct_1\.nii\.gz'\]"):
        tool.ship(bundle, trained, {"testing": restoration(trained)}, {})


def test_two_cases_of_one_name_are_refused(tool, trained, bundle):
    path = report(trained, 0.9, weights_sha256=sha256_of(trained / "model.pt"))
    path.with_suffix(".csv").write_text("case,region,dice\n/a/P1.nii,nodule,0.7\n/b/P1.nii,nodule,0.5\n")
    with pytest.raises(ValueError, match=r"found P1\.nii twice"):
        tool.ship(bundle, trained, {"testing": path}, {})


def test_a_region_that_some_or_all_cases_lack_has_no_score(tool, trained):
    """Such as a tumour that a healthy case has not."""
    path = report(trained, 0.7)
    content = json.loads(path.read_text())
    content["regions"]["tumour"] = {"dice": {"mean": 0.4}}
    content["regions"]["cyst"] = {"dice": {"mean": None}}
    assert tool.headline(content) == {"mean_dice": 0.55, "dice_nodule": 0.7, "dice_tumour": 0.4}
    path.with_suffix(".csv").write_text(
        "case,region,dice,iou\n/a/P1.nii,nodule,0.7,0.6\n/a/P1.nii,tumour,,\n/a/P2.nii,tumour,0.4,0.3\n"
    )
    assert tool.scores_by_case(path) == {"P1.nii": {"nodule": 0.7}, "P2.nii": {"tumour": 0.4}}
    path.with_suffix(".csv").write_text("case,region,dice\n/a/P1.nii,tumour,\n/b/P1.nii,tumour,\n")
    with pytest.raises(ValueError, match=r"P1\.nii twice"):
        tool.scores_by_case(path)
