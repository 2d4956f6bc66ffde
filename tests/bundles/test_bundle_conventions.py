# SPDX-License-Identifier: Apache-2.0
"""What MONAI and its model zoo ask of every bundle."""

from __future__ import annotations

import json
import pydoc
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.config_item import ComponentLocator

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.parent.parent.name for path in ROOT.glob("bundles/*/configs/metadata.json"))
FILES = [
    "LICENSE",
    "docs/README.md",
    "docs/data_license.txt",
    *(f"configs/{name}.json" for name in ("metadata", "train", "evaluate", "inference", "multi_gpu_train")),
    "configs/logging.conf",
]

pytestmark = pytest.mark.parametrize("name", NAMES)


Python = Callable[..., str]


@pytest.fixture
def python(forked_python: Callable[..., subprocess.CompletedProcess[str]]) -> Python:
    """Run ``python -m MODULE`` with success, and give what it prints."""

    def run(module: str, *arguments: str, cwd: Path) -> str:
        done = forked_python([sys.executable, "-m", module, *arguments], cwd, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return str(done.stdout)

    return run


def config(name: str, stage: str) -> str:
    return str(ROOT / "bundles" / name / "configs" / f"{stage}.json")


def test_has_the_files_of_a_zoo_bundle(name):
    assert [file for file in FILES if not (ROOT / "bundles" / name / file).is_file()] == []


@pytest.mark.parametrize("stage", ["train", "inference"])
def test_settings_come_before_what_is_made_of_them(name, stage):
    """A key that a user sets is found at the top, not below the objects."""
    keys = json.loads(Path(config(name, stage)).read_text())
    below = list(keys)[list(keys).index("network_def") :]
    assert [key for key in below if not isinstance(keys[key], dict | list)] == ["network"]


def targets(value: Any) -> Iterator[str]:
    """Go through the names of classes and functions in a config, those of overrides (``a#b#_target_``) too."""
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key == "_target_" or key.endswith("#_target_"))
        for each in value.values():
            yield from targets(each)
    elif isinstance(value, list):
        for each in value:
            yield from targets(each)


def test_every_name_in_a_config_exists(name):
    locator = ComponentLocator()
    configs = set((ROOT / "bundles" / name / "configs").glob("*.json")) - {Path(config(name, "metadata"))}
    names = {(path.stem, target) for path in configs for target in targets(json.loads(path.read_text()))}
    assert len(names) > len(configs)
    for stage, target in names:
        found = pydoc.locate(target) if "." in target else locator.get_component_module_name(target)
        assert found is not None, f"{stage}.json: {target}"


def test_metadata_meet_the_schema_and_list_their_version(name, python, shared, tmp_path):
    schema = tmp_path / "schema.json"
    shutil.copy(shared / "reference" / "meta_schema_20240725.json", schema)
    verify = ["verify_metadata", "--meta_file", config(name, "metadata"), "--filepath", str(schema)]
    python("monai.bundle", *verify, cwd=tmp_path)
    metadata = json.loads(Path(config(name, "metadata")).read_text())
    assert metadata["version"] in metadata["changelog"]


@pytest.mark.parametrize(
    ("stages", "kind"),
    [(["train"], "train"), (["train", "evaluate"], "train"), (["inference"], "inference")],
    ids=["train", "evaluate", "inference"],
)
def test_properties_are_complete(name, stages, kind, data_of, tmp_path):
    workflow = ConfigWorkflow(
        config_file=[config(name, stage) for stage in stages],
        workflow_type=kind,
        logging_file=False,
        **data_of(name),
        output_dir=str(tmp_path),
        features=[4, 8, 16],
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_network_takes_and_gives_what_the_metadata_say(name, python, tmp_path):
    for stage in ("train", "inference"):
        python(
            "monai.bundle", "verify_net_in_out", "network_def", "--meta_file", config(name, "metadata"),
            "--config_file", config(name, stage), "--n", "2", "--features", "[4,8,16,32]", cwd=tmp_path,
        )  # fmt: skip


def test_the_same_network_everywhere(name):
    definitions = [json.loads(Path(config(name, stage)).read_text())["network_def"] for stage in ("train", "inference")]
    assert definitions[0] == definitions[1]


def test_loads_in_python_from_anywhere(name, python, tmp_path):
    """``monai.bundle.load`` runs ``initialize`` with nothing on the path; it must give the network with its weights."""
    shutil.copytree(ROOT / "bundles" / name, tmp_path / name, ignore=shutil.ignore_patterns("models", "eval"))
    code = f"""
import json, torch
from monai.bundle import load
from pathlib import Path
from monai.bundle import ConfigParser
folder = Path({str(tmp_path)!r}) / {name!r}
for kind in ("train", "inference"):
    path = folder / "configs" / (kind + ".json")
    content = json.loads(path.read_text())
    content["features"] = [4, 8, 16]
    path.write_text(json.dumps(content))
parser = ConfigParser(json.loads(path.read_text()))
state = parser.get_parsed_content("network_def").state_dict()
(folder / "models").mkdir()
torch.save(state, folder / "models" / "model.pt")
for kind in ("train", "inference"):
    network = load({name!r}, bundle_dir={str(tmp_path)!r}, source="github", workflow_type=kind)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items()), kind
print("loaded")
"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "load_both.py").write_text(code)
    assert "loaded" in python("load_both", cwd=elsewhere)


def test_torchscript_export(name, python, tmp_path):
    root = tmp_path / name
    shutil.copytree(ROOT / "bundles" / name, root, ignore=shutil.ignore_patterns("models", "eval"))
    parser = ConfigParser()
    parser.read_config(str(root / "configs/inference.json"))
    parser["features"] = [4, 8, 16]
    network = parser.get_parsed_content("network_def").eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    python(
        "monai.bundle", "ckpt_export", "network_def", "--filepath", "model.ts", "--ckpt_file", "model.pt",
        "--meta_file", str(root / "configs/metadata.json"), "--config_file", str(root / "configs/inference.json"),
        "--features", "[4,8,16]", cwd=tmp_path,
    )  # fmt: skip
    cube = torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exported = torch.jit.load(tmp_path / "model.ts")(cube)
        torch.testing.assert_close(exported, network(cube))
