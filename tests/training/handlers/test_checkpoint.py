# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import logging
import os
import resource
import signal

import pytest
import torch
from ignite.engine import Events

from models_genesis.training import GracefulShutdown
from models_genesis.training.handlers.birth_certificate import CERTIFICATE


def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(make_run, tmp_path):
    whole = make_run(epochs=5, folder=tmp_path / "whole")
    whole.trainer.run()
    make_run(epochs=2, folder=tmp_path / "parts").trainer.run()
    torch.rand(7)  # whatever happens in between must not matter
    rest = make_run(epochs=5, folder=tmp_path / "parts", resume=True)
    rest.trainer.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, rest.network.state_dict()[name]), name
    assert rest.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    losses = [
        [
            (row["epoch"], row["train_loss"], row["val_metric"])
            for row in csv.DictReader((tmp_path / d / "history.csv").open())
        ]
        for d in ("whole", "parts")
    ]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]


def test_an_interrupted_epoch_is_done_again(make_run, tmp_path):
    whole = make_run(epochs=3, folder=tmp_path / "whole")
    whole.trainer.run()
    broken = make_run(epochs=3, folder=tmp_path / "parts", handlers=[GracefulShutdown()])

    def ctrl_c(engine):
        raise KeyboardInterrupt

    broken.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), ctrl_c)  # the end of epoch 2 is not reached
    with pytest.raises(KeyboardInterrupt):
        broken.trainer.run()
    rest = make_run(epochs=3, folder=tmp_path / "parts", resume=True)
    rest.trainer.run()
    assert torch.equal(whole.network.weight, rest.network.weight)


def test_model_pt_is_the_plain_state_dict_of_the_best_epoch(make_run, tmp_path):
    run = make_run(epochs=4)
    saved = {}

    def remember(engine):
        saved[engine.state.epoch] = (engine.state.metrics["val_mse"], run.network.weight.detach().clone())

    run.evaluator.add_event_handler(Events.EPOCH_COMPLETED, remember)
    run.trainer.run()
    best = min(saved.values(), key=lambda pair: pair[0])
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(weights) == ["weight", "bias"]
    assert torch.equal(weights["weight"], best[1])


def test_a_resumed_run_never_overwrites_better_weights(make_run, tmp_path):
    make_run(epochs=3).trainer.run()
    best = (tmp_path / "model.pt").read_bytes()
    # A rate this high spoils the network, so every epoch after resuming is worse.
    rest = make_run(epochs=5, resume=True)
    rest.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: rest.network.bias.data.fill_(50.0))
    rest.trainer.run()
    assert (tmp_path / "model.pt").read_bytes() == best


def test_early_stopping_counts_on_after_resuming(make_run):
    def spoil(run):
        run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: None)
        run.evaluator.add_event_handler(Events.STARTED, lambda: run.network.bias.data.fill_(50.0))

    first = make_run(epochs=3, patience=4)
    spoil(first)  # epoch 1 is the best; the count stands at 2 after epoch 3
    first.trainer.run()
    rest = make_run(epochs=20, patience=4, resume=True)
    spoil(rest)
    rest.trainer.run()
    assert rest.trainer.state.epoch == 5


def test_resuming_from_nothing_names_the_file(make_run, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "last_epoch.pt")):
        make_run(resume=True).trainer.run()


def test_resuming_another_network_is_refused(make_run):
    make_run(epochs=1).trainer.run()
    with pytest.raises(ValueError, match=r"last_epoch\.pt does not fit this training"):
        make_run(epochs=2, resume=True, network=torch.nn.Conv3d(1, 1, 1)).trainer.run()


def test_fewer_epochs_than_done_is_refused(make_run):
    make_run(epochs=3).trainer.run()
    with pytest.raises(ValueError, match="3 epochs behind it, but --epochs is 2"):
        make_run(epochs=2, resume=True).trainer.run()


def test_a_fresh_run_over_an_old_one_warns(make_run, caplog):
    make_run(epochs=1).trainer.run()
    with caplog.at_level(logging.WARNING):
        make_run(epochs=1).trainer.run()
    assert "will be overwritten" in caplog.text


def test_a_full_disk_leaves_the_old_files_whole(make_run, tmp_path):
    make_run(epochs=1).trainer.run()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to write a file past this size, as a full disk would.
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            make_run(epochs=3, resume=True).trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before
    others = {path.name for path in tmp_path.iterdir() if path.suffix not in (".pt", ".csv", ".png")}
    assert others == {CERTIFICATE}  # of the first training; no temporary file
    make_run(epochs=2, resume=True).trainer.run()


def test_sigterm_becomes_an_exit_that_tells_how_to_go_on(make_run, caplog):
    run = make_run(epochs=3, handlers=[GracefulShutdown("use --resume True")])
    before = signal.getsignal(signal.SIGTERM)
    run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop, caplog.at_level(logging.WARNING):
        run.trainer.run()
    assert stop.value.code == 128 + signal.SIGTERM
    assert "stopped in epoch 2, iteration 3: use --resume True" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before
