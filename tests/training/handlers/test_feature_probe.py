# SPDX-License-Identifier: Apache-2.0
"""The probe of features: it finds what is linear in them, on held-out cases, and leaves the training as it is."""

from __future__ import annotations

import csv
import json
import logging
import random

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from models_genesis.networks import GenesisUNet
from models_genesis.training import FeatureProbe

SIDE = (8, 8, 4)


class Identity(nn.Module):
    """A network whose one feature is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv3d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def write(path, array):
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1, -1, 1, 1])), path)  # RAS is LPS's array reversed
    return path.name


@pytest.fixture
def make_list(tmp_path):
    """A data list of scans whose label is where the intensity is high, or whose class is a mean intensity."""

    def make(classes=False, shape=(12, 10, 6), **changes):
        R = np.random.RandomState(0)
        lists = {}
        for key in ("training", "validation"):
            lists[key] = []
            for number in range(4):
                scan = R.randint(-1000, 400, shape).astype(np.int16)
                scan[3:9, 2:8, 1:5] += 500 * (number % 2) if classes else 0
                entry = {"image": write(tmp_path / f"{key}{number}.nii", scan), "patient": f"{key}{number}"}
                if classes:
                    entry["class"] = number % 2
                else:
                    entry["label"] = write(tmp_path / f"{key}{number}_label.nii", (scan > 0).astype(np.uint8))
                lists[key].append(entry)
        path = tmp_path / "probe.json"
        path.write_text(json.dumps(lists | changes))
        return path

    return make


@pytest.mark.parametrize("shape", [(12, 10, 6), (6, 7, 3), (8, 20, 4)])  # larger, smaller and both
def test_what_is_linear_in_the_features_is_found(make_run, make_list, shape):
    network = Identity()
    probe = FeatureProbe(network, make_list(shape=shape), SIDE, interval=1, max_share=1.0)
    make_run(epochs=1, network=network, probe=probe).trainer.run()
    # the label is a threshold of the intensity; only voxels between the two drawn ones nearest to it can go wrong,
    # of about 400 drawn a share of 1 / 400, so the Dice errs by about as much
    assert probe.metric == "dice" and probe.value is not None and 0.98 < probe.value <= 1
    assert probe.baseline == pytest.approx(probe.value)  # the input of the head does not depend on weights


class Flat(Identity):
    """Of slices."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 1, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_slices_it_is_the_one_with_most_of_the_label(make_list, axis):
    """The rule is the same as for cubes; the slice is found by counting in the file."""
    network, path = Flat(), make_list()
    probe = FeatureProbe(network, path, (6, 4), slice_axis=axis)
    probe._cases = probe._load()
    assert probe.metric == "dice" and 0.95 < probe._measure(network) <= 1
    entries = json.loads(path.read_text())["training"]
    for case, entry in zip(probe._cases["training"], entries, strict=True):
        label, scan = (np.asarray(nibabel.load(path.parent / entry[key]).dataobj) for key in ("label", "image"))
        label, scan = (np.moveaxis(array[::-1, ::-1], axis, 0) for array in (label, scan))  # RAS, slices first
        fullest = label.sum(axis=(1, 2)).argmax()
        shown = case.image[0, 0].numpy() * 2000 - 1000
        assert shown.shape == case.label.shape == case.inside.shape == (6, 4)
        windows = [
            np.allclose(scan[fullest, x : x + 6, y : y + 4], shown, atol=1e-3)
            for x in range(scan.shape[1] - 5)
            for y in range(scan.shape[2] - 3)
        ]
        assert sum(windows) == 1
        assert ((shown > 0) == (case.label > 0)).all()


def test_whole_cubes_have_an_auc(make_run, make_list):
    network = Identity()
    probe = FeatureProbe(network, make_list(classes=True), SIDE, interval=1, max_share=1.0)
    make_run(epochs=1, network=network, probe=probe).trainer.run()
    assert (probe.metric, probe.value) == ("auc", 1.0)


def test_a_training_is_bit_by_bit_what_it_is_without_the_probe(make_run, make_list, tmp_path):
    ends = []
    for name in ("without", "with"):
        folder = tmp_path / name
        torch.manual_seed(5)
        network = GenesisUNet(features=(4, 6))
        network.dropout = nn.Dropout(0.5)
        network.register_forward_hook(lambda module, args, output: module.dropout(output))  # takes random numbers
        probe = FeatureProbe(network, make_list() if name == "with" else None, SIDE, interval=1, max_share=1.0)
        run = make_run(epochs=3, folder=folder, network=network, learning_rate=0.05, probe=probe)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        run.trainer.run()
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        random_states = (torch.get_rng_state().tolist(), numpy_state, random.getstate())
        modes = [module.training for module in network.modules()]
        rows = list(csv.DictReader((folder / "history.csv").open()))
        ends.append((network.state_dict(), run.optimizer.state_dict()["state"], random_states, modes, rows))
    (state, moments, *rest, rows), (other_state, other_moments, *other_rest, other_rows) = ends
    assert all(torch.equal(tensor, other_state[name]) for name, tensor in state.items())
    assert all(torch.equal(moments[k]["momentum_buffer"], other_moments[k]["momentum_buffer"]) for k in moments)
    assert rest == other_rest
    assert "probe" not in rows[0] and len(other_rows) == 3
    for row, other in zip(rows, other_rows, strict=True):
        assert [row[name] for name in ("train_loss", "val_metric")] == [other[name] for name in ("train_loss", "val_metric")]  # noqa: E501  # fmt: skip
        assert 0 <= float(other["probe"]) <= 1 and float(other["probe_random"]) == float(other_rows[0]["probe_random"])


def test_interval_and_share_of_the_time(make_run, make_list, tmp_path, caplog, monkeypatch):
    network = Identity()
    probe = FeatureProbe(network, make_list(), SIDE, interval=2, max_share=1.0)
    make_run(epochs=5, network=network, probe=probe).trainer.run()
    values = [row["probe"] for row in csv.DictReader((tmp_path / "history.csv").open())]
    assert [bool(value) for value in values] == [False, True, False, True, True]  # the last is always probed

    # a clock of which each probe takes one second and an epoch ten: the start and the first probe would be 2 of 11
    now = [0.0]
    monkeypatch.setattr("models_genesis.training.handlers.feature_probe.time.monotonic", lambda: now[0])
    probe = FeatureProbe(network, make_list(), SIDE, interval=1, max_share=0.05)

    def measured(network):
        now[0] += 1
        return 0.5

    monkeypatch.setattr(probe, "_measure", measured)
    run = make_run(epochs=9, network=network, probe=probe)
    probed = []
    from ignite.engine import Events

    @run.trainer.on(Events.EPOCH_STARTED)
    def pass_time():
        now[0] += 10

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def note():
        probed.append(probe.value is not None)

    with caplog.at_level(logging.INFO):
        run.trainer.run()
    # before epoch e the clock says 1 + 10 e + the probes so far; k probes and the start fit from 20 (k + 1) seconds on
    assert probed == [False, False, False, True, False, True, False, True, True]
    assert "left out, as it would take 18.2 % of the time" in caplog.text


def test_a_resumed_history_takes_the_columns_of_the_run(make_run, make_list, tmp_path):
    network = Identity()
    make_run(epochs=1, network=network).trainer.run()
    probe = FeatureProbe(network, make_list(), SIDE, interval=1, max_share=1.0)
    make_run(epochs=2, network=network, probe=probe, resume=True).trainer.run()
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [row["probe"] != "" for row in rows] == [False, True]
    make_run(epochs=3, network=network, resume=True).trainer.run()
    assert [set(row) & {"probe"} for row in csv.DictReader((tmp_path / "history.csv").open())] == [set()] * 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": []}, "expected cases in 'training' and 'validation'"),
        ({"validation": [{"image": "training0.nii", "label": "training0_label.nii"}]}, "image .*training0.nii in both"),
        ({"validation": [{"image": "validation0.nii", "class": 1}]}, "all with a 'label' map or all with a 'class'"),
        ({"validation": [{"image": "validation0.nii"}]}, "validation0.nii: expected a label map as 'label', found"),
        ({"validation": [{"image": "validation0.nii", "label": 1}]}, "as 'label', found 1"),
        ({"validation": [{"image": "validation0.nii", "label": "validation1_label.nii", "patient": "training0"}]},
         "found patient training0 in both"),
    ],
)  # fmt: skip
def test_cases_that_cannot_be_used_are_named(make_run, make_list, changes, words):
    network = Identity()
    run = make_run(epochs=1, network=network, probe=FeatureProbe(network, make_list(**changes), SIDE))
    with pytest.raises(ValueError, match=words):
        run.trainer.run()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="expected a probe interval of at least 1 epoch and a share"):
        FeatureProbe(Identity(), None, SIDE, interval=0)
