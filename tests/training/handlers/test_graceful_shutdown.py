# SPDX-License-Identifier: Apache-2.0
"""An interruption is told with its advice and comes out, whatever other handlers do with errors."""

from __future__ import annotations

import logging
import signal

import pytest
from ignite.engine import Engine, Events

from models_genesis.training import GracefulShutdown


class Raising:
    """Raises the error again, as MONAI's ``StatsHandler`` does."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EXCEPTION_RAISED, self)

    def __call__(self, engine: Engine, error: BaseException) -> None:
        self.errors.append(error)
        raise error


@pytest.mark.parametrize("others", [(), ("before",), ("after",), ("before", "after")], ids=" and ".join)
def test_the_advice_is_given_and_the_error_comes_out(others, caplog):
    def stop(engine, batch):
        raise SystemExit(143)

    engine, raising = Engine(stop), Raising()
    before = signal.getsignal(signal.SIGTERM)
    if "before" in others:
        raising.attach(engine)
    GracefulShutdown("go on so").attach(engine)
    if "after" in others:
        raising.attach(engine)
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit, match="143"):
        engine.run([0])
    assert caplog.text.count("go on so") == 1
    assert len(raising.errors) == bool(others)  # the first of them raises, and ends the handling
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_before_the_start_comes_out(caplog):
    engine = Engine(lambda engine, batch: None)

    def refuse(engine):
        raise ValueError("not like this")

    engine.add_event_handler(Events.STARTED, refuse)
    GracefulShutdown().attach(engine)
    with pytest.raises(ValueError, match="not like this"):
        engine.run([0])
