# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ignite.engine import Events


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
