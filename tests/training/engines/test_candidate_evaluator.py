# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ignite.engine import Events

from models_genesis.training.handlers.run_settings import data_facts, entries_of


def test_the_end_of_the_stream_ends_the_epoch_whatever_its_length_says(make_candidates, make_candidate_evaluator):
    """Otherwise ignite starts it again to fill up the promised length."""
    seen: list[int] = []
    engine = make_candidate_evaluator(make_candidates())
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda run: seen.extend(int(i["row"]) for i in run.state.batch)
    )
    for epoch in (1, 2):
        engine.run(epoch)
    assert seen == [*range(6)] * 2


def test_the_scans_that_it_validates_on_are_known(make_candidates, make_candidate_evaluator):
    """The birth certificate and the run settings list them; the stream in its wrapping was taken for no data set."""
    engine = make_candidate_evaluator(data := make_candidates())
    stream = engine.data_loader.dataset
    assert entries_of(stream) == data.data and len(data.data) > 0
    assert data_facts(stream, "validation_")["validation_scans"] == len(data.data)
