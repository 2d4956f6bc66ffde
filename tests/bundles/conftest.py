# SPDX-License-Identifier: Apache-2.0
"""Runs bundles as a user does: in a process of their own, from another directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from models_genesis.datasets import Label, make_phantom, write_embolism_phantom
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.phantom.brain_mr import make_brain_phantom
from models_genesis.datasets.phantom.write_luna16 import write_luna16_phantom

sys.path.append(str(Path(__file__).parent))  # for bundle_runs.py

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"

LEFT_THREADS = """
import sys
from pathlib import Path


def report():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in names if "gloo" in name]
    sys.stdout.write(f"left threads: {left}\\n")  # at once, for two processes write
"""

RunBundle = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bundles() -> Path:
    return BUNDLES


@pytest.fixture(scope="session")
def run_build(forked_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Run ``bundles/build.py`` where it needs MONAI; gives what it said. ``status`` is what it must exit with."""

    def run(*arguments: str, status: int = 0) -> str:
        done = forked_python([sys.executable, "-m", "build", *arguments], BUNDLES, timeout=300)
        assert done.returncode == status, done.stderr
        return done.stdout + (done.stderr if status else "")

    return run


@pytest.fixture(scope="session")
def bundle_pins() -> list[str]:
    """What the metadata of all bundles pin, as pip writes it."""
    line = [sys.executable, str(BUNDLES / "build.py"), "--all", "--pins"]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=120).stdout.split()


@pytest.fixture(scope="session")
def chest_scans(made_once: Callable[..., Path]) -> Path:
    """Four small phantom patients as a user keeps scans: a folder of NIfTI files."""
    return made_once("scans", write_chest_scans)


def write_chest_scans(folder: Path) -> None:
    for seed in range(4):
        phantom = make_phantom(seed, region="chest", shape=(72, 64, 64))
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / f"patient{seed}.nii.gz")


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture(scope="session")
def liver_cases(made_once: Callable[..., Path]) -> Path:
    """Five phantom patients in the layout of LiTS: three for training, 100 to validate, 115 to test.

    The files are oriented LPS, as LiTS mostly is, so that a prediction in another space would be noticed.
    """
    return made_once("lits", write_liver_cases)


def write_liver_cases(folder: Path) -> None:
    for seed, number in enumerate((0, 1, 2, 100, 115)):
        phantom = make_phantom(seed, region="abdomen", shape=(72, 64, 48))
        label = np.zeros(phantom.label.shape, np.uint8)
        label[phantom.label == Label.LIVER] = 1
        label[phantom.label == Label.LESION] = 2
        affine = phantom.affine @ np.diag([-1.0, -1, 1, 1])
        affine[:2, 3] = (phantom.affine @ [*(side - 1 for side in label.shape), 1])[:2]
        for kind, array in (("volume", phantom.image), ("segmentation", label)):
            _save(folder / f"{kind}-{number}.nii", np.ascontiguousarray(array[::-1, ::-1]), affine)


@pytest.fixture(scope="session")
def nodule_cubes(made_once: Callable[..., Path]) -> Path:
    """Cubes of 40 x 40 x 20 voxels around phantom nodules, with the data list that ``datasets lidc`` would write."""
    return made_once("lidc", write_nodule_cubes)


def write_nodule_cubes(folder: Path) -> None:
    cubes: list[dict[str, str]] = []
    size = np.array([40, 40, 20])
    for seed in (1, 2, 3, 4):
        phantom = make_phantom(seed, region="chest", spacing=(2.0, 2.0, 2.2))
        label = (phantom.label == Label.NODULE).astype(np.uint8)
        for nodule in (each for each in phantom.nodules if each.diameter_mm > 10):
            centre = np.linalg.solve(phantom.affine, [*nodule.center_mm, 1])[:3].round().astype(int)
            start = np.clip(centre - size // 2, 0, label.shape - size)
            window = tuple(slice(a, a + side) for a, side in zip(start, size, strict=True))
            affine = phantom.affine.copy()
            affine[:3, 3] = (phantom.affine @ [*start, 1])[:3]
            name = f"{seed}_{len(cubes)}.nii.gz"
            for kind, array in (("images", phantom.image), ("labels", label)):
                _save(folder / kind / name, array[window], affine)
            cubes.append({"image": f"images/{name}", "label": f"labels/{name}", "patient": str(seed)})
    training = [cube for cube in cubes if cube["patient"] != "4"]
    held_out = [cube for cube in cubes if cube["patient"] == "4"]
    content = {"labels": {"0": "background", "1": "nodule"}, "training": training, "validation": held_out}
    (folder / "datalist.json").write_text(json.dumps({**content, "testing": held_out}))


@pytest.fixture(scope="session")
def brain_cases(made_once: Callable[..., Path]) -> Path:
    """Five phantom patients in the layout of BraTS 2018, of which 0, 3 and 4 are training and 2 validation."""
    return made_once("brats", write_brain_cases)


def write_brain_cases(folder: Path) -> None:
    for number, seed in enumerate((1, 0, 2, 6, 4)):
        phantom = make_brain_phantom(seed, shape=(48, 56, 44), spacing=(4, 4, 4), enhancing=True)
        name = f"BraTS_{number}"
        for contrast, image in (*phantom.images.items(), ("seg", phantom.label)):
            _save(folder / name / f"{name}_{contrast}.nii.gz", image, phantom.affine)


@pytest.fixture(scope="session")
def decathlon_task(made_once: Callable[..., Path], liver_cases: Path) -> Path:
    """The liver cases as a task of the Medical Segmentation Decathlon, liver and tumour as one label."""
    return made_once("msd", lambda folder: write_decathlon_task(folder, liver_cases))


def write_decathlon_task(folder: Path, liver_cases: Path) -> None:
    for number in (0, 1, 2, 100, 115):
        for kind, target in (("volume", "imagesTr"), ("segmentation", "labelsTr")):
            image = nib.load(liver_cases / f"{kind}-{number}.nii")
            array = np.asarray(image.dataobj)
            _save(
                folder / target / f"liver_{number}.nii.gz",
                np.minimum(array, 1) if kind != "volume" else array,
                image.affine,
            )
    (folder / "imagesTs").mkdir()
    (folder / "imagesTr" / "liver_115.nii.gz").rename(folder / "imagesTs" / "liver_115.nii.gz")
    pairs = [{"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"} for n in (0, 1, 2, 100)]
    content = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "numTraining": 4,
        "numTest": 1,
        "training": pairs,
        "test": ["./imagesTs/liver_115.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def nodule_candidates(made_once: Callable[..., Path]) -> Path:
    """Seven phantom patients in the layout of LUNA16, four for training, and the data list that its command writes."""
    return made_once("luna16", write_nodule_candidates) / "raw"


def write_nodule_candidates(folder: Path) -> None:
    raw = write_luna16_phantom(folder / "raw", 7, 1, (104, 88, 84), (2.0, 2.0, 2.2))
    split = ("--train", "0-3", "--validation", "4", "--test", "5-6")
    main(["luna16-candidates", "--root", str(raw), "--out", str(raw / "datalist.json"), *split])


@pytest.fixture(scope="session")
def embolism_candidates(made_once: Callable[..., Path]) -> Path:
    """Twelve phantom angiograms with emboli and look-alikes, seven for training."""
    return made_once("emboli", write_embolism_candidates) / "ct"


def write_embolism_candidates(folder: Path) -> None:
    path = write_embolism_phantom(folder / "ct", 12, 0, (88, 80, 64), (1.8, 1.8, 1.8), 0.17, 0.25)
    # a folder to be scored must not hold two files of one name
    shutil.rmtree(folder / "ct" / "labelsTr")
    content = json.loads(path.read_text())
    for split in ("training", "validation", "testing"):
        for entry in content[split]:
            del entry["label"]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def data_of(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """What a bundle needs to know of its phantom data, as overrides."""

    def overrides(bundle: str) -> dict[str, Any]:
        kinds = {"lits": "liver_cases", "lidc": "nodule_cubes", "brats": "brain_cases", "msd": "decathlon_task"}
        kinds |= {"luna16": "nodule_candidates", "pecad": "embolism_candidates"}
        folder = request.getfixturevalue(kinds.get(bundle.split("_")[1], "chest_scans"))
        extra = {"lidc": {"datalist": str(folder / "datalist.json")}, "msd": {"task": str(folder / "dataset.json")}}
        tables = {"luna16": ("datalist.json", "candidates_V2.csv"), "pecad": ("dataset.json", "candidates.csv")}
        for kind, (datalist, table) in tables.items():
            extra[kind] = {"datalist": str(folder / datalist), "candidates": str(folder / table)}
        return {"dataset_dir": str(folder), **extra.get(bundle.split("_")[1], {})}

    return overrides


@pytest.fixture(scope="session")
def bundle_command(bundles: Path) -> Callable[..., list[str]]:
    """The command line of ``python -m monai.bundle run`` for configs of a bundle."""

    def command(bundle: str, configs: list[str], **overrides: Any) -> list[str]:
        files = [str(bundles / bundle / "configs" / f"{name}.json") for name in configs]
        line = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(files) if len(files) > 1 else files[0],
        ]
        overrides = {"bundle_root": bundles / bundle, **overrides}
        return line + [part for key, value in overrides.items() for part in (f"--{key}", str(value))]

    return command


@pytest.fixture(scope="session")
def run_bundle(
    bundle_command: Callable[..., list[str]],
    tmp_path_factory: pytest.TempPathFactory,
    forked_python: Callable[..., subprocess.CompletedProcess[str]],
) -> RunBundle:
    """Run configs of a bundle in a fresh directory; ``status`` is what the process must exit with."""

    def run(bundle: str, configs: list[str], status: int = 0, **overrides: Any) -> subprocess.CompletedProcess[str]:
        line = bundle_command(bundle, configs, **overrides)
        done = forked_python(line, tmp_path_factory.mktemp("elsewhere"), timeout=300)
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return run


@pytest.fixture
def stop_training(bundle_command: Callable[..., list[str]], forked: Any, tmp_path: Path) -> Callable[..., None]:
    """Start a training and send it a signal as soon as something is there that it makes."""

    def stop(bundle: str, number: signal.Signals, ready: Callable[[], bool], **overrides: Any) -> None:
        run = forked.start(bundle_command(bundle, ["train"], **overrides), tmp_path, timeout=180)
        deadline = time.monotonic() + 120
        while not ready() and run.running() and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(number)
        done = run.wait()
        assert done.returncode == (143 if number == signal.SIGTERM else -number), done.stderr[-6000:]

    return stop


@pytest.fixture(scope="session")
def rank_command(
    bundle_command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[..., list[str]]]:
    """A folder, and the command line of one of several processes on the processor that runs there.

    A thread of Gloo that is left can abort the process while the interpreter ends, but seldom does: each process says
    at its end which there are.
    """
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "left_threads.py").write_text(LEFT_THREADS)
    overlay = {"+imports": ["$import left_threads"], "+finalize": ["$left_threads.report()"]}
    (folder / "overlay.json").write_text(json.dumps(overlay))
    given = {"backend": "gloo", "device": "$torch.device('cpu')", "network#device_ids": "$None"}

    def command(bundle: str, configs: list[str], **overrides: Any) -> list[str]:
        return bundle_command(bundle, [*configs, str(folder / "overlay")], **given, **overrides)

    return folder, command


@pytest.fixture(scope="session")
def run_by_torchrun(rank_command: tuple[Path, Callable[..., list[str]]]) -> RunBundle:
    """Run configs of a bundle by ``torchrun`` in two processes on the processor, which must leave no threads."""
    folder, command = rank_command

    def run(bundle: str, configs: list[str], **overrides: Any) -> subprocess.CompletedProcess[str]:
        line = command(bundle, configs, **overrides)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
        done = subprocess.run(
            [line[0], *launcher, *line[2:]],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        assert done.stdout.count("left threads: []") == 2, done.stdout[-3000:]
        return done

    return run


@pytest.fixture(scope="session")
def run_two_processes(rank_command: tuple[Path, Callable[..., list[str]]], forked: Any) -> RunBundle:
    """As :func:`run_by_torchrun`, in processes that have MONAI imported; gives the first one's."""
    folder, command = rank_command

    def run(bundle: str, configs: list[str], **overrides: Any) -> subprocess.CompletedProcess[str]:
        ranks = forked.run_ranks(command(bundle, configs, **overrides), folder, timeout=300)
        for rank, done in enumerate(ranks):
            assert done.returncode == 0, [(each.returncode, each.stdout[-1500:], each.stderr[-3000:]) for each in ranks]
            assert done.stdout.count("left threads: []") == 1, (rank, done.stdout[-3000:])
        return ranks[0]

    return run
