# SPDX-License-Identifier: Apache-2.0
"""A resumed training goes on exactly, is refused, or takes over what has changed as if it had always been so."""

from __future__ import annotations

import copy
import csv
import importlib
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from monai.optimizers import WarmupCosineSchedule
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, ReduceLROnPlateau, StepLR

from models_genesis.training import ChangedSettingsError
from models_genesis.training.handlers.run_settings import (
    _RENAMED,
    changed_settings,
    data_facts,
    describe_changes,
    measure_changed,
    schedule_changes,
    steps_of_schedule,
    take_over_schedule,
)

RATE = 0.1


def build(kind: str, epochs: int, epoch_length: int, warmup: int = 0, rate: float = RATE):
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedules = {
        "cosine": lambda: WarmupCosineSchedule(optimizer, warmup * epoch_length, epochs * epoch_length),
        "step": lambda: StepLR(optimizer, 2, 0.5),
        "exponential": lambda: ExponentialLR(optimizer, 0.9),
        "plateau": lambda: ReduceLROnPlateau(optimizer, "max", patience=1),
    }
    return network, optimizer, schedules[kind]()


def train(kind: str, network, optimizer, schedule: LRScheduler, epochs: range, epoch_length: int) -> list[float]:
    """Train on a line, and note the rate of each iteration."""
    rates = []
    for epoch in epochs:
        for step in range(epoch_length):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            network(torch.ones(2, 3) * (step + 1)).square().mean().backward()
            optimizer.step()
            if kind in ("cosine", "exponential"):
                schedule.step()
        if kind == "step":
            schedule.step()
        if kind == "plateau":
            schedule.step(float(epoch < 2))  # no longer better from epoch 2 on
    return rates


def checkpoint(optimizer, schedule, epochs: int, epoch_length: int) -> dict:
    states = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}
    return copy.deepcopy({**states, "epoch": epochs, "iteration": epochs * epoch_length})


@pytest.mark.parametrize("kind", ["cosine", "step", "exponential"])
@pytest.mark.parametrize(("old", "new"), [((6, 3), (12, 3)), ((6, 4), (6, 2)), ((6, 2), (9, 5))], ids=str)
def test_the_rates_after_taking_over_are_those_of_a_run_that_began_so(kind, old, new):
    network, optimizer, schedule = build(kind, *old)
    train(kind, network, optimizer, schedule, range(4), old[1])
    state = checkpoint(optimizer, schedule, 4, old[1])
    network, optimizer, schedule = build(kind, *new)
    take_over_schedule(optimizer, schedule, state, steps_of_schedule(state, new[1]))
    rates = train(kind, network, optimizer, schedule, range(4, new[0]), new[1])
    whole = train(kind, *build(kind, *new), range(new[0]), new[1])
    assert rates == whole[4 * new[1] :]
    assert all(later <= earlier for earlier, later in pairwise(rates))


def test_the_learning_rate_is_the_new_ones_and_the_moments_are_the_old_ones():
    network, optimizer, schedule = build("cosine", 6, 3)
    train("cosine", network, optimizer, schedule, range(2), 3)
    state = checkpoint(optimizer, schedule, 2, 3)
    _, other, schedule = build("cosine", 6, 3, rate=10 * RATE)
    take_over_schedule(other, schedule, state, 6)
    (group,) = other.param_groups
    assert group["lr"] == pytest.approx(10 * RATE * 0.5 * (1 + math.cos(math.pi / 3)))
    for number, moments in state["optimizer"]["state"].items():
        now = other.state[group["params"][number]]
        assert all(torch.equal(now[name], moments[name]) for name in ("exp_avg", "exp_avg_sq", "step"))


def test_a_plateau_keeps_what_it_has_seen():
    network, optimizer, schedule = build("plateau", 6, 3)
    train("plateau", network, optimizer, schedule, range(6), 3)
    state = checkpoint(optimizer, schedule, 6, 3)
    lowered = optimizer.param_groups[0]["lr"]
    assert lowered < RATE
    _, other, schedule = build("plateau", 6, 3, rate=2 * RATE)
    take_over_schedule(other, schedule, state, 18, rate_factor=2.0)
    assert other.param_groups[0]["lr"] == pytest.approx(2 * lowered)
    assert (schedule.best, schedule.num_bad_epochs) == (
        state["lr_scheduler"]["best"],
        state["lr_scheduler"]["num_bad_epochs"],
    )


def test_a_second_warm_up_is_refused():
    network, optimizer, schedule = build("cosine", 6, 3, warmup=1)
    train("cosine", network, optimizer, schedule, range(2), 3)
    state = checkpoint(optimizer, schedule, 2, 3)
    _, other, schedule = build("cosine", 6, 3, warmup=4)
    with pytest.raises(ChangedSettingsError, match="climb again"):
        take_over_schedule(other, schedule, state, 6)


def test_another_optimizer_is_refused():
    network, optimizer, schedule = build("step", 6, 3)
    state = checkpoint(optimizer, schedule, 0, 3)
    other = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    with pytest.raises(ChangedSettingsError, match="another kind"):
        take_over_schedule(other, StepLR(other, 2, 0.5), state, 0)


def test_what_the_objects_themselves_tell_has_changed():
    _, optimizer, schedule = build("cosine", 6, 3)
    state = checkpoint(optimizer, schedule, 0, 3)
    assert schedule_changes(optimizer, schedule, state) == {}
    _, other, longer = build("cosine", 12, 3, rate=1.0)
    found = schedule_changes(other, longer, state)
    assert found["lr_scheduler#t_total"] == (18, 36) and found["optimizer#initial_lr"] == (RATE, 1.0)


def test_changes_are_named_by_id():
    old = {"batch_size": 2, "loss": {"_target_": "A", "gamma": 0.0}, "steps": [{"prob": 0.5}, {"prob": 0.1}], "gone": 1}
    new = {"batch_size": 2, "loss": {"_target_": "B", "gamma": 0.0}, "steps": [{"prob": 0.5}, {"prob": 0.2}], "came": 1}
    assert changed_settings(old, old) == {}
    assert changed_settings(old, new) == {
        "loss#_target_": ("A", "B"),
        "steps#1#prob": (0.1, 0.2),
        "gone": (1, "(none)"),
        "came": ("(none)", 1),
    }
    assert describe_changes({"spacing": (None, [1, 1, 2])}) == "spacing null -> [1, 1, 2]"


@pytest.mark.parametrize("package", ["models_genesis", "scripts"])
def test_a_component_that_has_another_name_since_is_no_change(package):
    """A checkpoint of an earlier version resumes, in this repository and in a packed bundle."""
    old = {"deformation": {"_target_": f"{package}.training.DeformationPlace", "variant": "combined"}}
    new = {"deformation": {"_target_": f"{package}.training.DeformationBackend", "variant": "combined"}}
    assert changed_settings(old, new) == {}
    own = {"deformation": {"_target_": "mytraining.DeformationPlace", "variant": "combined"}}
    assert list(changed_settings(own, new)) == ["deformation#_target_"]


@pytest.mark.parametrize("epochs", ["$@epochs", "$@train::trainer::max_epochs"])
def test_a_training_from_before_gradients_were_accumulated_goes_on(epochs):
    def written(steps):
        return {"warmup_steps": f"$@warmup_epochs * {steps}", "t_total": f"{epochs} * {steps}"}

    steps = "optimizer_steps(@train::dataloader, @accumulation_steps)"
    old = {"lr_scheduler": written("len(@train::dataloader)"), "train": {"trainer": {"amp": True}}}
    trainer = {"amp": True, "accumulation_steps": "@accumulation_steps"}
    new = {"lr_scheduler": written(steps), "train": {"trainer": trainer}, "accumulation_steps": 1}
    assert changed_settings(old, new) == changed_settings(old, {**new, "sync_batch_norm": False}) == {}
    assert changed_settings({**new, "sync_batch_norm": False}, new) == {}  # two processes, then one
    other = {**new, "accumulation_steps": 2, "sync_batch_norm": True}
    assert list(changed_settings(old, other)) == ["accumulation_steps", "sync_batch_norm"]


@pytest.mark.parametrize("by_epoch", [False, True])
def test_a_schedule_is_taken_over_by_steps_of_the_optimizer(by_epoch):
    """Two epochs of five batches, two a step: three steps an epoch were made, unless it steps once an epoch."""
    state = {"epoch": 2, "iteration": 10, "settings": {"accumulation_steps": 2}}
    state["lr_scheduler"] = {"last_epoch": 2 if by_epoch else 6}
    assert steps_of_schedule(state, 5) == (2 if by_epoch else 10)


def test_what_the_bundles_no_longer_write_into_their_configs_is_no_change():
    """Early stopping and the number of processes have the same effect as before; other values were the user's."""
    score = "$lambda engine: engine.state.metrics['val_dice']"
    stop = {"_target_": "EarlyStopHandler", "patience": "@early_stop_patience", "score_function": score}
    sampler = {"seed": "@seed", "num_replicas": "@world_size"}
    old = {"early_stop": stop, "early_stop_patience": 5, "world_size": 2, "train": {"sampler": sampler}}
    new = {"world_size": 2, "train": {"sampler": {"seed": "@seed"}}, "train#run#early_stop_patience": 5}
    assert changed_settings(old, new) == {}
    assert changed_settings(old, {**new, "world_size": 1}) == {"world_size": (2, 1)}
    old["early_stop"]["patience"] = 7
    assert changed_settings(old, new) == {"early_stop#patience": (7, "(none)")}


def test_keys_that_moved_below_a_component_are_no_change_for_older_checkpoints():
    """Their values count where they are set now, with the component's default where the config does not say one."""
    old: dict[str, Any] = {
        "freeze_epochs": 0,
        "freeze_factor": 0.0,
        "slow_parts": [],
        "early_stop_patience": 20,
        "affine_prob": 0.5,
        "rotation": 0.26,
        "scaling": 0.1,
        "num_blocks": 702,
        "optimizer": {"_target_": "torch.optim.AdamW", "params": "$layer_groups(@network, @slow_parts)"},
        "deformation": {"num_blocks": "@num_blocks"},
        "train": {
            "random_transforms": [
                {
                    "_disabled_": "$@affine_prob == 0",
                    "prob": "@affine_prob",
                    "rotate_range": "$[[0, 0], [0, 0], [-@rotation, @rotation]]",
                    "scale_range": "$[@scaling] * 3",
                }
            ],
        },
    }
    turned = {
        "_disabled_": "$@train::augmentation::affine::prob == 0",
        "prob": 0.5,
        "rotate_range": [[0, 0], [0, 0], [-0.26, 0.26]],
        "scale_range": [0.1, 0.1, 0.1],
    }
    new: dict[str, Any] = {
        "optimizer": {"_target_": "torch.optim.AdamW", "params": {"_target_": "models_genesis.training.layer_groups"}},
        "deformation": {"num_blocks": 702},
        "train": {"random_transforms": [turned]},
        "train#run#early_stop_patience": 20,
    }
    assert changed_settings(old, new) == changed_settings(new, new) == {}
    new["train#run#freeze_epochs"] = 0
    assert changed_settings(old, new) == {}
    assert changed_settings({**old, "freeze_epochs": 3}, new) == {"train#run#freeze_epochs": (3, 0)}
    assert changed_settings({**old, "num_blocks": 9}, new) == {"deformation#num_blocks": (9, 702)}
    assert set(changed_settings({**old, "slow_parts": ["encoder"]}, new)) == {"optimizer#params#slow_parts"}
    assert set(changed_settings({**old, "scaling": 0.2}, new)) == {"train#random_transforms#0#scale_range"}
    new["optimizer"]["params"]["slow_parts"] = ["encoder"]
    assert changed_settings({**old, "slow_parts": ["encoder"]}, new) == {}


def test_a_metric_that_is_only_reported_is_no_change_for_checkpoints_with_and_without_it():
    metrics = {"val_mean_image": {"_target_": "models_genesis.training.MeanImageError"}}
    old = {"validate": {"evaluator": {"_target_": "SupervisedEvaluator", "additional_metrics": metrics}}}
    new = {"validate": {"evaluator": {"_target_": "SupervisedEvaluator"}}}
    assert changed_settings(old, new) == changed_settings(new, new) == {}


def test_facts_that_an_older_checkpoint_does_not_have_are_no_change():
    facts = {"validation_scans": 3, "validation_scan_names": "a", "validation_samples": 4}
    assert changed_settings({"seed": 0}, {"seed": 0, **facts}) == {}
    assert changed_settings({"seed": 0, **facts}, {"seed": 0, **facts, "validation_scans": 4}) != {}
    assert "validation_scans" in changed_settings({"seed": 0, **facts}, {"seed": 0})


def test_keys_that_came_with_two_dimensions_are_no_change_for_older_checkpoints():
    network = {"_target_": "GenesisUNet", "spatial_dims": 3}
    old = {"cube_size": [64, 64, 32], "network_def": network, "train": {"cut": {"_target_": "RandTissueCubed"}}}
    new = {
        "cube_size": [64, 64, 32],
        "slice_axis": None,
        "num_blocks": 10_000,
        "max_block_fraction": 0.1,
        "network_def": {**network, "spatial_dims": "$len(@cube_size)"},
        "train": {"cut": {"_target_": "RandTissueCubed", "slice_axis": "@slice_axis", "num_blocks": "@num_blocks"}},
    }
    flip, pad = {"_target_": "RandFlipd", "spatial_axis": 2}, {"_target_": "SpatialPadd", "spatial_size": "@cube_size"}
    old["train"] |= {"transforms": [flip, pad]}
    pad = {**pad, "spatial_size": "$window_size(@cube_size, @slice_axis)"}
    new["train"] |= {"transforms": [{**flip, "_disabled_": "$@slice_axis is not None"}, pad]}
    other = {**new, "train": {**new["train"], "transforms": [{**flip, "_disabled_": "$@flip_prob == 0"}, pad]}}
    assert set(changed_settings(old, other)) == {"train#transforms#0#_disabled_"}
    assert changed_settings(old, new) == changed_settings(new, new) == {}
    slices = {**new, "cube_size": [64, 64], "slice_axis": 2, "num_blocks": 702}
    assert set(changed_settings(old, slices)) == {"cube_size", "slice_axis", "num_blocks"}
    assert set(changed_settings(new, slices)) == {"cube_size", "slice_axis", "num_blocks"}
    assert measure_changed(changed_settings(new, slices))


def test_steps_that_take_slices_of_candidates_cubes_are_no_change_for_older_checkpoints():
    last = {"_target_": "EnsureTyped", "keys": "image"}
    slices = {"_target_": "CentreSlicesd", "_disabled_": "$@slice_axes is None", "axes": "@slice_axes"}
    old = {"network_def": {"spatial_dims": 3, "in_channels": "@in_channels"}, "train": {"transforms": [last]}}
    turn, cut = {"_target_": "RandRotate90d"}, {"_target_": "RandCandidateCubed"}
    old["train"]["transforms"][:0] = [cut, {**turn, "_disabled_": "$@cube_size[0] != @cube_size[1]"}]
    network = {"spatial_dims": "$3 if @slice_axes is None else 2"}
    network |= {"in_channels": "$@in_channels * len(@slice_axes or [2])"}
    new = {"slice_axes": None, "network_def": network, "train": {"transforms": [slices, last]}}
    turn = {**turn, "_disabled_": "$not may_turn(@cube_size, @slice_axes)"}
    new["train"]["transforms"][:0] = [{**cut, "slice_axes": "@slice_axes"}, turn]
    assert changed_settings(old, new) == changed_settings(new, new) == {}
    sliced = {**new, "slice_axes": [2]}
    assert set(changed_settings(new, sliced)) == {"slice_axes"} and "slice_axes" in changed_settings(old, sliced)
    assert measure_changed(changed_settings(new, sliced))
    assert set(changed_settings(sliced, {**new, "slice_axes": [1]})) == {"slice_axes"}


def test_renamed_components_exist():
    for target in _RENAMED.values():
        package, name = target.split(".")
        assert hasattr(importlib.import_module(f"models_genesis.{package}"), name)


def test_scans_are_known_wherever_they_lie():
    def facts(*names):
        class Data(list):
            data = [{"image": name} for name in names]

        return data_facts(Data())

    assert facts("/a/x/1.nii", "/a/y/2.nii") == facts("/mnt/b/x/1.nii", "/mnt/b/y/2.nii")
    assert changed_settings(facts("/a/1.nii", "/a/2.nii"), facts("/a/1.nii")) == {"scans": (2, 1)}
    assert list(changed_settings(facts("/a/1.nii", "/a/2.nii"), facts("/a/1.nii", "/a/3.nii"))) == ["scan_names"]
    assert data_facts(torch.utils.data.TensorDataset(torch.zeros(1))) == {}


def test_what_changes_the_measure_begins_a_new_best():
    for key in ("deform_on", "border", "tissue_threshold", "tissue_score_range", "on_empty"):
        assert measure_changed({key: (0, 1)})  # they choose or deform the cubes of the validation
    assert measure_changed({"intensity_range": (0, 1)}) and measure_changed({"validation_scans": (2, 3)})
    assert not measure_changed({"batch_size": (2, 4), "learning_rate": (1, 2), "scans": (3, 4)})


def history(folder):
    return list(csv.DictReader((folder / "history.csv").open()))


def test_other_settings_are_refused_by_name_when_resuming(make_run, tmp_path):
    make_run(epochs=2, settings={"batch_size": 4, "seed": 0}).trainer.run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        ChangedSettingsError, match=r"last_epoch\.pt .*: batch_size 4 -> 2; seed 0 -> 1\. .*--train#run#resume_changed"
    ):
        make_run(epochs=3, resume=True, settings={"batch_size": 2, "seed": 1}).trainer.run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_epochs_of_a_schedule_that_ends_are_refused(make_run):
    cosine = lambda optimizer, steps: WarmupCosineSchedule(optimizer, 0, steps)  # noqa: E731
    make_run(epochs=2, schedule=cosine).trainer.run()
    with pytest.raises(ChangedSettingsError, match="epochs 2 -> 5"):
        make_run(epochs=5, resume=True, schedule=cosine).trainer.run()


def test_taken_over_as_asked_for(make_run, tmp_path, caplog):
    cosine = lambda optimizer, steps: WarmupCosineSchedule(optimizer, 0, steps)  # noqa: E731
    make_run(epochs=4, schedule=cosine, settings={"batch_size": 4}).trainer.run()
    rest = make_run(
        epochs=8, resume=True, resume_changed=True, schedule=cosine, batch_size=2, settings={"batch_size": 2}
    )
    rest.trainer.run()
    assert rest.trainer.state.epoch == 8 and rest.trainer.state.iteration == 8 * 4
    rows = history(tmp_path)
    assert [row["epoch"] for row in rows] == [str(number) for number in range(1, 9)]
    assert [row["changed"] for row in rows] == ["", "", "", "", "epochs 4 -> 8; batch_size 4 -> 2", "", "", ""]
    assert "resumed with other settings" in caplog.text
    rates = [float(row["learning_rate"]) for row in rows]
    expected = [0.5 * 0.5 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(5, 9)]
    assert rates[4:] == pytest.approx(expected, rel=1e-2, abs=1e-9)
    # what it was written with counts from now on
    make_run(epochs=8, resume=True, schedule=cosine, batch_size=2, settings={"batch_size": 2}).trainer.run()


def test_resume_changed_alone_is_refused(make_run):
    with pytest.raises(ValueError, match="--train#run#resume_changed True goes with --resume True"):
        make_run(resume_changed=True)


@pytest.mark.parametrize(("by_epoch", "steps"), [(True, 2), (False, 2 * 2)])
def test_a_schedule_goes_on_at_the_steps_that_it_takes_now(by_epoch, steps, make_run, caplog):
    """After two epochs of two batches: where it steps once an epoch it has made two steps, else four."""
    halved = lambda optimizer, _: StepLR(optimizer, 1, 0.5)  # noqa: E731
    make_run(epochs=2, schedule=halved, settings={"batch_size": 4}).trainer.run()
    now = {"batch_size": 2, "train#run#lr_step_per_epoch": by_epoch}
    make_run(epochs=3, resume=True, resume_changed=True, schedule=halved, settings=now).trainer.run()
    assert f"the learning rate goes on from {0.5 * 0.5**steps:.3g}" in caplog.text
