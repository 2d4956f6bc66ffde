# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models_genesis.training import RestorationPicture, draw_restoration


@pytest.mark.parametrize("shape", [(3, 1, 8, 6, 4), (3, 1, 8, 6)])
def test_shows_the_middle_slice_with_the_front_of_the_patient_up(shape):
    rng = np.random.default_rng(0)
    originals, deformed, restored = rng.random((3, *shape))
    figure = draw_restoration(originals, deformed, restored)
    shown = np.array([axis.images[0].get_array() for axis in figure.axes]).reshape(4, 3, 6, 8)
    for row, array in enumerate((originals, deformed, restored, abs(restored - originals))):
        for column in range(3):
            plane = array[column, 0, ..., 2] if len(shape) == 5 else array[column, 0]
            # RAS: the first axis runs to the patient's left on the right side of the picture turned by 180 degrees.
            np.testing.assert_array_equal(shown[row, column], plane[::-1, ::-1].T)
    error = np.mean((deformed[1] - originals[1]) ** 2)
    assert figure.axes[4].get_title() == f"MSE {error:.4f}"


def test_writes_the_best_validation_to_disk_and_all_to_tensorboard(make_run, make_cubes, tmp_path):
    run = make_run(epochs=3)
    RestorationPicture(make_cubes(5), tmp_path, num_cubes=2).attach(run.evaluator)
    run.trainer.run()
    assert imread(tmp_path / "restoration.png").ndim == 3
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("restoration")] == [1, 2, 3]


def test_other_ranks_draw_nothing(make_run, make_cubes, tmp_path):
    run = make_run(epochs=1)
    RestorationPicture(make_cubes(2), tmp_path, rank=1).attach(run.evaluator)
    run.trainer.run()
    assert not (tmp_path / "restoration.png").exists()


def test_the_file_stays_that_of_the_best_validation(make_cubes, tmp_path):
    """The second validation is worse: TensorBoard has both, the file is not touched."""
    network = torch.nn.Conv3d(1, 1, 1)
    state = SimpleNamespace(device="cpu", epoch=1, best_metric_epoch=1)
    engine = SimpleNamespace(
        state=state, network=network, inferer=lambda cubes, network: network(cubes),
        prepare_batch=lambda batch, *_: (batch["image"], batch["label"]),
    )  # fmt: skip
    picture = RestorationPicture(make_cubes(2), tmp_path)
    written = []
    for epoch, best in ((1, 1), (2, 1), (3, 3)):
        state.epoch, state.best_metric_epoch = epoch, best
        torch.nn.init.constant_(network.weight, epoch)  # another picture each time
        picture(engine)
        written.append((tmp_path / "restoration.png").read_bytes())
    assert written[0] == written[1] != written[2]
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Images("restoration")] == [1, 2, 3]
