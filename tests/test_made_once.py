# SPDX-License-Identifier: Apache-2.0
"""What several test processes need is made by one of them, and whole."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest


def test_a_folder_is_made_by_one_process_and_waited_for_by_the_others(made_once, tmp_path):
    def fill(folder: Path) -> None:
        with (tmp_path / "filled").open("a") as file:
            file.write("once\n")
        (folder / "first").touch()
        time.sleep(0.3)  # the others are here by now
        (folder / "last").touch()

    def need() -> None:
        assert {path.name for path in made_once("of_three", fill).iterdir()} == {"first", "last"}

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=need) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "filled").read_text() == "once\n"
    need()


def test_what_was_begun_and_failed_is_made_anew(made_once):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once("failing", fail)
    folder = made_once("failing", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
