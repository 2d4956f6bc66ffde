# SPDX-License-Identifier: Apache-2.0
"""Packed bundles where this project is not installed: the model zoo's checks, download, training and inference.

``make test-zip`` runs this file with a Python (``ZIP_PYTHON``) into which pip installed what the metadata pin;
otherwise an environment is made that links to those of the installed packages.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import download_large_files, verify_metadata

HERE = Path(__file__).resolve().parent
BUNDLES = HERE.parents[1] / "bundles"
NAMES = sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/metadata.json"))
PRETRAINING = "genesis_chest_ct_pretraining"
CHECKS = (
    "make_weights", "loads_from_another_directory", "verify_as_the_zoo_does", "imports_every_module",
    "has_all_properties_train", "has_all_properties_evaluate", "has_all_properties_inference",
)  # fmt: skip


@pytest.fixture(scope="module")
def python(bare_environment, bundle_pins, tmp_path_factory) -> str:
    """A Python with what the metadata of the bundles pin."""
    if "ZIP_PYTHON" in os.environ:
        return os.environ["ZIP_PYTHON"]
    folder = tmp_path_factory.mktemp("environment") / "bare"
    return str(bare_environment(folder, bundle_pins))


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Nothing of this process's environment that could show the project to another."""
    home = tmp_path_factory.mktemp("home")
    return {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}


@pytest.fixture(scope="module")
def run(python, environment):
    """Run that Python from its start, as a user does."""

    def run(*arguments: str, cwd: Path, status: int = 0) -> str:
        done = subprocess.run(
            [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == status, done.stdout[-2000:] + done.stderr[-5000:]
        return done.stdout + (done.stderr if status else "")

    return run


@pytest.fixture(scope="module")
def run_module(python, environment, load_script, tmp_path_factory):
    """Run a module with that Python, in processes that have imported MONAI, which is most of what such a run takes."""
    script = load_script(HERE.parent / "forked_python.py")
    folder = tmp_path_factory.mktemp("output")
    forked = script.ForkedPython(folder, python, environment, processes=1, preloaded=script.MONAI)

    def run(*arguments: str, cwd: Path) -> str:
        done = forked.run([sys.executable, *arguments], cwd, timeout=500)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
        return done.stdout

    yield run
    forked.close()


@pytest.fixture(scope="module")
def unpacked(run_build, tmp_path_factory) -> Path:
    """All bundles, packed with small networks and unpacked."""
    folder = tmp_path_factory.mktemp("packages")
    run_build("--all", "--out", str(folder), "--set", "features=[4,8,16,32]")
    for path in folder.glob("*.zip"):
        subprocess.run([sys.executable, "unpack.py", path.name, "--out", "unpacked"], cwd=folder, check=True)
    return folder / "unpacked"


def data_by_kind(data: dict[str, str]) -> dict[str, dict[str, str]]:
    """Say what training and inference are given: of candidates, inference takes a folder and a table, no data list."""
    datalist = Path(data.get("datalist", ""))
    content = json.loads(datalist.read_text()) if datalist.is_file() else {}
    if "candidates" not in content:
        return {"train": data, "inference": data}
    scans = (datalist.parent / content["validation"][0]["image"]).parent
    table = datalist.parent / content["candidates"]
    return {"train": data, "inference": {"dataset_dir": str(scans), "candidates": str(table)}}


@pytest.fixture(scope="module")
def checked(unpacked, data_of, run, tmp_path_factory) -> dict[str, dict[str, str]]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    tasks = {name: {"root": str(unpacked / name), "data": data_by_kind(data_of(name))} for name in NAMES}
    (elsewhere / "tasks.json").write_text(json.dumps(tasks))
    lines = run(str(HERE / "zoo_checks.py"), "tasks.json", cwd=elsewhere).strip().splitlines()
    return json.loads(lines[-1])


def test_this_project_is_not_there(run, tmp_path):
    code = """
import importlib.metadata, importlib.util
assert importlib.util.find_spec("models_genesis") is None
try:
    raise SystemExit("found models-genesis " + importlib.metadata.version("models-genesis"))
except importlib.metadata.PackageNotFoundError:
    print("not there")
"""
    assert "not there" in run("-c", code, cwd=tmp_path)
    if "ZIP_PYTHON" not in os.environ:
        assert "No module named" in run("-c", "import pytest", cwd=tmp_path, status=1)


def test_the_packages_are_those_that_the_metadata_pin(run, bundle_pins, index_answers, tmp_path):
    """None of them the newer one that development goes on with."""
    wanted = dict(pin.split("==") for pin in bundle_pins)
    code = f"""
import json
from importlib.metadata import version
print(json.dumps({{name: version(name).split("+")[0] for name in {list(wanted)}}}))
"""
    found = json.loads(run("-c", code, cwd=tmp_path))
    if found != wanted and False in index_answers:
        pytest.skip(f"no package index can be reached from here; tested with {found} in place of {wanted}")
    assert found == wanted


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_the_zoo_finds_nothing_wrong(checked, name, check):
    assert checked[name][check] == ""


@pytest.mark.parametrize("name", NAMES)
def test_metadata_of_the_package_meet_the_schema(unpacked, name, shared):
    """Where the zoo's ``ci/prepare_schema.py`` puts the schema; it is then not downloaded."""
    root = unpacked / name
    (root / "eval").mkdir(exist_ok=True)
    shutil.copy(shared / "reference" / "meta_schema_20240725.json", root / "eval" / "schema.json")
    meta_file = str(root / "configs" / "metadata.json")
    verify_metadata(meta_file=meta_file, filepath=str(root / "eval" / "schema.json"))
    metadata = json.loads(Path(meta_file).read_text())
    assert metadata["version"] in metadata["changelog"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["models_genesis_version"])


def test_two_packages_in_one_process_share_the_same_code(unpacked, checked, run_module, tmp_path):
    """MONAI gives both the module name ``scripts``; whichever came first, the other finds all it needs."""
    names = [name for name in NAMES if name.endswith("_segmentation")][:2] + [PRETRAINING]
    code = f"""
from monai.bundle import load
for name in {names}:
    load(name, bundle_dir={str(unpacked)!r}, source="github", workflow_type="train")
print("loaded")
"""
    (tmp_path / "load_them.py").write_text(code)
    assert "loaded" in run_module("-m", "load_them", cwd=tmp_path)


@pytest.fixture(scope="module")
def server(run_build, tmp_path_factory):
    """A web server on this machine with all packages as they are published."""
    folder = tmp_path_factory.mktemp("web")
    run_build("--all", "--out", str(folder))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture(scope="module")
def downloaded(server, run_module, tmp_path_factory):
    """Downloads a bundle as a user does; ``run`` starts the process."""
    folder, web = server
    target = tmp_path_factory.mktemp("downloaded")

    @functools.cache
    def download(name: str, run=run_module) -> Path:
        (package,) = folder.glob(f"{name}_v*.zip")
        run(
            "-m", "monai.bundle", "download", "--name", name, "--url", f"{web}/{package.name}", "--bundle_dir",
            str(target), "--progress", "False", cwd=target,
        )  # fmt: skip
        return target / name

    return download


def readme_command(root: Path, first_words: str, data: dict[str, str]) -> list[str]:
    """The command below a comment of the README, with the user's data in place of ``$DATA``."""
    text = (root / "docs" / "README.md").read_text()
    ((command),) = re.findall(rf"^# {first_words}.*\n(?:#.*\n)*(python .*)$", text, re.MULTILINE)
    options = " ".join(f"--{key} {shlex.quote(value)}" for key, value in data.items())
    program, *arguments = shlex.split(command.replace("$DATA", options))
    assert program == "python"
    return arguments


def test_downloaded_pretraining_learns_and_restores(downloaded, chest_scans, run_module, tmp_path):
    """The README's own commands from the package's own folder; the data list by the package's own code."""
    root = shutil.copytree(downloaded(PRETRAINING), tmp_path / PRETRAINING)  # others start from its weights
    datalist = tmp_path / "datalist.json"
    run_module("-m", "scripts.datasets", "folder", "--root", str(chest_scans), "--out", str(datalist), cwd=root)
    assert json.loads(datalist.read_text())["made_by"] == "models-genesis, packed in a bundle"
    data = {"dataset_dir": str(chest_scans), "datalist": str(datalist)}
    small = ["--features", "[4,8]", "--cube_size", "[32,32,16]", "--device", "cpu", "--amp", "False"]
    few = ["--epochs", "1", "--warmup_epochs", "0", "--cubes_per_scan", "6", "--val_cubes_per_scan", "4"]
    run_module(*readme_command(root, "pretrain", data), *small, *few, cwd=root)
    assert (root / "models" / "model.pt").is_file() and (root / "eval" / "history.csv").is_file()
    run_module(*readme_command(root, "deformed and restored", data), *small, cwd=root)
    restored = sorted(root.glob("restored/**/*.nii.gz"))
    assert restored
    for path in restored:
        patient = path.name.split("_")[0]
        np.testing.assert_allclose(nib.load(path).affine, nib.load(chest_scans / f"{patient}.nii.gz").affine)


def test_a_downloaded_bundle_segments_a_real_hippocampus_at_once(downloaded, run, shared, tmp_path):
    """Download and inference: the two commands of a first user, and the Dice that the certificate states.

    Both processes start as the user's do, with nothing imported.
    """
    data = shared / "data" / "msd" / "Task04_Hippocampus"
    if not data.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    root = downloaded("genesis_msd_segmentation", run)
    certificate = json.loads((root / "models" / "birth_certificate.json").read_text())
    case, certified = min(certificate["evaluations"]["testing"]["dice_by_case"].items())
    (tmp_path / "scans").mkdir()
    shutil.copy(data / "imagesTr" / case, tmp_path / "scans")
    run(
        "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json"), "--bundle_root",
        str(root), "--dataset_dir", "scans", "--output_dir", "predicted", cwd=tmp_path,
    )  # fmt: skip
    stem = case.removesuffix(".nii.gz")
    predicted = np.asarray(nib.load(tmp_path / "predicted" / stem / f"{stem}_seg.nii.gz").dataobj)
    truth = np.asarray(nib.load(data / "labelsTr" / case).dataobj)
    for value, name in ((1, "Anterior"), (2, "Posterior")):
        a, b = predicted == value, truth == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) == pytest.approx(certified[name], abs=0.02)


def test_downloaded_segmentation_starts_from_the_weights_next_to_it(downloaded, nodule_cubes, run_module):
    """What a first user has at once: both packages side by side, and weights to fine-tune."""
    downloaded(PRETRAINING)
    root = downloaded("genesis_lidc_nodule_ct_segmentation")
    data = {"dataset_dir": str(nodule_cubes), "datalist": str(nodule_cubes / "datalist.json")}
    small = ["--cube_size", "[32,32,16]", "--device", "cpu", "--amp", "False"]
    said = run_module(*readme_command(root, "train", data), *small, "--epochs", "1", "--warmup_epochs", "0", cwd=root)
    # all of the pretrained network but the head, which has other classes here
    assert re.search(r"104 matched, 0 adapted, 2 skipped", said), said[-3000:]
    run_module(*readme_command(root, "predict", data), *small, cwd=root)
    cubes = {Path(entry["image"]).name: entry for entry in json.loads(Path(data["datalist"]).read_text())["testing"]}
    predicted = sorted(root.glob("predicted/**/*_seg.nii.gz"))
    assert len(predicted) == len(cubes)
    for path in predicted:
        found, image = nib.load(path), nib.load(nodule_cubes / cubes[path.name.replace("_seg", "")]["image"])
        assert found.shape == image.shape and set(np.unique(found.dataobj)) <= {0, 1}
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)


def test_downloaded_classification_scores_candidates(downloaded, nodule_candidates, run_module, tmp_path):
    """Training from the pretrained weights, then the probabilities of one scan's candidates."""
    weights = downloaded(PRETRAINING) / "models" / "model.pt"
    root = downloaded("genesis_luna16_nodule_ct_classification")
    data = {"dataset_dir": str(nodule_candidates), "datalist": str(nodule_candidates / "datalist.json")}
    small = ["--features", "[16,32,64,128]", "--cube_size", "[16,16,16]", "--device", "cpu", "--amp", "False"]
    start = ["--pretrained", str(weights), "--epochs", "1", "--warmup_epochs", "0"]
    said = run_module(*readme_command(root, "train", data), *small, *start, cwd=root)
    # the encoder: four levels of two convolutions with bias and of two norms with five tensors each
    assert re.search(r" 56 matched, 0 adapted, ", said), said[-3000:]
    table = (nodule_candidates / "candidates_V2.csv").read_text().splitlines()
    (scan,) = (nodule_candidates / "subset4").glob("*.mhd")
    wanted = [line for line in table[1:] if line.startswith(scan.stem)]
    (tmp_path / "candidates.csv").write_text("\n".join([table[0], *wanted]) + "\n")
    run_module(
        "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--dataset_dir", str(scan.parent),
        "--candidates", str(tmp_path / "candidates.csv"), "--ckpt_dir", "models", "--output_dir", "scored", *small,
        cwd=root,
    )  # fmt: skip
    scored = (root / "scored" / "candidates.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in scored[1:]] == wanted
    assert all(0 <= float(line.rpartition(",")[2]) <= 1 for line in scored[1:])


def test_nothing_is_downloaded_that_only_its_owners_may_hand_out(unpacked, tmp_path):
    """``large_files.json`` names the original's weights and their licence; MONAI's download skips them."""
    root = tmp_path / PRETRAINING
    shutil.copytree(unpacked / PRETRAINING, root, ignore=shutil.ignore_patterns("models"))
    (entry,) = json.loads((root / "large_files.json").read_text())["licensed_separately"]
    assert "non-commercial use only" in entry["licence"]
    assert entry["command"].startswith("python -m scripts.networks fetch")
    before = sorted(root.rglob("*"))
    download_large_files(bundle_path=str(root))
    assert sorted(root.rglob("*")) == before
