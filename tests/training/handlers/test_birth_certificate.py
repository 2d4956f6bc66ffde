# SPDX-License-Identifier: Apache-2.0
"""The certificate says what the training did: files by their true hashes, every session, the weights themselves."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from models_genesis.training import TrainingCheckpoint
from models_genesis.training.handlers.birth_certificate import (
    CERTIFICATE,
    data_of_birth,
    session_of_now,
    sources_of_run,
    write_birth_certificate,
)

ROOT = Path(__file__).resolve().parents[3]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files(folder: Path, **contents: bytes) -> dict[str, Path]:
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f"{name}.nii"
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(content)
    return paths


def test_scans_are_named_below_their_common_folder_with_their_hashes(tmp_path):
    image = files(tmp_path / "images", a=b"one", b=b"two")
    label = files(tmp_path / "labels", a=b"mask")
    entries = [
        {"image": str(image["a"]), "label": str(label["a"]), "patient": "P1"},
        {"image": [str(image["a"]), str(image["b"])]},
    ]
    first, second = data_of_birth(SimpleNamespace(data=entries))
    assert first == {
        "patient": "P1",
        "image": {"file": "images/a.nii", "sha256": sha256(b"one")},
        "label": {"file": "labels/a.nii", "sha256": sha256(b"mask")},
    }
    assert [each["sha256"] for each in second["image"]] == [sha256(b"one"), sha256(b"two")]
    # a set of candidates keeps its scans one level deeper; other data sets have none
    assert data_of_birth(SimpleNamespace(data=SimpleNamespace(data=entries))) == [first, second]
    assert data_of_birth([1, 2]) == []


def test_a_series_of_files_is_hashed_by_all_of_them(tmp_path):
    series = tmp_path / "series"
    files(series, a=b"one", b=b"two")
    entry = [{"image": str(series)}]
    before = data_of_birth(SimpleNamespace(data=entry))[0]["image"]["sha256"]
    assert before == sha256(f"a.nii {sha256(b'one')}\nb.nii {sha256(b'two')}".encode())
    (series / "b.nii").write_bytes(b"other")
    assert data_of_birth(SimpleNamespace(data=entry))[0]["image"]["sha256"] != before


def test_a_session_names_the_commit_of_the_working_tree():
    code = session_of_now(3)["code"]
    try:
        git = subprocess.run(["git", "log", "-1", "--format=%H"], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if git.returncode:
        assert code["commit"] is None and code["no_commit_because"]  # no working tree, or one that git will not read
    else:
        assert code["commit"] == git.stdout.strip()


class _Run:
    """A training of a linear map in the frame of ignite, a validation after each epoch that gets better each time."""

    def __init__(self, folder: Path, epochs: int, resume: bool = False, data: list | None = None) -> None:
        self.network = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        self.trainer, self.evaluator = Engine(self.step), Engine(lambda engine, batch: None)
        self.optimizer = optimizer
        state = self.evaluator.state
        state.best_metric, state.best_metric_epoch, state.key_metric_name = -1, -1, "val_dice"
        self.evaluator.data_loader = SimpleNamespace(dataset=SimpleNamespace(data=[]))
        self.loader = Loader(data or [])
        self.trainer.data_loader = self.loader
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        TrainingCheckpoint(
            folder, self.network, optimizer, schedule, self.evaluator, resume=resume, settings={"seed": 5},
            model_settings={"cube_size": [8, 8, 8]},
        ).attach(self.trainer)  # fmt: skip
        self.epochs = epochs

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        self.network(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()

    def validate(self, engine):
        state = self.evaluator.state
        state.epoch = state.best_metric_epoch = engine.state.epoch
        state.best_metric = engine.state.epoch / 10
        row = {"epoch": engine.state.epoch, "seconds": "36.0", "cubes_per_second": "2.0"}
        engine.state.history = [*getattr(engine.state, "history", []), row]
        self.evaluator.fire_event(Events.EPOCH_COMPLETED)

    def run(self):
        self.trainer.run(self.loader, max_epochs=self.epochs)


class Loader(list):
    def __init__(self, data: list) -> None:
        super().__init__([0, 1, 2])
        self.dataset = SimpleNamespace(data=data, __len__=lambda: 3)


def test_the_certificate_is_of_the_weights_and_counts_every_session(tmp_path):
    image = files(tmp_path, a=b"one")["a"]
    folder = tmp_path / "models"
    data = [{"image": str(image), "patient": "P1"}]
    _Run(folder, 2, data=data).run()
    first = json.loads((folder / CERTIFICATE).read_text())
    _Run(folder, 5, resume=True, data=data).run()
    content = json.loads((folder / CERTIFICATE).read_text())

    assert content["weights"]["sha256"] == sha256((folder / "model.pt").read_bytes()) != first["weights"]["sha256"]
    assert content["weights"]["values"] == 3
    training = content["training"]
    assert (training["epochs"], training["steps"], training["cubes"]) == (5, 15, 5 * 72)
    assert training["hours"] == pytest.approx(5 * 36 / 3600)
    assert training["chosen_epoch"] == 5 and training["validation"] == {"val_dice": 0.5}
    assert [(each["first_epoch"], each["last_epoch"]) for each in training["sessions"]] == [(1, 2), (3, 5)]
    assert all(each["packages"]["torch"] == importlib.metadata.version("torch") for each in training["sessions"])
    assert content["settings"]["seed"] == 5
    assert content["data"]["training"] == [{"patient": "P1", "image": {"file": "a.nii", "sha256": sha256(b"one")}}]


def sources_within(folder: Path, content: dict) -> dict:
    """What a component of a bundle's config finds out about the workflow that builds it."""
    config = folder / "train.json"
    config.write_text(json.dumps({**content, "run": ["$gather()"], "initialize": []}))
    workflow = ConfigWorkflow(config_file=str(config), workflow_type="train", logging_file=False)
    found: list[dict] = []
    workflow.parser.globals["gather"] = lambda: found.append(sources_of_run())
    workflow.initialize()
    workflow.run()
    return found[0]


def test_what_the_pretrained_weights_have_seen_comes_along_if_the_certificate_is_theirs(tmp_path, caplog):
    weights = tmp_path / "model.pt"
    torch.save({"head.weight": torch.ones(2)}, weights)
    data = {"training": [{"patient": "P9"}]}
    write_birth_certificate(weights, {}, {}, data, {})
    given = {"datalist": None, "dataset_dir": str(tmp_path), "pretrained": str(weights), "candidates": None}
    assert sources_within(tmp_path, given)["pretrained"] == {
        "file": "model.pt", "sha256": sha256(weights.read_bytes()), "data": data, "pretrained": None,
    }  # fmt: skip
    for broken in ("{", "[1]", json.dumps({"weights": {"sha256": "0"}, "data": data})):
        (tmp_path / CERTIFICATE).write_text(broken)
        assert sources_within(tmp_path, given)["pretrained"]["data"] is None
    assert "expected the birth certificate of model.pt" in caplog.text


def test_the_data_list_is_named_with_its_licence_and_not_where_it_lies(tmp_path):
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"name": "Ten CT", "licence": "CC BY 4.0", "training": []}))
    found = sources_within(tmp_path, {"datalist": str(datalist), "pretrained": "none"})
    assert found["datalist"] == {
        "file": "list.json", "sha256": sha256(datalist.read_bytes()), "name": "Ten CT", "licence": "CC BY 4.0",
    }  # fmt: skip
    assert found["pretrained"] is None


def test_a_training_that_does_not_reach_its_end_writes_none(tmp_path):
    run = _Run(tmp_path, 4)

    @run.trainer.on(Events.EPOCH_STARTED(once=3))
    def stop(engine):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run.run()
    assert (tmp_path / "model.pt").is_file() and not (tmp_path / CERTIFICATE).exists()
