# SPDX-License-Identifier: Apache-2.0
"""What is sent to the model zoo: bundles that pin ``models-genesis``, and their unit tests, in a copy of its layout.

They run in an environment that has the packages which the metadata pin and the wheel of this project, from a local
index, and not this checkout.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = sorted(path.parent.parent.name for path in ROOT.glob("bundles/*/configs/metadata.json"))
MSD = "genesis_msd_segmentation"
SECTIONS = (
    "### **Authors**", "### **Tags**", "## Model Description", "## Data", "## MONAI Bundle Commands", "## Performance",
    "## System Configuration", "#### TensorRT", "## Limits", "## References", "## License",
)  # fmt: skip


@pytest.fixture(scope="module")
def zoo(run_build, tmp_path_factory) -> Path:
    """A copy of the zoo's layout with all bundles in it."""
    folder = tmp_path_factory.mktemp("zoo")
    run_build("--all", "--zoo", str(folder))
    return folder


@pytest.fixture(scope="module")
def python(wheel_environment, bundle_pins, tmp_path_factory) -> str:
    """A Python with the pinned packages, what the wheel needs, and the wheel, installed by pip from a local index."""
    pins = [pin for pin in bundle_pins if not pin.startswith("models-genesis")]
    return str(wheel_environment(tmp_path_factory.mktemp("clean") / "environment", pins=pins))


@pytest.fixture(scope="module")
def run(python, tmp_path_factory):
    """Run that Python, without anything of this process's environment that could show it the checkout."""
    environment = {"HOME": str(tmp_path_factory.mktemp("home")), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment["MPLBACKEND"] = "agg"

    def run(*arguments: str, cwd: Path) -> str:
        done = subprocess.run(
            [python, "-W", "ignore", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
        return done.stdout + done.stderr

    return run


def test_a_pull_request_is_one_copy_of_folders(zoo):
    """Bundles and tests, nothing else, no code in the bundles, no file that the zoo refuses for its size."""
    files = [path.relative_to(zoo) for path in zoo.rglob("*") if path.is_file()]
    tests = {f"test_{name}{end}.py" for name in NAMES for end in ("", "_dist")}
    assert {path.name for path in files if path.parts[:2] == ("ci", "unit_tests")} == tests
    bundles = [path for path in files if path.parts[0] == "models"]
    assert len(bundles) + len(tests) == len(files)
    assert {path.parts[1] for path in bundles} == set(NAMES)
    assert not [path for path in bundles if path.suffix == ".py" or "scripts" in path.parts]
    assert max((zoo / path).stat().st_size for path in files) <= 25 * 1024**2


@pytest.mark.parametrize("name", NAMES)
def test_the_package_is_pinned_and_the_configs_import_it(zoo, name):
    root = zoo / "models" / name
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    own = metadata["required_packages_version"]["models-genesis"]
    assert own == metadata["models_genesis_version"]
    committed = json.loads((ROOT / "bundles" / name / "configs" / "inference.json").read_text())
    assert json.loads((root / "configs" / "inference.json").read_text()) == committed
    assert f"models-genesis=={own}" in (root / "docs" / "README.md").read_text()
    assert "scripts." not in (root / "docs" / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_sections_of_the_template_and_all_licences(zoo, name):
    """The zoo's publication drops ``large_files.json``, so that the card must say what it says."""
    root = zoo / "models" / name
    lines = (root / "docs" / "README.md").read_text().splitlines()
    assert [section for section in SECTIONS if lines.count(section) != 1] == []
    text = "\n".join(lines[lines.index("## License") :])
    assert (root / "docs" / "data_license.txt").read_text().strip() in text
    listed = root / "large_files.json"
    for entry in json.loads(listed.read_text())["licensed_separately"] if listed.is_file() else ():
        assert entry["licence"] in text and entry["page"] in text
    certificate = root / "models" / "birth_certificate.json"
    if certificate.is_file():
        assert json.loads(certificate.read_text())["datalist"]["licence"] in text


@pytest.mark.timeout(1200)  # the environment is made here too
def test_every_bundle_trains_evaluates_and_infers_by_its_unit_test(zoo, run):
    """All in one process; the zoo starts one for each. Without ``scripts`` they share no module name."""
    said = run(str(HERE / "zoo_layout" / "run_unit_tests.py"), *(f"test_{name}" for name in NAMES), cwd=zoo)
    assert f"Ran {3 * len(NAMES)} tests" in said
    # the weights that are sent are not replaced
    for name in NAMES:
        shipped = ROOT / "bundles" / name / "models" / "model.pt"
        sent = zoo / "models" / name / "models" / "model.pt"
        assert sent.is_file() == shipped.is_file()
        assert not sent.is_file() or sent.read_bytes() == shipped.read_bytes()


def test_two_processes_train_and_evaluate_by_a_unit_test(zoo, run):
    """One bundle's; those of the others differ in nothing but their data, and ``run_two_processes`` has them."""
    assert "Ran 1 test" in run(str(HERE / "zoo_layout" / "run_unit_tests.py"), f"test_{MSD}_dist", cwd=zoo)


def test_a_zip_without_code_runs_by_the_package_from_the_index(run, run_build, tmp_path):
    run_build(MSD, "--out", str(tmp_path), "--code", "package")
    (path,) = tmp_path.glob("*.zip")
    zipfile.ZipFile(path).extractall(tmp_path)
    (tmp_path / "scans").mkdir()
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    image = np.random.RandomState(0).normal(100, 10, (32, 32, 24)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "scans" / "a.nii.gz")
    given = ["--bundle_root", MSD, "--dataset_dir", "scans", "--output_dir", "predicted"]
    run("-m", "monai.bundle", "run", "--config_file", f"{MSD}/configs/inference.json", *given, cwd=tmp_path)
    saved = nib.load(tmp_path / "predicted" / "a" / "a_seg.nii.gz")
    assert saved.shape == image.shape
    np.testing.assert_allclose(saved.affine, affine)


def test_a_bundle_that_is_in_the_zoo_already_is_not_replaced(run_build, tmp_path):
    there = tmp_path / "models" / MSD
    there.mkdir(parents=True)
    assert "exists: remove it" in run_build(NAMES[0], MSD, "--zoo", str(tmp_path), status=2)
    assert [path.name for path in tmp_path.rglob("*")] == ["models", MSD]


def test_a_unit_test_holds_what_it_uses_and_nothing_else(zoo):
    """Every name that a file imports or assigns is used in it."""
    for path in (zoo / "ci" / "unit_tests").glob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assigned = {ast.unparse(node.targets[0]) for node in tree.body if isinstance(node, ast.Assign)}
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        assert imported | assigned <= used, path.name


STYLE = {
    "black": ["--check", "--quiet", "--line-length", "120", "--skip-magic-trailing-comma"],
    "isort": ["--check", "--profile", "black", "--line-length", "120"],
    "flake8": [
        "--isolated", "--max-line-length", "120", "--select", "B,C,E,F,N,P,T4,W,B9",
        "--ignore", "E203,E501,E741,W503,W504,C408,N812,B023",
    ],
}  # fmt: skip
"""The zoo's checks, with the settings that it has in ``pyproject.toml`` and ``setup.cfg``."""


@pytest.mark.parametrize("tool", STYLE)
def test_the_style_is_the_zoos(zoo, tool):
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: make setup")
    command = [sys.executable, "-m", tool, *STYLE[tool], str(zoo / "ci" / "unit_tests")]
    done = subprocess.run(command, cwd=zoo, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    if tool == "flake8":
        version = subprocess.run([*command[:3], "--version"], capture_output=True, text=True, timeout=60).stdout
        plugins = ("flake8-bugbear", "flake8-comprehensions", "flake8_executable", "pep8-naming")
        found = re.sub("_", "-", version)
        assert [plugin for plugin in plugins if plugin.replace("_", "-") not in found] == []
