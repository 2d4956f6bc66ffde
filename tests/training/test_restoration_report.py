# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv

import numpy as np
import torch
from ignite.engine import Events

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
