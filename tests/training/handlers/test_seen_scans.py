# SPDX-License-Identifier: Apache-2.0
"""Scans that measure weights and that these were trained on are named: by bytes, by patients, through all starts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from models_genesis.datasets.io.file_hash import hash_of_files
from models_genesis.networks import save_weights
from models_genesis.networks.weight_container import sha256_of
from models_genesis.training import WeightLoader
from models_genesis.training.handlers.birth_certificate import (
    CERTIFICATE,
    data_of_birth,
    source_of_weights,
    write_birth_certificate,
)
from models_genesis.training.handlers.seen_scans import find_seen_scans, warn_of_seen_scans, warn_of_shared_scans


def dataset(folder: Path, **scans: tuple[bytes, str | None]) -> SimpleNamespace:
    """A data set of files with these bytes and patients."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, (content, patient) in scans.items():
        (folder / f"{name}.nii").write_bytes(content)
        entries.append({"image": str(folder / f"{name}.nii"), **({"patient": patient} if patient else {})})
    return SimpleNamespace(data=entries)


def certified(folder: Path, trained: Any, pretrained: Path | None = None) -> Path:
    """Weights and their certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(nn.Linear(2, 2).state_dict(), folder / "model.pt")
    sources = {"datalist": None, "pretrained": None if pretrained is None else source_of_weights(pretrained)}
    data = {"training": data_of_birth(trained), "validation": []}
    write_birth_certificate(folder / "model.pt", {}, sources, data, {"sessions": []})
    return folder / "model.pt"


def test_bytes_and_patients_are_compared_through_all_starts(tmp_path, caplog):
    """Weights from weights: the first have seen scan a and patient P, the second b."""
    first = certified(tmp_path / "first", dataset(tmp_path / "one", a=(b"a", None), p=(b"p", "P")))
    second = certified(tmp_path / "second", dataset(tmp_path / "two", b=(b"b", None)), pretrained=first)
    measured = dataset(
        tmp_path / "three", x=(b"a", None), y=(b"b", "Q"), z=(b"other", "P"), a=(b"new", None), n=(b"new 2", "N")
    )
    with caplog.at_level(logging.WARNING):
        seen = warn_of_seen_scans(measured, "evaluation", source_of_weights(second))
    assert seen == ["x.nii (the file a.nii)", "y.nii (the file b.nii)", "z.nii (a patient of the same name, P)"]
    assert "evaluation: 3 of 5 scans were trained on by model.pt or by what it started from" in caplog.text


def test_what_chose_or_measured_the_weights_was_not_trained_on(tmp_path):
    scans = data_of_birth(dataset(tmp_path / "scans", a=(b"a", "A")))
    assert find_seen_scans(scans, {"data": {"training": [], "validation": scans}, "pretrained": None}) == []
    assert find_seen_scans(scans, {"data": {"training": scans, "validation": []}, "pretrained": None}) != []
    assert find_seen_scans(scans, {"data": None, "pretrained": None}) == find_seen_scans(scans, None) == []


def test_a_training_names_what_it_validates_on_too(tmp_path, caplog, monkeypatch):
    """The same file, a copy under another name and patient, another scan of a patient; sizes alone are no reason."""
    noise = [bytes([number]) * 200_000 for number in range(6)]
    trained = dataset(tmp_path / "one", a=(noise[0], "A"), b=(noise[1], "B"), c=(noise[2], "C"), d=(noise[3], None))
    copied = dataset(tmp_path / "two", x=(noise[1], "X"), y=(noise[4] + b"y", "C"), z=(noise[5], "Z"), w=(b"w", None))
    copied.data.append(dict(trained.data[3]))
    hashed = []
    monkeypatch.setattr(
        "models_genesis.training.handlers.seen_scans.hash_of_files",
        lambda file: hashed.append(file) or hash_of_files(file),
    )
    with caplog.at_level(logging.WARNING):
        shared = warn_of_shared_scans(trained, copied)
    assert [text.replace(f"{tmp_path}/", "") for text in shared] == [
        "two/x.nii (the file one/b.nii)", "two/y.nii (a patient of the same name, C)", "one/d.nii (the file one/d.nii)"
    ]  # fmt: skip
    assert "validation: 3 of 5 scans are trained on too" in caplog.text
    assert sorted(Path(file).name for file in hashed) == ["b.nii", "x.nii"]


def test_other_scans_of_a_training_are_not_read_and_not_named(tmp_path, caplog, monkeypatch):
    trained = dataset(tmp_path / "one", a=(b"a" * 10, "A"), b=(b"b" * 10, None))
    measured = dataset(tmp_path / "two", a=(b"c" * 10, "B"), b=(b"d" * 10, None))
    monkeypatch.setattr("models_genesis.training.handlers.seen_scans.hash_of_files", pytest.fail)
    assert warn_of_shared_scans(trained, measured) == warn_of_shared_scans(trained, SimpleNamespace(data=None)) == []
    assert not caplog.records


def test_a_validation_on_the_training_itself_reads_nothing(tmp_path, monkeypatch):
    """As a study has, which chooses nothing by it."""
    trained = dataset(tmp_path / "one", a=(b"a" * 10, "A"), b=(b"b" * 10, None))
    monkeypatch.setattr("builtins.open", pytest.fail)
    assert len(warn_of_shared_scans(trained, trained)) == 2


def test_a_file_that_cannot_be_read_does_not_end_the_training(tmp_path, caplog, monkeypatch):
    trained, copied = dataset(tmp_path / "one", a=(b"a" * 10, None)), dataset(tmp_path / "two", b=(b"a" * 10, None))

    def refuse(file):
        raise PermissionError(f"{file}: not today")

    monkeypatch.setattr("models_genesis.training.handlers.seen_scans.hash_of_files", refuse)
    assert warn_of_shared_scans(trained, copied) == []
    assert "could not be compared" in caplog.text and "not today" in caplog.text


@pytest.mark.parametrize("channels", [1, 2])
def test_copies_among_channels_and_in_a_store_are_named_too(channels, tmp_path):
    (one,) = dataset(tmp_path / "one", a=(b"a", None)).data
    (two,) = dataset(tmp_path / "two", t2=(b"a", None)).data
    several = {"image": [str(tmp_path / "one" / "a.nii"), two["image"]][-channels:]}
    (tmp_path / "one" / "a.nii").write_bytes(b"a")
    assert len(warn_of_shared_scans(SimpleNamespace(data=[one]), SimpleNamespace(data=[several]))) == 1
    gone = [{"image": str(tmp_path / name), "stored": {"sha256": "1f"}} for name in ("gone.nii", "too.nii")]
    assert len(warn_of_shared_scans(*(SimpleNamespace(data=[entry]) for entry in gone))) == 1


@pytest.mark.parametrize("certificate", ["none", "of other weights", "damaged"])
def test_without_a_certificate_of_these_weights_nothing_is_hashed_and_it_says_so(
    certificate, tmp_path, monkeypatch, caplog
):
    trained = dataset(tmp_path / "scans", a=(b"a", "A"))
    weights = certified(tmp_path / "weights", trained)
    path = weights.with_name(CERTIFICATE)
    if certificate == "none":
        path.unlink()
    elif certificate == "damaged":
        path.write_text("{")
    else:
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"weights": {"sha256": "0" * 64}}))
    monkeypatch.setattr("models_genesis.training.handlers.seen_scans.data_of_birth", pytest.fail)
    with caplog.at_level(logging.INFO):
        assert warn_of_seen_scans(trained, "evaluation", source_of_weights(weights)) is None
    assert "which scans model.pt was trained on is not known here" in caplog.text
    assert ("expected the birth certificate of model.pt" in caplog.text) == (certificate != "none")


@pytest.mark.parametrize(
    "change",
    [
        {"data": [1]},
        {"data": {"training": {"a": 1}}},
        {"data": {"training": [{"image": "a.nii"}]}},
        {"data": {"training": [{"image": None}]}},
        {"data": {"training": [{"image": {"file": "a.nii"}}]}},
        {"pretrained": "model.pt"},
        {"pretrained": {"data": "all"}},
    ],
)
def test_a_certificate_of_another_form_is_said_and_left_out(change, tmp_path, caplog):
    trained = dataset(tmp_path / "scans", a=(b"a", "A"))
    weights = certified(tmp_path / "weights", trained)
    path = weights.with_name(CERTIFICATE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert warn_of_seen_scans(trained, "evaluation", source_of_weights(weights)) is None
    assert "expected the birth certificate of model.pt" in caplog.text


def test_numbers_and_texts_name_the_same_patient():
    trained = {"data": {"training": [{"patient": "1"}]}, "pretrained": None}
    assert find_seen_scans([{"patient": 1}, {"patient": 2}], trained) == ["a scan (a patient of the same name, 1)"]


def test_an_evaluation_names_them_when_it_loads_its_weights(tmp_path, caplog):
    trained = dataset(tmp_path / "scans", a=(b"a", "A"))
    weights = certified(tmp_path / "weights", trained)
    network = nn.Linear(2, 2)
    loader = WeightLoader(load_path=str(weights), load_dict={"model": network}, scored_dataset=trained)
    engine = Engine(lambda *_: None)
    with caplog.at_level(logging.WARNING):
        loader(engine)
    assert "evaluation: 1 of 1 scans were trained on by model.pt" in caplog.text
    assert engine.state.weights_sha256 == sha256_of(weights)
    assert all(torch.equal(value, torch.load(weights, weights_only=True)[name])
               for name, value in network.state_dict().items())  # fmt: skip


def test_the_enclosed_weights_know_their_scans(shared, caplog):
    """Of the hippocampus: the 43 crops that tested them are new to them, those that trained them are not."""
    root = Path(__file__).resolve().parents[3]
    weights = root / "bundles" / "genesis_msd_segmentation" / "models" / "model.pt"
    listed = json.loads((root / "docs" / "evidence" / "hippocampus.weights.json").read_text())
    folder = shared / "data" / "msd" / "Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the project")
    for split, known in (("testing", 0), ("training", 1)):
        entries = [{**entry, "image": str(folder / entry["image"])} for entry in listed[split]]
        for entry in entries:
            entry.pop("label", None)
        seen = warn_of_seen_scans(SimpleNamespace(data=entries), split, source_of_weights(weights))
        assert len(seen) == known * len(entries), split
