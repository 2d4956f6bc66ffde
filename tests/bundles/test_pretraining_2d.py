# SPDX-License-Identifier: Apache-2.0
"""Pretraining on slices by ``configs/2d.json``: trained, resumed, evaluated, restored, loaded and taken further."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_runs import assert_restored, assert_same_end, folders, history

from models_genesis.networks import GenesisClassifier, GenesisUNet, load_pretrained
from models_genesis.transforms import blocks_for_share

BUNDLE = "genesis_chest_ct_pretraining"
STAGES = ["train", "2d"]
SMALL = {
    "features": [4, 8, 16],
    "cube_size": [48, 40],
    "cubes_per_scan": 24,
    "val_cubes_per_scan": 12,
    "batch_size": 8,
    "epochs": 3,
    "learning_rate": 0.01,
    "warmup_epochs": 1,
    # the rate must not depend on the number of epochs, for the resumed run begins with fewer
    "lr_scheduler#t_total": 1000,
}


@pytest.fixture(scope="module")
def trained(run_bundle, chest_scans, tmp_path_factory) -> Path:
    """A finished training on axial slices, with a probe."""
    folder = tmp_path_factory.mktemp("trained")
    entries = []
    for number in range(2):
        scan = nib.load(chest_scans / f"patient{number}.nii.gz")
        lung = (np.asarray(scan.dataobj) < -500).astype(np.uint8)
        nib.save(nib.Nifti1Image(lung, scan.affine), folder / f"lung{number}.nii.gz")
        entries.append({"image": str(chest_scans / f"patient{number}.nii.gz"), "label": f"lung{number}.nii.gz"})
    (folder / "probe.json").write_text(json.dumps({"training": entries[:1], "validation": entries[1:]}))
    run_bundle(
        BUNDLE, STAGES, dataset_dir=chest_scans, probe_datalist=folder / "probe.json", **SMALL, **folders(folder)
    )
    return folder


def test_slices_teach_and_the_weights_say_what_they_are_of(trained):
    losses = [float(loss) for _, loss, _ in history(trained)]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    assert (trained / "eval" / "restoration.png").stat().st_size > 10_000
    settings = json.loads((trained / "models" / "model.json").read_text())["settings"]
    assert settings["cube_size"] == [48, 40] and settings["slice_axis"] == 2
    assert settings["num_blocks"] == blocks_for_share((48, 40))
    certificate = json.loads((trained / "models" / "birth_certificate.json").read_text())
    assert certificate["settings"]["slice_axis"] == 2
    last = list(csv.DictReader((trained / "eval" / "history.csv").open()))[-1]
    assert 0.5 < float(last["probe"]) <= 1 and 0.5 < float(last["probe_random"]) <= 1


def test_the_weights_move_to_networks_of_two_dimensions(trained):
    path = trained / "models" / "model.pt"
    report = load_pretrained(GenesisUNet(2, features=(4, 8, 16)), path, strict=True)
    assert not report.skipped and not report.missing
    segments = load_pretrained(GenesisUNet(2, out_channels=3, features=(4, 8, 16)), path)
    assert set(segments.skipped) == {"head.weight", "head.bias"} and not segments.unexpected
    classifies = load_pretrained(GenesisClassifier(2, features=(4, 8, 16)), path)
    assert classifies.matched and not classifies.unexpected
    assert GenesisUNet.from_pretrained(trained / "models").architecture["spatial_dims"] == 2
    with pytest.raises(ValueError, match=r"no encoder kernel .* fits GenesisUNet"):
        load_pretrained(GenesisUNet(3, features=(4, 8, 16)), path)


@pytest.mark.parametrize("deform_on", ["cpu", "step", "device"])
def test_each_backend_resumes_to_the_same_end(deform_on, trained, run_bundle, chest_scans, tmp_path):
    arguments = {"dataset_dir": chest_scans, "deform_on": deform_on, "device": "$torch.device('cpu')", **SMALL}
    arguments |= {"slice_axis": 1} if deform_on == "step" else {}
    whole, parts = trained, tmp_path / "parts"
    if deform_on != "cpu":
        whole = tmp_path / "whole"
        run_bundle(BUNDLE, STAGES, **arguments, **folders(whole))
    run_bundle(BUNDLE, STAGES, **{**arguments, "epochs": 1}, **folders(parts))
    run_bundle(BUNDLE, STAGES, resume=True, **arguments, **folders(parts))
    assert_same_end(parts, whole)


@pytest.mark.parametrize("stages", [["train", "evaluate"], ["train", "2d", "evaluate"]], ids=str)
def test_evaluation_knows_from_the_weights_that_they_are_of_slices(stages, trained, run_bundle, chest_scans, tmp_path):
    small = {key: SMALL[key] for key in ("val_cubes_per_scan", "batch_size")}
    run_bundle(
        BUNDLE, stages, dataset_dir=chest_scans, ckpt_dir=trained / "models", output_dir=tmp_path, **small
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "restoration.csv").open()))
    best = min(float(value) for *_, value in history(trained))
    assert float(rows[-1]["mse_restored"]) == pytest.approx(best, rel=1e-4)
    kinds = list(csv.DictReader((tmp_path / "restoration_kinds.csv").open()))
    assert sum(int(row["voxels"]) for row in kinds) == int(rows[-1]["cubes"]) * 48 * 40


def test_whole_scans_are_restored_slice_by_slice(trained, run_bundle, chest_scans, tmp_path):
    run_bundle(
        BUNDLE, ["inference"], dataset_dir=chest_scans, ckpt_dir=trained / "models", output_dir=tmp_path
    )  # fmt: skip
    assert_restored(tmp_path, chest_scans)


def test_other_slices_than_the_weights_are_refused_by_name(trained, run_bundle, chest_scans, tmp_path):
    given = {"dataset_dir": chest_scans, "ckpt_dir": trained / "models", "output_dir": tmp_path}
    done = run_bundle(BUNDLE, ["train", "evaluate"], status=1, slice_axis=1, **given)
    assert "--slice_axis: trained with 2, given 1" in done.stderr
    done = run_bundle(BUNDLE, ["train", "evaluate"], status=1, cube_size=[32, 32, 16], **given)
    assert "--cube_size: expected a list of 2 sides, for --slice_axis is 2" in done.stderr


def test_monai_loads_them_by_the_bundle_s_name(trained, bundles, tmp_path, forked_python):
    """``monai.bundle.load`` builds the network of ``train.json``, whose default is a cube."""
    shutil.copytree(bundles / BUNDLE, tmp_path / BUNDLE, ignore=shutil.ignore_patterns("models", "eval"))
    (tmp_path / BUNDLE / "models").mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / "models" / name, tmp_path / BUNDLE / "models" / name)
    code = f"""
import torch
from monai.bundle import load
for kind in ("train", "inference"):
    network = load({BUNDLE!r}, bundle_dir={str(tmp_path)!r}, source="github", workflow_type=kind)
    state = torch.load({str(trained / "models" / "model.pt")!r}, weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items()), kind
    assert network(torch.zeros(1, 1, 16, 24)).shape == (1, 1, 16, 24)
print("loaded")
"""
    (tmp_path / "load_both.py").write_text(code)
    done: subprocess.CompletedProcess[str] = forked_python([sys.executable, "-m", "load_both"], tmp_path, timeout=300)
    assert "loaded" in done.stdout, done.stderr[-3000:]
