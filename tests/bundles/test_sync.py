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
def root(sync, tmp_path):
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
    (tmp_path / "_shared" / "written.json").write_text(sync.record(blocks))
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


def leave_block(root, *keys):
    path = root / "_shared" / "blocks.json"
    blocks = json.loads(path.read_text())
    for block in blocks.values():
        block["ids"] = {key: value for key, value in block["ids"].items() if key not in keys}
    path.write_text(json.dumps(blocks))


def test_ids_that_left_a_block_leave_its_configs_and_nothing_else(sync, root):
    sync.sync(root)
    leave_block(root, "train#trainer", "validate#handlers")
    stale = [f"{name}/configs/{stage}.json" for name in ("a_ct", "b_ct") for stage in ("evaluate", "train")]
    assert sync.sync(root, check=True) == sync.sync(root) == [*stale, "_shared/written.json"]
    assert json.loads((root / "a_ct/configs/train.json").read_text()) == {"amp": True, "train": {"own": "a_ct"}}
    assert json.loads((root / "b_ct/configs/evaluate.json").read_text()) == {}
    assert sync.sync(root, check=True) == []
    # what a config has of its own from now on is not touched
    (root / "a_ct/configs/evaluate.json").write_text(json.dumps({"validate#handlers": [3]}))
    assert sync.sync(root) == []


def test_ids_that_left_a_block_may_stay_as_the_configs_own(sync, root):
    sync.sync(root)
    before = (root / "a_ct/configs/train.json").read_text()
    leave_block(root, "train#trainer")
    assert sync.sync(root, keep=True) == ["_shared/written.json"]
    assert (root / "a_ct/configs/train.json").read_text() == before
    assert sync.sync(root, check=True) == []


def test_a_block_that_is_gone_takes_its_ids_along(sync, root):
    sync.sync(root)
    path = root / "_shared" / "blocks.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key == "trainer"}))
    sync.sync(root)
    assert json.loads((root / "a_ct/configs/evaluate.json").read_text()) == {}


def test_an_id_that_moves_to_another_block_stays(sync, root):
    sync.sync(root)
    path = root / "_shared" / "blocks.json"
    blocks = json.loads(path.read_text())
    blocks["switches"] = {"configs": ["a_ct/configs/train.json"], "ids": {"amp": blocks["trainer"]["ids"].pop("amp")}}
    path.write_text(json.dumps(blocks))
    sync.sync(root)
    found = [json.loads((root / f"{name}/configs/train.json").read_text()).get("amp") for name in ("a_ct", "b_ct")]
    assert found == [True, None]


def test_a_component_that_is_shared_part_by_part_keeps_the_parts_of_each_config(sync, root):
    """Else an argument that differs between the bundles would leave them with the component's former block."""
    sync.sync(root)
    path = root / "a_ct" / "configs" / "train.json"
    content = json.loads(path.read_text())
    content["run"] = {"_target_": "Run", "patience": 20}
    path.write_text(json.dumps(content))
    written = json.loads((root / "_shared" / "written.json").read_text())
    next(iter(written.values()))["ids"].append("run")
    (root / "_shared" / "written.json").write_text(json.dumps(written))
    blocks = json.loads((root / "_shared" / "blocks.json").read_text())
    next(iter(blocks.values()))["ids"]["run#_target_"] = "Run"
    (root / "_shared" / "blocks.json").write_text(json.dumps(blocks))
    sync.sync(root)
    assert json.loads(path.read_text())["run"] == {"_target_": "Run", "patience": 20}


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
    (root / "_shared" / "written.json").write_text(sync.record({}))
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
