# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_runs import assert_restored, assert_same_end, folders, history
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models_genesis.datasets import build_datalist, write_datalist
from models_genesis.datasets.prepare import Preparation, prepare_store
from models_genesis.networks import GenesisUNet, load_pretrained

BUNDLE = "genesis_chest_ct_pretraining"
FEATURES = [4, 8, 16]
SMALL = {
    "features": FEATURES,
    "cube_size": [32, 32, 16],
    "cubes_per_scan": 8,
    "val_cubes_per_scan": 6,
    "batch_size": 4,
    "epochs": 3,
    "learning_rate": 0.01,
    "warmup_epochs": 1,
}


@pytest.fixture(scope="module")
def trained(run_bundle, chest_scans, tmp_path_factory) -> Path:
    """A finished training."""
    folder = tmp_path_factory.mktemp("trained")
    run_bundle(BUNDLE, ["train"], dataset_dir=chest_scans, **SMALL, **folders(folder))
    return folder


def test_training_learns_and_leaves_what_the_readme_promises(trained):
    losses = [float(loss) for _, loss, _ in history(trained)]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    made = {path.name for path in (trained / "eval").iterdir() if "tfevents" not in path.name}
    assert {"history.csv", "history.png", "restoration.png"} <= made
    made = {path.name for path in (trained / "models").iterdir()}
    assert made == {"model.pt", "model.json", "last_epoch.pt", "last_epoch_before_1.pt", "birth_certificate.json"}


def test_the_loss_goes_to_tensorboard(trained):
    events = EventAccumulator(str(trained / "eval"), size_guidance={"scalars": 0}).Reload()
    # three scans of eight cubes in batches of four, three epochs; every tenth iteration is noted
    assert [event.step for event in events.Scalars("train_loss")] == [10]


def test_weights_load_into_the_network_strictly(trained):
    network = GenesisUNet(features=FEATURES)
    report = load_pretrained(network, trained / "models" / "model.pt", strict=True)
    assert not report.skipped and not report.missing


def test_the_same_seed_gives_the_same_run_whatever_the_number_of_workers(trained, run_bundle, chest_scans, tmp_path):
    """Nor does a probe of the features change anything: it fits to two labelled scans and scores the third."""
    entries = []
    for number in range(3):
        scan = nib.load(chest_scans / f"patient{number}.nii.gz")
        lung = (np.asarray(scan.dataobj) < -500).astype(np.uint8)
        nib.save(nib.Nifti1Image(lung, scan.affine), tmp_path / f"lung{number}.nii.gz")
        entries.append({"image": str(chest_scans / f"patient{number}.nii.gz"), "label": f"lung{number}.nii.gz"})
    datalist = tmp_path / "probe.json"
    datalist.write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    probe = {"probe_datalist": datalist, "train#run#probe#interval": 1}
    run_bundle(BUNDLE, ["train"], dataset_dir=chest_scans, num_workers=2, **probe, **SMALL, **folders(tmp_path))
    assert history(tmp_path) == history(trained)
    last = list(csv.DictReader((tmp_path / "eval" / "history.csv").open()))[-1]
    # air against the rest is linear in any features that keep the intensity
    assert 0.5 < float(last["probe"]) <= 1 and 0.5 < float(last["probe_random"]) <= 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_store_gives_the_same_weights_as_the_files(
    num_workers, trained, bundle_command, run_bundle, chest_scans, tmp_path
):
    """Cubes are read straight from the store, and the scans themselves are not there."""
    datalist = tmp_path / "datalist.json"
    write_datalist(datalist, build_datalist(chest_scans, min_size=SMALL["cube_size"]))
    store = str(tmp_path / "store")
    prepare_store(
        datalist, store, chest_scans, preparation=Preparation(cube_size=tuple(SMALL["cube_size"])), progress=False
    )
    given = {"store": store, "dataset_dir": tmp_path / "nothing", "num_workers": num_workers}
    given |= {"train#dataset#cache_gib": 0}
    given |= folders(tmp_path) | SMALL
    if num_workers == 0:
        run_bundle(BUNDLE, ["train"], **given)
    else:  # by itself, for the server that forks workers ends a moment after the training
        line = bundle_command(BUNDLE, ["train"], **given)
        subprocess.run(line, check=True, timeout=600, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert history(tmp_path) == history(trained)
    weights = [torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (trained, tmp_path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    certificates = [folder / "models" / "birth_certificate.json" for folder in (trained, tmp_path)]
    data = [json.loads(certificate.read_text())["data"] for certificate in certificates]
    assert data[0] == data[1]


def test_resuming_equals_an_uninterrupted_run(trained, run_bundle, stop_training, chest_scans, tmp_path):
    """Killed at some moment, by SIGTERM and then by SIGKILL; the third run goes on to the same end."""
    arguments = {"dataset_dir": chest_scans, **SMALL, **folders(tmp_path)}
    last = tmp_path / "models" / "last_epoch.pt"
    stop_training(BUNDLE, signal.SIGTERM, last.exists, **arguments)
    done = history(tmp_path)[0]
    assert done == history(trained)[0]
    first_save = last.stat().st_mtime_ns
    saved_again = lambda: last.stat().st_mtime_ns > first_save  # noqa: E731
    stop_training(BUNDLE, signal.SIGKILL, saved_again, resume=True, **arguments)
    run_bundle(BUNDLE, ["train"], resume=True, **arguments)
    assert_same_end(tmp_path, trained)


def test_evaluation_compares_with_both_baselines(trained, run_bundle, chest_scans, tmp_path):
    small = {key: SMALL[key] for key in ("features", "cube_size", "val_cubes_per_scan", "batch_size")}
    run_bundle(
        BUNDLE,
        ["train", "evaluate"],
        dataset_dir=chest_scans,
        ckpt_dir=trained / "models",
        output_dir=tmp_path,
        **small,
    )
    rows = list(csv.DictReader((tmp_path / "restoration.csv").open()))
    assert [Path(row["scan"]).suffixes for row in rows[:-1]] == [[".nii", ".gz"]]
    assert rows[-1]["scan"] == "all"
    # The best network's error is the one that training noted, for the cubes are the same.
    best = min(float(value) for *_, value in history(trained))
    assert float(rows[-1]["mse_restored"]) == pytest.approx(best, rel=1e-4)
    assert float(rows[-1]["mse_restored"]) < float(rows[-1]["mse_deformed"])
    kinds = list(csv.DictReader((tmp_path / "restoration_kinds.csv").open()))
    assert {"mapped", "painted"} <= {row["kind"] for row in kinds} <= {"kept", "mapped", "shuffled", "painted"}
    assert sum(int(row["voxels"]) for row in kinds) == int(rows[-1]["cubes"]) * 32 * 32 * 16
    for column in ("mse_restored", "mse_deformed", "mse_mean_image"):  # the kinds make up the whole
        whole = sum(float(row[column]) * int(row["voxels"]) for row in kinds) / sum(int(row["voxels"]) for row in kinds)
        assert whole == pytest.approx(float(rows[-1][column]), abs=2e-6)


def test_inference_keeps_the_geometry(trained, run_bundle, chest_scans, tmp_path):
    run_bundle(
        BUNDLE,
        ["inference"],
        dataset_dir=chest_scans,
        ckpt_dir=trained / "models",
        output_dir=tmp_path,
        features=FEATURES,
        cube_size=SMALL["cube_size"],
    )
    assert_restored(tmp_path, chest_scans)


@pytest.mark.parametrize("override", [{"epoch": 1}, {"trian#trainer#max_epochs": 1}])
def test_a_mistyped_key_is_refused(run_bundle, chest_scans, tmp_path, override):
    done = run_bundle(BUNDLE, ["train"], status=1, dataset_dir=chest_scans, **folders(tmp_path), **override)
    assert "did you mean" in done.stderr
    assert not (tmp_path / "models").exists()


def test_a_missing_folder_and_a_broken_scan_are_named(run_bundle, chest_scans, tmp_path):
    done = run_bundle(BUNDLE, ["train"], status=1, dataset_dir=tmp_path / "nowhere", **folders(tmp_path))
    assert str(tmp_path / "nowhere") in done.stderr
    scans = tmp_path / "scans"
    scans.mkdir()
    for scan in chest_scans.iterdir():
        (scans / scan.name).write_bytes(scan.read_bytes())
    assert len(list(scans.iterdir())) == 4  # the scans are shared: no other test may write there
    broken = scans / "patient1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:20_000])
    listed = {"training": [{"image": p.name} for p in scans.iterdir()], "validation": [{"image": "patient0.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    arguments = {"dataset_dir": scans, "datalist": tmp_path / "list.json", **SMALL, "epochs": 1}
    done = run_bundle(BUNDLE, ["train"], status=1, **arguments, **folders(tmp_path))
    assert "patient1.nii.gz" in done.stderr
    done = run_bundle(BUNDLE, ["train"], on_bad_scan="skip", **arguments, **folders(tmp_path))
    assert "patient1.nii.gz" in done.stdout
    assert (tmp_path / "models" / "model.pt").exists()


@pytest.mark.parametrize(
    ("network_def", "network", "cube_size"),
    [
        (
            {"_target_": "SegResNet", "spatial_dims": 3, "init_filters": 8, "in_channels": 1, "out_channels": 1},
            lambda: SegResNet(3, 8, 1, 1),
            [32, 32, 16],
        ),
        (
            {
                "_target_": "DynUNet",
                "spatial_dims": 3,
                "in_channels": 1,
                "out_channels": 1,
                "kernel_size": [3, 3, 3],
                "strides": [1, 2, 2],
                "upsample_kernel_size": [2, 2],
                "filters": [4, 8, 16],
            },
            lambda: DynUNet(3, 1, 1, [3, 3, 3], [1, 2, 2], [2, 2], [4, 8, 16]),
            [32, 32, 16],
        ),
        (
            {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 1, "feature_size": 12},
            lambda: SwinUNETR(1, 1, feature_size=12),
            [64, 32, 32],
        ),
    ],
    ids=["SegResNet", "DynUNet", "SwinUNETR"],
)
def test_any_monai_network_can_be_pretrained(run_bundle, chest_scans, tmp_path, network_def, network, cube_size):
    override = tmp_path / "network.json"
    override.write_text(json.dumps({"network_def": network_def}))
    run_bundle(
        BUNDLE,
        ["train"],
        dataset_dir=chest_scans,
        network_def=f"%{override}::network_def",
        **{**SMALL, "cube_size": cube_size, "epochs": 1, "cubes_per_scan": 1, "val_cubes_per_scan": 1},
        **folders(tmp_path),
    )
    report = load_pretrained(network(), tmp_path / "models" / "model.pt", strict=True)
    assert not report.missing and not report.skipped


def test_two_processes_train_together(run_by_torchrun, chest_scans, tmp_path):
    given = {**SMALL, **folders(tmp_path), "dataset_dir": chest_scans, "epochs": 2}
    run_by_torchrun(BUNDLE, ["train", "multi_gpu_train"], **given)
    assert len(history(tmp_path)) == 2
    assert load_pretrained(GenesisUNet(features=FEATURES), tmp_path / "models" / "model.pt", strict=True).matched
