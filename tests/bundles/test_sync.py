# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SYNC = Path(__file__).resolve().parents[2] / "bundles" / "sync.py"


@pytest.fixture(scope="module")
def sync():
    spec = importlib.util.spec_from_file_location("sync", SYNC)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SYNC.parent))
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    """Two bundles and an overlay that share blocks, up to date but for the second."""
    blocks = {
        "trainer": {
            "configs": ["*_ct/configs/train.json"],
            "ids": {"train#trainer": {"epochs": "@epochs"}, "amp": True},
        },
        "handlers": {"configs": ["*_ct/configs/evaluate.json"], "ids": {"validate#handlers": [1]}},
    }
    (tmp_path / "_shared").mkdir()
    (tmp_path / "_shared" / "blocks.json").write_text(json.dumps(blocks))
    for name, epochs in (("a_ct", "@epochs"), ("b_ct", 7)):
        folder = tmp_path / name / "configs"
        folder.mkdir(parents=True)
        train = {"amp": True, "train": {"trainer": {"epochs": epochs}, "own": name}}
        (folder / "train.json").write_text(json.dumps(train))
        (folder / "evaluate.json").write_text(json.dumps({"validate#handlers": [1]}))
    return tmp_path


def test_a_stale_config_is_found_and_mended_and_nothing_else_is_touched(sync, root):
    untouched = (root / "a_ct/configs/train.json").read_text()
    before = (root / "b_ct/configs/train.json").read_text()
    assert sync.sync(root, check=True) == ["b_ct/configs/train.json"]
    assert (root / "b_ct/configs/train.json").read_text() == before
    assert sync.sync(root) == ["b_ct/configs/train.json"]
    assert sync.sync(root, check=True) == []
    mended = json.loads((root / "b_ct/configs/train.json").read_text())
    assert mended == {"amp": True, "train": {"trainer": {"epochs": "@epochs"}, "own": "b_ct"}}
    assert (root / "a_ct/configs/train.json").read_text() == untouched


def test_an_overlay_keeps_its_nested_ids_as_keys(sync, root):
    path = root / "a_ct/configs/evaluate.json"
    path.write_text(json.dumps({"validate#handlers": [2]}))
    sync.sync(root)
    assert json.loads(path.read_text()) == {"validate#handlers": [1]}


def test_a_block_for_no_config_is_an_error(sync, root):
    (root / "_shared" / "blocks.json").write_text(json.dumps({"lost": {"configs": ["nowhere/*.json"], "ids": {}}}))
    with pytest.raises(ValueError, match="lost"):
        sync.sync(root)


def test_metadata_pin_what_the_constraints_give_the_oldest_python(sync, tmp_path):
    """Never what an older or a newer Python gets; the rest of the metadata stays."""
    lines = "numpy==2.2.6; python_version < '3.11'\nnumpy==2.4.6; python_version >= '3.11'\nmonai==1.6.1\n"
    (tmp_path / "constraints.txt").write_text(lines)
    root = tmp_path / "bundles"
    (root / "_shared").mkdir(parents=True)
    (root / "_shared" / "blocks.json").write_text("{}")
    path = root / "a_ct" / "configs" / "metadata.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"version": "0.1.0", "numpy_version": "2.4.6", "monai_version": "1.6.1"}))
    assert sync.sync(root, check=True) == sync.sync(root) == ["a_ct/configs/metadata.json"]
    assert json.loads(path.read_text()) == {"version": "0.1.0", "numpy_version": "2.2.6", "monai_version": "1.6.1"}
    assert sync.sync(root, check=True) == []


def test_layout_is_json_again(sync):
    value = {"a": [1, 2], "b": ["$x", "y"], "c": {}, "d": [], "e": [{"f": None}], "g": "ü"}
    assert json.loads(sync.layout(value)) == value


def test_the_committed_configs_are_up_to_date(sync):
    assert sync.main(["--check"]) == 0
