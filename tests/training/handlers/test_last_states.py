# SPDX-License-Identifier: Apache-2.0
"""A damaged last state costs an epoch, never the training, and is never taken for sound."""

from __future__ import annotations

import csv
import errno
import logging
import os
import shutil

import pytest
import torch

from models_genesis.networks import DamagedFileError
from models_genesis.training.handlers import last_states
from models_genesis.training.handlers.last_states import check_room, read_last_state, write_last_state

ENTRIES = dict.fromkeys(last_states.ENTRIES, 0)


def state(number):
    return {**ENTRIES, "model": {"weight": torch.full((50,), float(number))}, "optimizer": {}, "epoch": number}


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_states_as_asked_for_are_kept(keep, links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    for number in range(1, 6):
        write_last_state(tmp_path / "last_epoch.pt", state(number), keep)
    names = ["last_epoch.pt", *(f"last_epoch_before_{number}.pt" for number in range(1, keep))]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    found = [torch.load(tmp_path / name, weights_only=True)["epoch"] for name in names]
    assert found == [5, 4, 3][:keep]
    write_last_state(tmp_path / "last_epoch.pt", state(6), 1)
    assert os.listdir(tmp_path) == ["last_epoch.pt"]


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "a bit": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "missing": lambda path: path.unlink(),
    "text": lambda path: path.write_text("<html>proxy error</html>"),
    "a list": lambda path: torch.save([1, 2], path),
    "an entry is missing": lambda path: torch.save({"model": {}}, path),
    "NaN": lambda path: torch.save({**state(3), "model": {"weight": torch.tensor([float("nan")])}}, path),
    "infinite moments": lambda path: torch.save(
        {**state(3), "optimizer": {"state": {0: {"exp_avg": torch.tensor([float("inf")])}}}}, path
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_of_a_damaged_state_the_one_before_is_taken_loudly(kind, tmp_path, caplog):
    for number in (1, 2, 3):
        write_last_state(tmp_path / "last_epoch.pt", state(number))
    DAMAGE[kind](tmp_path / "last_epoch.pt")
    with caplog.at_level(logging.WARNING):
        assert read_last_state(tmp_path / "last_epoch.pt")["epoch"] == 2
    assert "RESUMING FROM AN OLDER STATE" in caplog.text and str(tmp_path / "last_epoch.pt") in caplog.text


def test_where_all_are_damaged_each_is_named(tmp_path):
    for number in (1, 2):
        write_last_state(tmp_path / "last_epoch.pt", state(number))
    for path in tmp_path.iterdir():
        flip(path)
    with pytest.raises(DamagedFileError, match=r"(?s)last_epoch\.pt cannot.*last_epoch_before_1\.pt cannot"):
        read_last_state(tmp_path / "last_epoch.pt")


def test_a_training_goes_on_exactly_from_the_state_before(make_run, tmp_path):
    whole = make_run(epochs=4, folder=tmp_path / "whole")
    whole.trainer.run()
    make_run(epochs=3, folder=tmp_path / "parts").trainer.run()
    flip(tmp_path / "parts" / "last_epoch.pt", 0.3)
    rest = make_run(epochs=4, folder=tmp_path / "parts", resume=True)
    rest.trainer.run()
    assert all(
        torch.equal(value, rest.network.state_dict()[name]) for name, value in whole.network.state_dict().items()
    )
    assert history(tmp_path / "parts") == history(tmp_path / "whole")
    # the damaged file took no sound one's place
    assert read_last_state(tmp_path / "parts" / "last_epoch_before_1.pt")["epoch"] == 3
    assert (tmp_path / "parts" / "last_epoch.pt.damaged").is_file()


def history(folder):
    with open(folder / "history.csv", newline="") as file:
        return [(row["epoch"], row["train_loss"], row["val_metric"]) for row in csv.DictReader(file)]


EDITS = {
    "empty": lambda text: "",
    "another run's": lambda text: text.replace("0.", "0.9", 1),
    "no number": lambda text: text.replace("\n1,", "\none,"),
    "an epoch of -1": lambda text: text + "-1,0.1,0.1,0.1,1.0,1.0\n",
    "bytes": lambda text: text + "\udcff\udcfe",
    "a cell that is too long": lambda text: text + "x" * 200_000,
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("from_state", [True, False], ids=["kept in the state", "older state without it"])
def test_a_damaged_history_is_made_again_or_named(kind, from_state, make_run, tmp_path, caplog):
    make_run(epochs=2).trainer.run()
    expected, path = history(tmp_path), tmp_path / "history.csv"
    edited = EDITS[kind](path.read_text())
    path.write_text(edited, errors="surrogateescape")
    if not from_state:
        old = torch.load(tmp_path / "last_epoch.pt", weights_only=True)
        torch.save({name: value for name, value in old.items() if name != "history"}, tmp_path / "last_epoch.pt")
        if kind != "another run's":  # which without the state nobody can tell
            with pytest.raises(ValueError, match=r"history\.csv is damaged or was edited"):
                make_run(epochs=3, resume=True).trainer.run()
        return
    with caplog.at_level(logging.WARNING):
        make_run(epochs=3, resume=True).trainer.run()
    assert history(tmp_path)[:2] == expected and len(history(tmp_path)) == 3
    assert (tmp_path / "history_before_resuming.csv").read_text(errors="surrogateescape") == edited
    assert "made again" in caplog.text


def test_leftovers_of_a_killed_run_go_at_the_start(make_run, tmp_path):
    for name in (".tmp.0123abcd.last_epoch.pt", ".model.pt.4711.tmp", ".tmp.89abcdef.history.csv", ".tmp.mine.txt"):
        (tmp_path / name).write_bytes(b"half a file")
    make_run(epochs=1).trainer.run()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == [".tmp.mine.txt"]


def test_a_full_disk_is_named_with_path_and_bytes_before_the_first_epoch(make_run, tmp_path, monkeypatch):
    run = make_run(epochs=1)
    status = os.statvfs(tmp_path)
    full = type("Status", (), {"f_bavail": 3, "f_frsize": status.f_frsize})
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(OSError, match=rf"{tmp_path}: expected \d+ bytes free"):
        check_room(tmp_path, torch.nn.Linear(3000, 1000))
    big = torch.nn.Conv3d(1, 1, 3, padding=1)
    big.register_buffer("much", torch.zeros(10**6))
    with pytest.raises(OSError, match=rf"{tmp_path}: expected \d+ bytes free"):
        make_run(epochs=1, network=big).trainer.run()
    assert run.trainer.state.iteration == 0


def test_a_disk_that_fills_up_is_named_and_costs_nothing(tmp_path, monkeypatch):
    """torch.save hides the system's error behind a RuntimeError of its own."""
    path = tmp_path / "last_epoch.pt"
    write_last_state(path, state(1))
    write_last_state(path, state(2))
    real = type(path).open

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(
        type(path),
        "open",
        lambda self, mode="r", **how: Full(real(self, mode)) if mode == "wb" else real(self, mode, **how),
    )
    with pytest.raises(OSError, match=rf"No space left on device: {path} needs more than the \d+ bytes") as error:
        write_last_state(path, state(3))
    assert error.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert read_last_state(path)["epoch"] == 2
    shutil.copy(tmp_path / "last_epoch_before_1.pt", path)
    assert read_last_state(path)["epoch"] == 1
    assert sorted(os.listdir(tmp_path)) == ["last_epoch.pt", "last_epoch_before_1.pt"]
