# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil
import pytest
import torch

from models_genesis.transfer.results import VOLATILE
from models_genesis.transfer.runner import Options, Runner
from models_genesis.transfer.study import StudyError, load_study
from models_genesis.transfer.workers import WorkerError

ARMS = {
    "scratch": {"pretrained": "none"},
    "pretrained": {"pretrained": "weights.pt"},
    "permuted": {"pretrained": "weights.pt", "permute": True},
}


def run(path, out, **options):
    lines: list[str] = []
    outcome = Runner(load_study(path), Options(Path(out), **({"jobs": 0} | options)), lines.append)()
    return outcome, lines


def table(out):
    with (Path(out) / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]


def cases(out):
    return {path.parent.name: path.read_text() for path in sorted(Path(out).glob("runs/*/cases.csv"))}


def test_each_arm_takes_its_best_rate_and_all_take_the_common_one(make_study, tmp_path):
    outcome, lines = run(make_study(), tmp_path / "out")
    rows = table(tmp_path / "out")
    # 2 arms x (2 rates at 1 label count with 1 seed; 3 label counts x 2 seeds x 2 rates)
    assert (outcome.finished, outcome.left, outcome.failed, outcome.stopped) == (2 * (2 + 12), 0, (), False)
    assert {row["rate"] for row in rows if row["stage"] == "main"} == {"0.001", "0.01"}  # 0.01 is the fake's optimum
    assert len({row["run"] for row in rows}) == len(rows) == 28
    assert lines[-1].startswith("28 runs finished, 0 left")
    # the same again does nothing
    again, lines = run(make_study(), tmp_path / "out")
    assert again == outcome
    assert not any(line.startswith("[") for line in lines)


def test_arms_see_the_same_patients_and_take_equal_steps(make_study, tmp_path):
    run(make_study(rates={"common": 0.01}), tmp_path / "out", keep_weights=True)
    seen: dict[tuple[str, str], list] = {}
    for row in table(tmp_path / "out"):
        state = json.loads((tmp_path / "out" / "runs" / row["run"] / "model.pt").read_text())
        assert state["steps"] == 10
        assert len(state["patients"]) == int(row["patients"])
        seen.setdefault((row["labels"], row["seed"]), []).append(state["patients"])
    for both in seen.values():
        assert len(both) == 2
        assert both[0] == both[1]


def _child(path, out, log):
    """Do the study, and end without what the tests before this one left to be done at the end of the process."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with log.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        try:
            run(path, out)
        except BaseException:
            traceback.print_exc()
            sys.stdout.flush()
            os._exit(1)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start again without importing all again")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_moments_it_ends_with_the_same_table(make_study, tmp_path):
    path = make_study(arms=ARMS, labels=[2, 4], seeds=[0], overrides={"seconds": 0.02})
    begin = time.monotonic()
    outcome, _ = run(path, tmp_path / "whole")
    each = (time.monotonic() - begin) / outcome.finished
    generator, kills = random.Random(0), 0
    context = multiprocessing.get_context("fork")
    for _ in range(200):
        # by what is done, not by the clock, so that a machine that gets faster or slower does not matter
        goal = len(cases(tmp_path / "killed")) + generator.randrange(4)
        process = context.Process(target=_child, args=(path, tmp_path / "killed", tmp_path / "child.log"))
        process.start()
        while process.is_alive() and len(cases(tmp_path / "killed")) < goal:
            time.sleep(0.005)
        process.join(generator.uniform(0, each))  # somewhere in the next run
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        if (tmp_path / "killed" / "runs.csv").exists():
            table(tmp_path / "killed")  # whole at any time
    assert process.exitcode == 0, (tmp_path / "child.log").read_text()
    assert kills >= 4
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert cases(tmp_path / "killed") == cases(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "work").iterdir())


def test_failed_runs_are_counted_named_and_done_again_only_when_asked(make_study, tmp_path):
    arms = {"scratch": {"pretrained": "none"}, "broken": {"pretrained": "none", "overrides": {"fail": "raise"}}}
    changes = {"arms": arms, "primary": {"arm": "broken", "against": "scratch"}, "rates": {"common": 0.1}}
    path = make_study(labels=[2], **changes)
    outcome, lines = run(path, tmp_path / "out")
    assert outcome.failed == ("main-broken-n2-f0-s0-r0.1", "main-broken-n2-f0-s1-r0.1")
    assert any("the loss is not finite" in line for line in lines)
    rows = {row["run"]: row for row in table(tmp_path / "out")}
    assert [rows[name]["status"] for name in outcome.failed] == ["failed"] * 2
    assert "the loss is not finite" in rows[outcome.failed[0]]["error"]
    _, lines = run(path, tmp_path / "out")
    assert not any(line.startswith("[") for line in lines)
    outcome, lines = run(path, tmp_path / "out", retry=True)
    assert sum(line.startswith("[") for line in lines) == 2
    row = json.loads((tmp_path / "out" / "runs" / outcome.failed[0] / "row.json").read_text())
    assert row["earlier_errors"] == [row["error"]]


def test_a_rate_of_which_a_run_failed_is_not_chosen(make_study, tmp_path):
    path = make_study(labels=[2], seeds=[0], rates={"common": 0.001, "grid": [0.01]})
    run(path, tmp_path / "out", arms=("scratch",))
    name = "tune-scratch-n2-f0-s0-r0.01"
    file = tmp_path / "out" / "runs" / name / "row.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "failed", "error": "x", "score": None}))
    outcome, _ = run(path, tmp_path / "out", arms=("scratch",))
    # the best rate is now the common one, whose runs are done: nothing is left
    assert (outcome.left, outcome.failed) == (0, (name,))


def test_shards_part_the_runs_and_merge_by_copying(make_study, tmp_path):
    path = make_study(rates={"common": 0.01}, labels=[2, 4])
    run(path, tmp_path / "whole")
    names = []
    for number in (1, 2, 3):
        outcome, _ = run(path, tmp_path / "parts" / str(number), shard=(number, 3))
        names.append({row["run"] for row in table(tmp_path / "parts" / str(number))})
        assert outcome.finished == len(names[-1])
    assert sum(map(len, names)) == len(set.union(*names)) == 8
    merged = tmp_path / "merged"
    for number in (1, 2, 3):
        subprocess.run(["cp", "-r", f"{tmp_path}/parts/{number}/.", str(merged)], check=True)
    outcome, lines = run(path, merged)
    assert not any(line.startswith("[") for line in lines)
    assert table(merged) == table(tmp_path / "whole")


def test_time_that_is_up_stops_before_the_next_run(make_study, tmp_path):
    outcome, _ = run(make_study(), tmp_path / "out", minutes=0.0)
    assert (outcome.finished, outcome.stopped) == (0, True)
    outcome, _ = run(make_study(), tmp_path / "out", minutes=10.0)
    assert (outcome.left, outcome.stopped) == (0, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_no_failure_of_the_runs(make_study, tmp_path):
    with pytest.raises(WorkerError, match="--device cuda:0"):
        run(make_study(), tmp_path / "out", device="cuda:0")
    assert not list((tmp_path / "out").glob("runs/*"))


def test_another_study_is_not_mixed_in(make_study, tmp_path):
    changes = {"rates": {"common": 0.01}, "labels": [2]}
    run(make_study(**changes), tmp_path / "out")
    with pytest.raises(StudyError, match="other values of steps"):
        run(make_study(**changes, steps=20), tmp_path / "out", extend=True)
    with pytest.raises(StudyError, match="other values of primary"):
        run(make_study(**changes, primary={"arm": "scratch", "against": "pretrained"}), tmp_path / "out", extend=True)
    with pytest.raises(StudyError, match="--extend adds"):
        run(make_study(**changes, seeds=[0, 1, 2]), tmp_path / "out")
    with pytest.raises(StudyError, match="other values of seeds"):
        run(make_study(**changes, seeds=[0, 2]), tmp_path / "out", extend=True)
    outcome, _ = run(make_study(**changes, seeds=[0, 1, 2]), tmp_path / "out", extend=True)
    assert outcome.finished == 6
    versions = json.loads((tmp_path / "out" / "protocol.json").read_text())["versions"]
    assert [version["study"]["seeds"] for version in versions] == [[0, 1], [0, 1, 2]]


def test_weights_that_changed_are_not_mixed_in(make_study, tmp_path):
    path = make_study(rates={"common": 0.01}, labels=[2])
    run(path, tmp_path / "out")
    torch.save({"a.weight": torch.zeros(2, 3, 4)}, tmp_path / "weights.pt")
    with pytest.raises(StudyError, match="expected the weights that main-pretrained"):
        run(path, tmp_path / "out")
    (tmp_path / "weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights.pt \(arm pretrained\)"):
        run(path, tmp_path / "out")
    run(path, tmp_path / "out", arms=("scratch",))  # needs none


def test_weights_are_those_that_the_study_names_by_their_hash(make_study, tmp_path):
    study = make_study(rates={"common": 0.01}, labels=[2])
    weights = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    arms = {"scratch": {"pretrained": "none"}, "pretrained": {"pretrained": "weights.pt", "sha256": weights}}
    path = make_study(**json.loads(study.read_text()) | {"arms": arms})
    torch.save({"a.weight": torch.zeros(2, 3, 4)}, tmp_path / "weights.pt")
    with pytest.raises(StudyError, match=f"arms#pretrained#sha256: expected .*weights.pt with sha256 {weights}, found"):
        run(path, tmp_path / "out")
    assert not list((tmp_path / "out").glob("runs/*"))
    run(path, tmp_path / "out", arms=("scratch",))  # needs none


def test_workers_end_with_their_parent_and_may_die_themselves(make_study, tmp_path):
    """The command line is killed in the middle of a run; later a worker dies in one; all is counted in the end."""
    arms = {"scratch": {"pretrained": "none"}, "dies": {"pretrained": "none", "overrides": {"fail": "die"}}}
    changes = {"arms": arms, "primary": {"arm": "dies", "against": "scratch"}, "rates": {"common": 0.1}}
    path = make_study(seeds=[0], labels=[2], overrides={"seconds": 0.5}, **changes)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "models_genesis.transfer", "run", str(path), "--out", str(out)]
    with subprocess.Popen([*command, "--jobs", "1", "--arms", "scratch"], stdout=subprocess.PIPE, text=True) as process:
        while not list(out.glob("work/*")):
            assert process.poll() is None
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    outcome, lines = run(path, out, jobs=1)
    assert outcome.finished == 2
    assert outcome.failed == ("main-dies-n2-f0-s0-r0.1",)
    assert any("the worker process ended with exit code 7" in line for line in lines)
    assert not list(out.glob("work/*"))
