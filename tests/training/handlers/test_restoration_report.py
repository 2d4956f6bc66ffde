# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset

from models_genesis.training import RestorationReport

DATA = [{"image": "scan0"}, {"image": "scan1"}]


def test_equals_the_errors_computed_directly(make_run, tmp_path):
    run = make_run()
    seen = []

    def remember(engine):
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            seen.append(
                (f"scan{int(item['scan'])}", *(output[key].numpy().astype(float) for key in ("pred", "image", "label")))
            )

    run.evaluator.add_event_handler(Events.ITERATION_COMPLETED, remember)
    RestorationReport(tmp_path, DATA).attach(run.evaluator)
    run.evaluator.run()
    mean_image = np.mean([original for *_, original in seen], axis=0)
    rows = {row["scan"]: row for row in csv.DictReader((tmp_path / "restoration.csv").open())}
    assert list(rows) == ["scan0", "scan1", "all"]
    for scan, row in rows.items():
        mine = [cubes for name, *cubes in seen if scan in (name, "all")]
        assert int(row["cubes"]) == len(mine)
        expected = [np.mean([np.mean((a - c) ** 2) for a, _, c in mine])]
        expected.append(np.mean([np.mean((b - c) ** 2) for _, b, c in mine]))
        expected.append(np.mean([np.mean((mean_image - c) ** 2) for *_, c in mine]))
        found = [float(row[column]) for column in ("mse_restored", "mse_deformed", "mse_mean_image")]
        np.testing.assert_allclose(found, expected, atol=6e-7)  # written with six digits


def test_evaluating_twice_does_not_add_up(make_run, tmp_path):
    run = make_run()
    RestorationReport(tmp_path, DATA).attach(run.evaluator)
    run.evaluator.run()
    first = (tmp_path / "restoration.csv").read_bytes()
    torch.manual_seed(3)
    run.evaluator.run()
    assert (tmp_path / "restoration.csv").read_bytes() == first


def test_each_kind_has_the_errors_of_its_voxels_and_the_better_baseline(make_run, make_cubes, tmp_path):
    run = make_run()
    generator = torch.Generator().manual_seed(4)
    items = make_cubes(6)
    for item in items:
        kinds = torch.randint(0, 4, item["label"].shape, generator=generator, dtype=torch.uint8)
        item["kinds"] = kinds
        # painted voxels show noise; shuffled ones something near the truth, so that leaving them is the better answer
        noise = torch.rand(item["label"].shape, generator=generator)
        item["image"] = torch.where(kinds == 3, noise, item["label"] + 0.01)
    run.evaluator.data_loader = DataLoader(Dataset(items), batch_size=2)
    seen = []

    def remember(engine):
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            seen.append([item["kinds"].numpy(), *(output[k].numpy().astype(float) for k in ("pred", "image", "label"))])

    run.evaluator.add_event_handler(Events.ITERATION_COMPLETED, remember)
    RestorationReport(tmp_path, DATA, kinds_key="kinds").attach(run.evaluator)
    for _ in range(2):  # the second run does not add to the first
        seen.clear()
        run.evaluator.run()
    kinds, restored, deformed, original = (np.stack(part) for part in zip(*seen, strict=True))
    mean_image = original.mean(axis=0, keepdims=True)
    rows = {row["kind"]: row for row in csv.DictReader((tmp_path / "restoration_kinds.csv").open())}
    assert list(rows) == ["kept", "mapped", "shuffled", "painted"]  # no voxel was masked
    for number, row in enumerate(rows.values()):
        here = kinds == number
        errors = [((answer - original) ** 2)[here].mean() for answer in (restored, deformed, mean_image)]
        found = [float(row[name]) for name in ("mse_restored", "mse_deformed", "mse_mean_image")]
        np.testing.assert_allclose(found, errors, atol=6e-7)
        assert int(row["voxels"]) == here.sum() and abs(float(row["share"]) - here.mean()) < 6e-5
        assert float(row["mse_baseline"]) == min(found[1:])
        assert row["baseline"] == ("mean image" if number == 3 else "deformed")


def test_items_without_kinds_are_named(make_run, tmp_path):
    run = make_run()
    RestorationReport(tmp_path, DATA, kinds_key="kinds").attach(run.evaluator)
    with pytest.raises(ValueError, match=r"kinds: expected in each item, found \['image', 'label', 'scan'\]"):
        run.evaluator.run()
