# SPDX-License-Identifier: Apache-2.0
"""Pretraining on pictures and radiographs: listed, trained on, evaluated and restored, all in one scale."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from models_genesis.datasets import make_phantom
from models_genesis.datasets.__main__ import main
from models_genesis.networks import GenesisUNet, load_pretrained

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = "genesis_chest_ct_pretraining"
STAGES = ["train", "2d", "radiographs"]
SMALL = {
    "features": [4, 8, 16],
    "cube_size": [48, 40],
    "cubes_per_scan": 6,
    "batch_size": 6,
    "epochs": 3,
    "learning_rate": 0.02,
    "warmup_epochs": 0,
}


def write_dicom(path: Path, shares: np.ndarray, modality: str, kind: str) -> None:
    """Write shares of full scale as 12 bits with a window that gives them back."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stored = np.rint(1000 + (1 - shares if kind == "MONOCHROME1" else shares) * 2000).astype(np.uint16)
    classes = {"DX": DigitalXRayImageStorageForPresentation, "CR": ComputedRadiographyImageStorage}
    values: dict[str, Any] = {
        "SOPClassUID": classes[modality], "SOPInstanceUID": generate_uid(), "Modality": modality,
        "PatientID": path.stem, "Rows": stored.shape[0], "Columns": stored.shape[1], "SamplesPerPixel": 1,
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
        "PhotometricInterpretation": kind, "PixelData": stored.tobytes(), "ImagerPixelSpacing": [0.4, 0.4],
        "WindowCenter": 2000.5, "WindowWidth": 2001,
    }  # fmt: skip
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory) -> Path:
    """Phantoms seen from the front, one patient in each format, and their data list."""
    folder = tmp_path_factory.mktemp("radiographs")
    for seed in range(6):
        scan = make_phantom(seed % 3, region="chest", shape=(72, 64, 80)).image.astype(np.float64)
        dense = np.maximum(scan + 1000, 0).sum(axis=1)
        shares = ((dense - dense.min()) / np.ptp(dense)).T[::-1, ::-1]  # rows from the head, the left side right
        if seed < 3:
            top, dtype = ((255, np.uint8), (65535, np.uint16), (255, np.uint8))[seed]
            Image.fromarray(np.rint(shares * top).astype(dtype)).save(folder / f"p{seed}.{('png', 'png', 'jpg')[seed]}")
        else:
            kind = "MONOCHROME1" if seed == 4 else "MONOCHROME2"
            write_dicom(folder / f"p{seed}.dcm", shares, "CR" if seed == 5 else "DX", kind)
    line = ["folder", "--root", str(folder), "--out", str(folder / "list.json"), "--spatial-dims", "2"]
    assert main([*line, "--validation-fraction", "0.34"]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(run_bundle, radiographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    given = {"dataset_dir": radiographs, "datalist": radiographs / "list.json"}
    places = {"output_dir": folder / "eval", "ckpt_dir": folder / "models"}
    run_bundle(BUNDLE, STAGES, **given, **SMALL, **places)
    return folder


def test_pictures_teach_and_the_weights_say_in_which_scale(trained):
    rows = list(csv.DictReader((trained / "eval" / "history.csv").open()))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    settings = json.loads((trained / "models" / "model.json").read_text())["settings"]
    assert settings["normalise"] == "full_scale" and settings["intensity_range"] == [0, 1]
    assert settings["cube_size"] == [48, 40]
    report = load_pretrained(GenesisUNet(2, features=(4, 8, 16)), trained / "models" / "model.pt", strict=True)
    assert not report.missing


def test_evaluation_and_restored_images(trained, radiographs, run_bundle, tmp_path):
    given = {"dataset_dir": radiographs, "datalist": radiographs / "list.json", "ckpt_dir": trained / "models"}
    run_bundle(BUNDLE, [*STAGES, "evaluate"], output_dir=tmp_path, batch_size=6, **given)
    rows = list(csv.DictReader((tmp_path / "restoration.csv").open()))
    assert len(rows) == 3 and float(rows[-1]["mse_restored"]) < float(rows[-1]["mse_deformed"])
    run_bundle(BUNDLE, ["inference"], output_dir=tmp_path, modality="$None", **given)
    restored = sorted(tmp_path.glob("*/*_restored.nii.gz"))
    assert len(restored) == 2
    for path in restored:
        image = nib.load(path)
        assert image.shape == (72, 80, 1) and image.get_data_dtype() == np.float32
        assert 0 <= image.get_fdata().min() < image.get_fdata().max() <= 1


def test_every_format_gives_the_same_picture(radiographs):
    """The phantom of patient 0, as PNG of 8 bits, is that of patient 3, as DX; 1 and 4, 2 and 5 likewise."""
    from models_genesis.datasets import open_scan

    pictures = {path.stem: open_scan(str(path))[1]() for path in radiographs.iterdir() if path.stem != "list"}
    for one, two, tolerance in (("p0", "p3", 1 / 400), ("p1", "p4", 1 / 1900), ("p2", "p5", 0.15)):
        assert np.abs(pictures[one] - pictures[two]).max() < tolerance
    assert np.abs(pictures["p2"] - pictures["p5"]).mean() < 0.02  # JPEG is lossy
    assert np.abs(pictures["p0"] - pictures["p1"]).mean() > 0.02


def test_the_network_sees_a_picture_as_the_how_to_says(radiographs):
    """Turned to RAS, columns first; a patch of the whole picture leaves nothing to draw."""
    page = (ROOT / "docs" / "how-to" / "two-dimensions.md").read_text()
    assert "np.asarray(picture).T[::-1, ::-1] / 255" in page
    picture = Image.open(radiographs / "p0.png")
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundles" / BUNDLE / "configs" / f"{stage}.json") for stage in STAGES])
    parser["cube_size"] = list(picture.size)
    item = parser.get_parsed_content("train#preprocessing")({"image": str(radiographs / "p0.png")})
    seen = parser.get_parsed_content("train#random_transforms#transforms#0")(item)["image"]
    expected = np.asarray(picture).T[::-1, ::-1] / 255
    assert seen.shape == (1, *picture.size) == (1, 72, 80)
    np.testing.assert_allclose(np.asarray(seen)[0], expected, atol=1e-6)


def test_a_ct_is_refused_by_name(run_bundle, chest_scans, tmp_path):
    places = {"output_dir": tmp_path / "eval", "ckpt_dir": tmp_path / "models"}
    done = run_bundle(BUNDLE, STAGES, status=1, dataset_dir=chest_scans, **SMALL, **places)
    assert "patient" in done.stderr and "expected shares of full scale in [0, 1]" in done.stderr
