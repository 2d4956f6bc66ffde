# SPDX-License-Identifier: Apache-2.0
"""Makes the modules of this folder importable, and the data that the documents speak of."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from models_genesis.datasets import Label, Phantom, make_phantom
from models_genesis.datasets.phantom.brain_mr import make_brain_phantom
from models_genesis.datasets.phantom.write_luna16 import write_luna16_phantom

sys.path.append(str(Path(__file__).parent))

from document_blocks import ROOT
from document_session import Session


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def others(image: np.ndarray, count: int) -> list[np.ndarray]:
    """Give scans of which none equals another: the first with as many kinds of noise."""
    draw = np.random.default_rng(0)
    return [(image + draw.normal(0, 5, image.shape)).astype(np.int16) for _ in range(count)]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for the ``/data`` of the documents: one phantom of each kind, as many scans."""
    folder = tmp_path_factory.mktemp("data")
    chest = make_phantom(0, region="chest", shape=(64, 64, 32))
    for number, image in enumerate(others(chest.image, 4)):
        save(folder / "my_ct" / f"patient{number}.nii.gz", image, chest.affine)
    brain = make_brain_phantom(0, shape=(64, 64, 32), spacing=(3, 3, 5))
    for number, image in enumerate(others(brain.images["t1"], 4)):
        save(folder / "my_mr" / f"patient{number}.nii.gz", image, brain.affine)
    save(folder / "mr_around_the_hippocampus" / "one.nii.gz", brain.images["t1"][16:48, 16:52], brain.affine)
    (folder / "xrays").mkdir()
    for number in range(4):
        shares = np.random.default_rng(number).integers(0, 256, (96, 80)).astype(np.uint8)
        Image.fromarray(shares).save(folder / "xrays" / f"{number:08}_000.png")
    write_livers(folder)
    write_luna16(folder / "luna16", 10)
    (folder / "LUNA16").symlink_to(folder / "luna16")
    write_new_scans(folder, chest)
    return folder


def write_livers(folder: Path) -> None:
    """Write livers as LiTS has them, as two folders with a table of folds, and as nnU-Net's raw data."""
    phantom = make_phantom(0, region="abdomen", shape=(48, 40, 32))
    liver = np.isin(phantom.label, [Label.LIVER, Label.LESION]).astype(np.uint8)
    images = others(phantom.image, 6)
    for number, image in zip((0, 1, 2, 100, 115), images[:5], strict=True):
        save(folder / "lits" / f"volume-{number}.nii", image, phantom.affine)
        save(folder / "lits" / f"segmentation-{number}.nii", liver, phantom.affine)
    raw = folder / "nnUNet_raw" / "Dataset004_Hippocampus"
    for number, image in enumerate(images):
        save(folder / "lidc_voi" / "image" / f"{number}.nii.gz", image, phantom.affine)
        save(folder / "lidc_voi" / "nodule_mask" / f"{number}.nii.gz", liver, phantom.affine)
        save(raw / ("imagesTr" if number < 5 else "imagesTs") / f"case_{number}_0000.nii.gz", image, phantom.affine)
        save(raw / ("labelsTr" if number < 5 else "labelsTs") / f"case_{number}.nii.gz", liver, phantom.affine)
    with (folder / "lidc_voi" / "metadata.csv").open("w", newline="") as file:
        rows = [(f"{number}.nii.gz", f"patient{number}", number % 3) for number in range(6)]
        csv.writer(file).writerows([("file", "patient_id", "luna16_fold"), *rows])
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))


def write_luna16(folder: Path, count: int) -> None:
    """Write one phantom in the layout of LUNA16 as the scan of several patients, one in each subset."""
    write_luna16_phantom(folder, 1, 1, (72, 60, 60), (3.0, 3.0, 3.0))
    (first,) = (path.stem for path in folder.glob("subset0/*.mhd"))
    for number in range(1, count):
        (folder / f"subset{number}").mkdir()
        for path in folder.glob("subset0/*"):
            shutil.copy(path, folder / f"subset{number}" / path.name.replace(first, f"{first}{number}"))
        header = folder / f"subset{number}" / f"{first}{number}.mhd"
        header.write_text(header.read_text().replace(first, f"{first}{number}"))
    for table in ("annotations.csv", "annotations_excluded.csv", "candidates_V2.csv"):
        names, *rows = (folder / table).read_text().splitlines()
        rows += [row.replace(first, f"{first}{number}") for number in range(1, count) for row in rows]
        (folder / table).write_text("\n".join([names, *rows]) + "\n")


def write_new_scans(folder: Path, chest: Phantom) -> None:
    """Write what a classification is used on: a scan with its candidates, and a scan around the point in the cards."""
    shutil.copytree(folder / "luna16" / "subset9", folder / "new")
    (scan,) = (folder / "new").glob("*.mhd")
    names, *rows = (folder / "luna16" / "candidates_V2.csv").read_text().splitlines()
    rows = [row for row in rows if row.startswith(f"{scan.stem},")]
    (folder / "new" / "candidates.csv").write_text("\n".join([names, *rows]) + "\n")
    affine = chest.affine.copy()
    affine[:3, 3] = np.array([57.4, -131.2, -520.4]) - affine[:3, :3] @ (np.array(chest.image.shape) / 2)  # RAS
    save(folder / "scan.nii.gz", chest.image, affine)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder for documents: of the project it has the bundles and the documents, and no package."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "bundles", folder / "bundles", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "scratch").mkdir()
    return folder


@pytest.fixture
def session(data: Path, forked: Any, project: Path) -> Session:
    """Documents run in this environment."""
    return Session(project, data, forked, project.parent / "scratch")


@pytest.fixture
def python_of(project: Path, load_script: Callable[[Path], ModuleType]) -> Iterator[Callable[..., Any]]:
    """Make the ``ForkedPython`` of an environment of a reader, with none of this process's variables but the path."""
    script = load_script(ROOT / "tests" / "forked_python.py")
    started = []

    def python(executable: Path, processes: int) -> Any:
        folder = project.parent / f"of_reader_{len(started)}"
        for name in ("home", "output"):
            (folder / name).mkdir(parents=True)
        environment = {"HOME": str(folder / "home"), "PATH": os.environ["PATH"], "MPLBACKEND": "agg"}
        started.append(script.ForkedPython(folder / "output", str(executable), environment, processes))
        return started[-1]

    yield python
    for each in started:
        each.close()


@pytest.fixture
def reader(data: Path, project: Path, wheel_environment: Callable[..., Path], python_of: Callable[..., Any]) -> Session:
    """Documents run by a reader who has installed the wheel and no extras: commands, and Python beside them."""
    python = python_of(wheel_environment(project.parent / "environment"), processes=2)
    return Session(project, data, python, project.parent / "scratch")
