# SPDX-License-Identifier: Apache-2.0
"""``bundles/build.py``: what is in a package, that it is reproducible, and what is refused."""

from __future__ import annotations

import doctest
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from models_genesis.datasets import msd_task
from models_genesis.networks import GenesisClassifier, GenesisUNet, save_weights
from models_genesis.training import read_model_settings, save_trained_weights

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ROOT / "bundles"
NAMES = sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/metadata.json"))
PRETRAINING = "genesis_chest_ct_pretraining"
SMALL = {"features": [2, 4]}


@pytest.fixture(scope="module")
def build():
    """The module; a package called ``build`` may be installed, so it gets another name here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUNDLES))
        spec = importlib.util.spec_from_file_location("build_bundles", BUNDLES / "build.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def vendoring(build):
    return sys.modules["vendoring"]


@pytest.fixture
def tree(tmp_path):
    """What a package is built from, without git: a source distribution."""
    return copy_tree(tmp_path / "tree")


def copy_tree(target: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__", "eval")
    for name in ("datasets", "networks", "training", "transforms", f"bundles/{PRETRAINING}"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for path in (ROOT / "setup.cfg", *BUNDLES.glob("*.py")):
        shutil.copy(path, target / path.relative_to(ROOT))
    return target


def packed(build, out: Path, name: str = PRETRAINING, **arguments) -> zipfile.ZipFile:
    return zipfile.ZipFile(build.build(name, out, **arguments).path)


def test_the_same_bytes_from_another_copy_of_the_tree(tree, tmp_path):
    """Other folder, dates, modes, order of files, umask, time zone and hash seed."""
    other = copy_tree(tmp_path / "a" / "longer" / "way")
    for path in sorted(other.rglob("*"), reverse=True):
        os.utime(path, (0, 0))
        if path.is_file():
            path.chmod(0o700)
    built = []
    for root, umask, zone in ((tree, 0o022, "UTC"), (other, 0o077, "Asia/Tokyo")):
        out = tmp_path / f"out{umask}"
        command = [sys.executable, "bundles/build.py", PRETRAINING, "--out", str(out)]
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": str(umask)}
        subprocess.run(command, cwd=root, check=True, env=environment, umask=umask, capture_output=True)
        built.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert built[0] == built[1]
    assert len(built[0]) == 4


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_a_package(build, name, tmp_path):
    package = build.build(name, tmp_path)
    archive = zipfile.ZipFile(package.path)
    assert archive.testzip() is None
    members = archive.infolist()
    files = [member.filename.removeprefix(f"{name}/") for member in members]
    assert all(member.filename.startswith(f"{name}/") for member in members)
    assert files == sorted(files) and len(files) == package.files
    assert {(member.date_time, member.external_attr, member.compress_type) for member in members} == {
        ((1980, 1, 1, 0, 0, 0), 0o100644 << 16, zipfile.ZIP_STORED)
    }
    zoo = {"LICENSE", "configs/metadata.json", "configs/train.json", "configs/inference.json", "docs/data_license.txt"}
    code = {
        f"scripts/{path.relative_to(ROOT).as_posix()}"
        for folder in ("datasets", "networks", "training", "transforms")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert "scripts/datasets/io/scan_header.py" in code
    assert zoo | code | {"scripts/__init__.py", "docs/README.md", "configs/logging.conf"} <= set(files)
    unwanted = [file for file in files if "__pycache__" in file or file.startswith("eval/")]
    assert not unwanted + [file for file in files if file.endswith("last_epoch.pt")]
    assert package.path.stat().st_size < 25 * 1024**2


def test_no_level_is_left_out(build, tree):
    """Of the packages, of the bundle's own scripts, and of its docs."""
    bundle = tree / "bundles" / PRETRAINING
    for path in (tree / "training/a/b/deep.py", bundle / "scripts/own/deep.py", bundle / "docs/more/page.md"):
        path.parent.mkdir(parents=True)
        path.write_text("from models_genesis.training import a\n")
    files = build.contents(bundle, {})
    for file in ("scripts/training/a/b/deep.py", "scripts/own/deep.py"):
        assert files[file] == b"from scripts.training import a\n"
    assert "docs/more/page.md" in files


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_a_package_imports_the_project(build, name):
    files = build.contents(BUNDLES / name, {})
    for file, content in files.items():
        if file.endswith((".py", ".json")):
            text = content.decode()
            assert not re.search(r"(?:import|from|_target_\W+|-m|\$)\s*models_genesis", text), file
            assert "models_genesis.networks" not in text and "models_genesis.training" not in text, file


@pytest.mark.parametrize("key", ["imports", "+imports"])
@pytest.mark.parametrize(
    "entry",
    [
        "$from models_genesis.training import a, b",  # MONAI itself imports the first alone, with a warning
        "$from models_genesis.training import a as b",
        "$import models_genesis.training",
        "$from models_genesis import training",
    ],
)
def test_an_import_that_cannot_be_rewritten_is_refused(build, entry, key):
    with pytest.raises(ValueError, match=rf"train\.json: .*{entry[1:]}.*expected one name"):
        build.portable_configs({"train.json": {key: [entry]}})


def test_enclosed_weights_are_packed_with_their_certificate_or_left_out_by_name(build, tmp_path, capsys):
    name = "genesis_msd_segmentation"
    models = BUNDLES / name / "models"
    build.build(name, tmp_path / "as_it_is")
    with zipfile.ZipFile(next((tmp_path / "as_it_is").glob("*.zip"))) as archive:
        for file in ("model.pt", "model.json", "birth_certificate.json"):
            assert archive.read(f"{name}/models/{file}") == (models / file).read_bytes()
        train = json.loads(archive.read(f"{name}/configs/train.json"))
        assert (train["features"], train["task"]) == ([16, 32, 64, 128], "Task04_Hippocampus")
    build.build(name, tmp_path / "other", settings={"features": [4, 8]})
    with zipfile.ZipFile(next((tmp_path / "other").glob("*.zip"))) as archive:
        assert not [file for file in archive.namelist() if "/models/" in file]
    assert "left out, for they were trained with other settings than --set features" in capsys.readouterr().out


PANCREAS = {"0": "background", "1": "pancreas", "2": "cancer"}
LIVER = {"0": "background", "1": "liver", "2": "tumour"}


@pytest.mark.parametrize(
    ("name", "settings", "modality", "names"),
    [
        ("genesis_msd_segmentation", {"task": "Task07_Pancreas"}, "CT", PANCREAS),
        ("genesis_lits_liver_ct_segmentation", {"tumour": True}, "CT", LIVER),
        ("genesis_msd_segmentation", {}, "MR", {"0": "background", "1": "Anterior", "2": "Posterior"}),
    ],
    ids=["task", "tumour", "as it is"],
)  # fmt: skip
def test_metadata_name_what_the_packed_network_predicts(name, settings, modality, names, build, tmp_path):
    """MONAI Label shows the names of channel_def."""
    archive = packed(build, tmp_path, name=name, settings=settings)
    metadata = json.loads(archive.read(f"{name}/configs/metadata.json"))
    image, pred = metadata["network_data_format"]["inputs"]["image"], metadata["network_data_format"]["outputs"]["pred"]
    assert (image["modality"], image["format"]) == (modality, {"CT": "hounsfield", "MR": "magnitude"}[modality])
    assert (pred["num_channels"], pred["channel_def"]) == (len(names), names)
    enclosed = f"{name}/models/model.pt" in archive.namelist()
    assert enclosed == (not settings) and bool(metadata["eval_metrics"]) == enclosed
    if settings:
        assert metadata["pred_classes"] == ", ".join(f"{value} {name}" for value, name in names.items())
    else:  # nothing of what is committed changes
        committed = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())
        assert {key: metadata[key] for key in committed} == committed


def test_metadata_name_what_weights_of_another_task_predict(build, tmp_path):
    name, path = "genesis_msd_segmentation", tmp_path / "spleen.pt"
    facts = msd_task("Task09_Spleen")
    trained = {"task": "Task09_Spleen", "task_facts": facts, "features": [4, 8], "cube_size": [32, 32, 16]}
    save_trained_weights(GenesisUNet(features=[4, 8], out_channels=2).state_dict(), path, trained)
    archive = packed(build, tmp_path / "out", name=name, weights=build.Weights(path))
    metadata = json.loads(archive.read(f"{name}/configs/metadata.json"))
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "spleen"}
    assert metadata["network_data_format"]["inputs"]["image"]["modality"] == "CT" and metadata["eval_metrics"] == {}
    with pytest.raises(ValueError, match=r'--task: trained with "Task09_Spleen", given "Task07_Pancreas"'):
        build.build(name, tmp_path / "other", build.Weights(path), {"task": "Task07_Pancreas"})


def test_a_setting_that_the_weights_were_not_trained_with_is_refused(build, tmp_path):
    """Inference of such a package would refuse every scan."""
    name, path = "genesis_lidc_nodule_ct_segmentation", tmp_path / "model.pt"
    trained = {"features": [4, 8], "intensity_range": [-1000, 1000]}
    save_trained_weights(GenesisUNet(features=[4, 8], out_channels=1).state_dict(), path, trained)
    with pytest.raises(ValueError, match=r"--intensity_range: trained with \[-1000, 1000\], given \[-200, 200\]"):
        build.build(name, tmp_path / "out", build.Weights(path), {"intensity_range": [-200, 200]})
    assert not (tmp_path / "out").exists()


def test_a_config_of_somebodys_run_is_not_packed(build, tree, tmp_path):
    """MONAI Label writes one with the paths of all scans when it trains on two GPUs."""
    configs = tree / "bundles" / PRETRAINING / "configs"
    (configs / "monailabel_train.json").write_text('{"train#dataset#data": [{"image": "/studies/NAME/ct.nii.gz"}]}')
    with pytest.raises(ValueError, match=r"configs: expected the configs of a bundle, found monailabel_train\.json"):
        build.build(PRETRAINING, tmp_path / "out", root=tree / "bundles")
    assert not (tmp_path / "out").exists()


def test_a_certificate_of_other_weights_is_not_packed(build, tmp_path):
    name = "genesis_msd_segmentation"
    shutil.copytree(BUNDLES / name / "models", tmp_path / name / "models")
    (tmp_path / name / "models" / "model.pt").write_bytes(b"others")
    with pytest.raises(ValueError, match="found that of other weights"):
        build.shipped_weights(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_the_packed_readme_name_what_is_there(build, name):
    files = build.contents(BUNDLES / name, {})
    readme = files["docs/README.md"].decode()
    configs = re.findall(r"(?<![\w/])configs/\w+\.json", readme)
    assert len(configs) > 5 and set(configs) <= set(files)
    modules = {module.replace(".", "/") for module in re.findall(r"python -m (scripts\.\w+)", readme)}
    assert modules and all(f"{module}/__main__.py" in files for module in modules)
    assert not re.findall(r"\]\(\.\./\.\./", readme)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert f"docs/{link}" in files, link
    metadata = json.loads(files["configs/metadata.json"])
    assert all(pin in readme for pin in build.requirements(metadata))


def test_checksums_are_those_of_the_package(build, tmp_path):
    for name in NAMES[:2]:
        build.build(name, tmp_path, url="https://example.org/packages/")
    listed = json.loads((tmp_path / "model_info.json").read_text())
    assert len(listed) == 2
    for key, entry in listed.items():
        content = (tmp_path / f"{key}.zip").read_bytes()
        assert entry == {
            "checksum": hashlib.sha1(content).hexdigest(),
            "source": f"https://example.org/packages/{key}.zip",
        }
        sha256, file = (tmp_path / f"{key}.zip.sha256").read_text().split()
        assert (sha256, file) == (hashlib.sha256(content).hexdigest(), f"{key}.zip")
    assert (tmp_path / "unpack.py").read_bytes() == (BUNDLES / "unpack.py").read_bytes()


def test_metadata_tell_where_the_package_comes_from(build, tree):
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    assert build.provenance(tree) == {"models_genesis_version": version}
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tree)]
    for words in (["init", "-q"], ["add", "setup.cfg"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert build.provenance(tree)["models_genesis_commit"] == commit
    (tree / "setup.cfg").write_text((tree / "setup.cfg").read_text() + "\n")
    assert build.provenance(tree)["models_genesis_commit"] == f"{commit}-dirty"


def test_weights_that_fit_go_with_the_package(build, tmp_path):
    save_weights(GenesisUNet(features=SMALL["features"]).state_dict(), tmp_path / "model.pt")
    archive = packed(build, tmp_path / "out", weights=build.Weights(tmp_path / "model.pt"), settings=SMALL)
    assert archive.read(f"{PRETRAINING}/models/model.pt") == (tmp_path / "model.pt").read_bytes()
    for file in ("train", "inference"):
        assert json.loads(archive.read(f"{PRETRAINING}/configs/{file}.json"))["features"] == SMALL["features"]
    assert json.loads(archive.read(f"{PRETRAINING}/large_files.json"))["large_files"] == []


def test_the_settings_of_weights_go_with_them_and_need_no_key(build, tmp_path):
    """Weights of another width, by any name; fine-tuning of the package goes on with their settings."""
    trained = {"features": list(SMALL["features"]), "axcodes": "LPS", "mask_ratio": 0.3}
    path = tmp_path / "best.pt"
    save_trained_weights(GenesisUNet(features=SMALL["features"]).state_dict(), path, trained)
    archive = packed(build, tmp_path / "out", weights=build.Weights(path))
    assert json.loads(archive.read(f"{PRETRAINING}/models/model.json"))["settings"] == trained
    train = json.loads(archive.read(f"{PRETRAINING}/configs/train.json"))
    assert {key: {**train, **train["deformation"]}[key] for key in trained} == trained
    assert "mask_ratio" not in train and not any("#" in key for key in train)
    archive.extractall(tmp_path / "unpacked")
    assert read_model_settings(tmp_path / "unpacked" / PRETRAINING / "models") == trained
    save_weights(GenesisUNet(features=SMALL["features"]).state_dict(), path)
    with pytest.raises(ValueError, match=r"best\.json: expected the settings of best\.pt"):
        build.build(PRETRAINING, tmp_path / "out", build.Weights(path))


def test_a_packed_bundle_notes_its_network_under_the_packages_name(vendoring):
    """What one of them trains, the other goes on with."""
    module = ModuleType("scripts.networks.network_def")
    exec(vendoring.vendored_code(ROOT)["scripts/networks/network_def.py"], module.__dict__)
    network = type("GenesisUNet", (nn.Module,), {"__module__": "scripts.networks.genesis_unet"})()
    network.architecture = {"act": "elu"}
    described = module.describe_network(network)
    assert described == {"target": "models_genesis.networks.GenesisUNet", "arguments": {"act": "elu"}}
    assert module.own_class(described) == "GenesisUNet"


def test_the_networks_activation_goes_with_weights_into_both_configs(build, tmp_path):
    network = GenesisUNet(features=SMALL["features"], act="elu")
    described = {"target": "models_genesis.networks.GenesisUNet", "arguments": {"act": "elu", "norm": "batch"}}
    settings = {"features": list(SMALL["features"]), "network_def": described}
    save_trained_weights(network.state_dict(), tmp_path / "best.pt", settings)
    archive = packed(build, tmp_path / "out", weights=build.Weights(tmp_path / "best.pt"))
    for name in ("train", "inference"):
        written = json.loads(archive.read(f"{PRETRAINING}/configs/{name}.json"))
        assert written["network_def"]["act"] == "elu" and "norm" not in written["network_def"]
        assert not any("#" in key for key in written)
    with pytest.raises(ValueError, match='--network_def#act: trained with "elu", given "relu"'):
        given = {"network_def#act": "relu"}
        packed(build, tmp_path / "out2", weights=build.Weights(tmp_path / "best.pt"), settings=given)


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({"cube_size": [128, 128]}, r"describe networks of 3 axes, found cube_size \[128, 128\]"),
        ({"cube_size": [64, 64, 32], "normalise": "full_scale"}, "describe hounsfield of CT, found .* full_scale"),
        ({"cube_size": [64, 64, 32], "normalise": "zscore"}, "describe hounsfield of CT, found normalise zscore"),
    ],
)
def test_weights_that_the_metadata_do_not_describe_are_not_packed(trained, message, build, tmp_path):
    """Whoever reads the metadata would feed 2D weights cubes of HU."""
    path = tmp_path / "model.pt"
    network = GenesisUNet(len(trained["cube_size"]), features=SMALL["features"])
    save_trained_weights(network.state_dict(), path, {"features": list(SMALL["features"]), **trained})
    for weights, settings in ((build.Weights(path), {}), (None, trained)):
        with pytest.raises(ValueError, match=f"{PRETRAINING}: the metadata {message}"):
            build.build(PRETRAINING, tmp_path / "out", weights, settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["luna16_nodule", "pecad_embolism"])
@pytest.mark.parametrize("axes", [[2], [2, 1, 0]], ids=str)
def test_weights_of_slices_through_candidates_are_not_packed_as_of_cubes(kind, axes, build, tmp_path):
    """Their cube has three sides, of which the network sees slices."""
    bundle, path = f"genesis_{kind}_ct_classification", tmp_path / "model.pt"
    trained = {"features": [4, 8], "cube_size": [64, 64, 64], "slice_axes": axes}
    network = GenesisClassifier(spatial_dims=2, in_channels=len(axes), num_classes=1, features=(4, 8))
    save_trained_weights(network.state_dict(), path, trained)
    with pytest.raises(ValueError, match=rf"{bundle}: the metadata describe networks of 3 axes, found slice_axes \["):
        build.build(bundle, tmp_path / "out", build.Weights(path))
    assert not (tmp_path / "out").exists()


def test_a_copy_with_metadata_of_its_own_takes_weights_of_slices(build, tree, tmp_path):
    folder = tree / "bundles" / PRETRAINING
    layout = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]
    for image in (layout["inputs"]["image"], layout["outputs"]["pred"]):
        image["spatial_shape"] = ["8*n", "8*n"]
    edit_metadata(folder, network_data_format=layout)
    path = tmp_path / "model.pt"
    trained = {"features": list(SMALL["features"]), "cube_size": [48, 40], "slice_axis": 2}
    save_trained_weights(GenesisUNet(2, features=SMALL["features"]).state_dict(), path, trained)
    package = build.build(PRETRAINING, tmp_path / "out", build.Weights(path), root=tree / "bundles")
    with zipfile.ZipFile(package.path) as archive:
        packed_format = json.loads(archive.read(f"{PRETRAINING}/configs/metadata.json"))["network_data_format"]
    assert packed_format == layout


def test_what_follows_from_another_setting_still_does_in_a_package(build, tmp_path):
    """``--normalise zscore`` in a packed pretraining must not leave MR in the range of HU that its weights had."""
    package = build.build("genesis_chest_ct_pretraining", tmp_path)
    with zipfile.ZipFile(package.path) as archive:
        train = json.loads(archive.read(f"{package.name}/configs/train.json"))
    assert train["features"] == [16, 32, 64, 128] and train["cube_size"] == [32, 32, 16]  # of the weights
    assert train["intensity_range"] == "$@default_intensity_range(@normalise)" and train["normalise"] == "none"


def test_large_weights_are_listed_by_url_and_checksum(build, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_weights(GenesisUNet(features=SMALL["features"]).state_dict(), path)
    monkeypatch.setattr(build, "MAX_WEIGHTS", path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"expected at most 25 or --weights-url"):
        build.build(PRETRAINING, tmp_path / "out", build.Weights(path), SMALL)
    url = "https://example.org/model.pt"
    archive = packed(build, tmp_path / "out", weights=build.Weights(path, url), settings=SMALL)
    assert f"{PRETRAINING}/models/model.pt" not in archive.namelist()
    listed = json.loads(archive.read(f"{PRETRAINING}/large_files.json"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"path": "models/model.pt", "url": url, "hash_val": digest, "hash_type": "sha256"}
    assert listed["large_files"] == [entry]
    assert len(listed["licensed_separately"]) == 1


def test_weights_that_do_not_fit_are_refused(build, tmp_path):
    network = GenesisUNet(features=SMALL["features"])
    cases = {
        "other features": (network.state_dict(), {}, "does not fit"),
        "one missing": (dict(list(network.state_dict().items())[1:]), SMALL, "does not fit"),
        "one more": ({**network.state_dict(), "more": torch.zeros(1)}, SMALL, "does not fit"),
        "checkpoint": ({"model": network.state_dict()}, SMALL, "expected a plain state dict"),
        "pickled code": (network, SMALL, "expected a state dict"),
    }
    for name, (content, settings, message) in cases.items():
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        with pytest.raises(ValueError, match=re.escape(name) + rf"\.pt: {message}"):
            build.build(PRETRAINING, tmp_path / "out", build.Weights(path), settings)
    with pytest.raises(FileNotFoundError, match=r"none\.pt: expected the weights"):
        build.build(PRETRAINING, tmp_path / "out", build.Weights(tmp_path / "none.pt"), SMALL)
    assert not (tmp_path / "out").exists()


def edit_metadata(folder: Path, **changes) -> None:
    path = folder / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD = {
    "version not in the changelog": (
        lambda b: edit_metadata(b, version="9.9.9"),
        "version 9.9.9 is not in the changel",
    ),
    "malformed version": (lambda b: edit_metadata(b, version="v1"), "expected a version such as 0.1.0, found 'v1'"),
    "no licence": (lambda b: (b / "LICENSE").unlink(), "missing are LICENSE"),
    "no train.json": (lambda b: (b / "configs" / "train.json").unlink(), "missing are configs/train.json"),
    "broken config": (lambda b: (b / "configs" / "paper.json").write_text("{,}"), "paper.json: expected JSON"),
    "a list": (lambda b: (b / "configs" / "paper.json").write_text("[]"), "paper.json: expected an object, found list"),
    "another README": (lambda b: (b / "docs" / "README.md").write_text("# Hello"), "README.md: expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_a_bundle_that_is_not_whole(build, tree, tmp_path, case):
    break_it, message = BAD[case]
    break_it(tree / "bundles" / PRETRAINING)
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(message)):
        build.build(PRETRAINING, tmp_path / "out", root=tree / "bundles")
    assert not (tmp_path / "out").exists()


def test_command_line_says_what_is_wrong(tmp_path, run_build):
    out = str(tmp_path / "out")
    for words, message in [
        (["no_such_bundle", "--out", out], "no such bundle; there are "),
        (
            [PRETRAINING, "--out", out, "--set", "feature=[1]"],
            "none of the configs of genesis_chest_ct",
        ),
        ([PRETRAINING, "--out", out, "--set", "features=(1)"], "expected KEY=JSON"),
        ([PRETRAINING], "--out DIR is needed"),
        (["--out", out], "name the bundles to pack, or give --all"),
        (["--all", "--out", out, "--weights", "model.pt"], "--weights go with one bundle only"),
        ([PRETRAINING, "--zoo", "zoo", "--out", out], "--zoo goes with neither --out nor --weights"),
        ([PRETRAINING, "--out", out, "--weights-url", "https://x.org/a.pt"], "--weights-url goes with --weights"),
        ([PRETRAINING, "--zoo", "zoo", "--url", "https://x.org"], "--url goes with --out"),
    ]:
        assert message in run_build(*words, status=2)
    assert not Path(out).exists()


def test_imports_become_keys(vendoring):
    configs = {
        "train.json": {
            "imports": [
                "$import os",
                "$from models_genesis.x import f",
                "$from models_genesis.x.y import LIMITS",
            ],
            "a": {"_target_": "models_genesis.networks.Net", "n": "$f(@b) + g(f=1) + o.f(2) + LIMITS['f']"},
            "text": "f",
            "initialize": ["$f()"],
        },
        "evaluate.json": {"run": ["$f(lambda x: f(x))"]},
        "multi_gpu_train.json": {"+imports": ["$import torch"]},
    }
    before = json.dumps(configs)
    portable = vendoring.portable_configs(configs)
    assert json.dumps(configs) == before
    train = portable["train.json"]
    assert train["f"] == "$importlib.import_module('scripts.x').f"
    assert train["LIMITS"] == "$importlib.import_module('scripts.x.y').LIMITS"
    assert train["a"] == {"_target_": "scripts.networks.Net", "n": "$@f(@b) + g(f=1) + o.f(2) + @LIMITS['f']"}
    assert train["text"] == "f"
    assert train["imports"] == ["$import os", *vendoring.FIND_SCRIPTS_IMPORTS]
    assert train["initialize"] == [vendoring.FIND_SCRIPTS, "$@f()"]
    assert portable["evaluate.json"] == {"run": ["$@f(lambda x: @f(x))"]}
    assert portable["multi_gpu_train.json"] == {"+imports": ["$import torch"]}


def test_a_key_of_an_imported_name_is_refused(vendoring):
    configs = {"train.json": {"imports": ["$from models_genesis.training import f"], "f": 1}}
    with pytest.raises(ValueError, match=r"train.json: \['f'\] are imported and keys"):
        vendoring.portable_configs(configs)


def test_a_readme_that_points_into_the_repository_is_refused(vendoring):
    readme = "# T\n\n## Data\n\nFrom any directory; `B` is this bundle's folder.\n\nB=bundles/b\n{}\n"
    assert "pip install x==1" in vendoring.portable_readme(readme.format(""), "b", ["x==1"])
    link = vendoring.portable_readme(readme.format("see [the page](../../../docs/page.md)"), "b", [])
    assert "see the page in the project's repository" in link
    with pytest.raises(ValueError, match="expected nothing that only this repository has"):
        vendoring.portable_readme(readme.format("cd $B"), "b", [])


CARD = (
    "# T\n\nWhat it does.\n\n## Data\n\nd\n\n## Commands\n\n## What was measured\n\n## Limits\n\n## References\n\nr\n"
)


def test_a_card_gets_what_the_zoos_template_asks_for(build):
    """In the template's order; what only its owners may hand out is named in it with its terms."""
    metadata = {"authors": "A, B", "copyright": "Copyright (c) A"}
    separate = [{"path": "models/a.pt", "description": "theirs", "licence": "no trade", "page": "https://a.org"}]
    made = sys.modules["card"].zoo_card(CARD, PRETRAINING, metadata, "Scans are CC BY.\n", separate, "CC BY-SA 4.0")
    headings = re.findall(r"^#+ (.*)$", made, re.MULTILINE)
    assert headings == [
        "T", "**Authors**", "**Tags**", "Model Description", "Data", "MONAI Bundle Commands", "Performance",
        "System Configuration", "TensorRT", "Limits", "References", "License",
    ]  # fmt: skip
    assert "## Model Description\n\nWhat it does.\n" in made
    after = made.partition("## License")[2]
    assert all(
        words in after
        for words in ("Scans are CC BY.", "licence: CC BY-SA 4.0.", "Licence: no trade", "models/a.pt", "https://a.org")
    )


@pytest.mark.parametrize(
    ("name", "readme", "message"),
    [
        ("unheard_of", CARD, "expected unheard_of in TAGS"),
        (PRETRAINING, CARD.replace("## Limits", "## Limit"), "one heading '## Limits'"),
        (PRETRAINING, CARD + "\n## Data\n", "one heading '## Data'"),
        (PRETRAINING, CARD + "\n## License\n", "expected no heading that packing adds"),
    ],
)
def test_a_card_without_its_headings_is_refused(build, name, readme, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sys.modules["card"].zoo_card(readme, name, {}, "")


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_that_pins_the_package_has_the_committed_configs_and_no_code(build, name):
    folder = BUNDLES / name
    files = build.contents(folder, {}, code="package")
    assert not [file for file in files if file.endswith(".py")] and len(files) < 20
    metadata = json.loads(files["configs/metadata.json"])
    version = re.search(r"^version = (.+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    assert metadata["required_packages_version"]["models-genesis"] == version
    assert f"models-genesis=={version}" in files["docs/README.md"].decode()
    for path in (folder / "configs").glob("*.json"):
        if path.name != "metadata.json":
            assert json.loads(files[f"configs/{path.name}"]) == json.loads(path.read_text())
    vendored = build.contents(folder, {})
    assert "models-genesis" not in json.loads(vendored["configs/metadata.json"])["required_packages_version"]


def test_unit_tests_for_the_zoo_are_refused_for_a_bundle_without_data(build):
    with pytest.raises(ValueError, match=r"zoo_tests\.py: expected unheard_of in BUNDLES"):
        sys.modules["zoo_tests"].unit_tests(["unheard_of"])


@pytest.mark.parametrize("name", ["build_bundles", "card", "pins", "vendoring", "unpack", "sync", "zoo_tests"])
def test_examples_in_docstrings(build, name):
    assert doctest.testmod(sys.modules[name]).failed == 0
