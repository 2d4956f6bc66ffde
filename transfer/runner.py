# SPDX-License-Identifier: Apache-2.0
"""Does a study's runs, from wherever it stands, until all are done or the time is up."""

from __future__ import annotations

import datetime
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..networks.weight_container import sha256_of
from .plan import Run, of_shard, to_do
from .results import Protocol, Results, now
from .settings import Settings, weight_path
from .study import Study, StudyError
from .subsets import Cohort, choose_subset, read_cohort
from .workers import READY, Job, Setup, Worker, WorkerError, make_execution, wait_for

POLL_SECONDS = 60.0


@dataclass(frozen=True)
class Options:
    """How a study is run.

    Attributes:
        out: folder of the results.
        jobs: number of worker processes; 0 does all runs in this process.
        device: device of the runs, such as ``"cuda:0"``; None leaves it to the bundle.
        shard: number of this shard from 1, and number of shards.
        minutes: when to stop; None for never.
        threads: threads of each worker.
        arms: only these arms; None for all.
        extend: whether the study may have got more arms, label counts and seeds since it was begun.
        retry: whether runs that failed are done again.
        keep_weights: whether each run keeps its ``model.pt``.
        started: when the minutes began, by ``time.monotonic``; None for when the runner is made.
    """

    out: Path
    jobs: int = 1
    device: str | None = None
    shard: tuple[int, int] = (1, 1)
    minutes: float | None = None
    threads: int = 1
    arms: tuple[str, ...] | None = None
    extend: bool = False
    retry: bool = False
    keep_weights: bool = False
    started: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How far a study has come.

    Attributes:
        finished: runs that are done, failed ones among them.
        failed: names of those that failed.
        left: runs that are left, those of other shards among them.
        stopped: whether the time was up before all was done.
    """

    finished: int
    failed: tuple[str, ...]
    left: int
    stopped: bool


class Runner:
    """Does the runs of a study.

    Args:
        study: the study.
        options: how.
        say: where progress goes, a line each.

    Raises:
        FileNotFoundError: when the data list, a weight file or a config is missing.
        StudyError: when the study does not fit its bundle, its data or the results that are there.
    """

    def __init__(self, study: Study, options: Options, say: Callable[[str], None] = print) -> None:
        self.study = study
        self.options = options
        self.say = say
        self.begin = time.monotonic() if options.started is None else options.started
        self.cohort: Cohort = read_cohort(study)
        self.settings = Settings(study, options.device)
        self.results = Results(options.out)
        self.rows = self.results.rows()
        self.hashes = self._weights()
        self._widths()
        Protocol(self.results).fix(study, options.extend)
        self.earlier: dict[str, tuple[str, ...]] = {}
        """Errors of runs that are to be done again; their old rows stay on disk until then."""
        if options.retry:
            failed = {name: row for name, row in self.rows.items() if row["status"] != "done"}
            self.earlier = {name: (*row["earlier_errors"], row["error"]) for name, row in failed.items()}
            self._read_new()
        self.results.sweep()
        self.seconds: dict[Any, list[float]] = defaultdict(list)
        self.done_here = 0

    def _weights(self) -> dict[str, str | None]:
        """Hash the weight files, and refuse missing ones, and those that the study or its finished runs do not mean."""
        arms = self.study.arms if self.options.arms is None else self.options.arms
        if unknown := [arm for arm in arms if arm not in self.study.arms]:
            raise StudyError(f"--arms: expected some of {', '.join(self.study.arms)}, found {', '.join(unknown)}")
        paths = {arm: weight_path(self.study, arm) for arm in arms}
        if missing := [f"{path} (arm {arm})" for arm, path in paths.items() if path is not None and not path.is_file()]:
            raise FileNotFoundError(
                f"{self.study.path}: expected weight files, found none at:\n  " + "\n  ".join(missing)
            )
        hashes = {arm: None if path is None else sha256_of(path) for arm, path in paths.items()}
        for arm, found in hashes.items():
            expected = self.study.arms[arm].sha256
            if expected not in (None, found):
                raise StudyError(
                    f"{self.study.path}: arms#{arm}#sha256: expected {paths[arm]} with sha256 {expected}, found {found}"
                )
        for name, row in self.rows.items():
            arm = str(row["arm"])
            if arm in hashes and row["weights_sha256"] != hashes[arm]:
                raise StudyError(
                    f"{paths[arm]}: expected the weights that {name} started from (sha256 "
                    f"{str(row['weights_sha256'])[:12]}), found {str(hashes[arm])[:12]}: name another arm or --out"
                )
        return hashes

    def _widths(self) -> None:
        """Refuse arms that would train networks of different width without a word of the study."""
        from .widths import check_widths  # imports what trains

        if untold := check_widths(self.study):
            self.say(
                f"{', '.join(untold)}: the weights are not here, so that the width of their network is not compared; "
                '"overrides": {"features": [...]} in the study gives all arms the same'
            )

    def _read_new(self) -> None:
        """Read what other processes have finished; runs that are to be done again do not count."""
        self.results.add_new(self.rows)
        for name in self.earlier:
            self.rows.pop(name, None)

    def __call__(self) -> Outcome:
        """Do all runs that can be done.

        Returns:
            How far the study has come.
        """
        self._announce()
        stopped = self._in_process() if self.options.jobs == 0 else self._in_workers()
        self._read_new()
        self.results.write_table(self.rows)
        todo = to_do(self.study, self.rows, self.options.arms)
        failed = tuple(sorted(name for name, row in self.rows.items() if row["status"] != "done"))
        outcome = Outcome(len(self.rows), failed, len(todo.runs) + todo.waiting, stopped)
        self._summarise(outcome, todo.waiting)
        return outcome

    def _announce(self) -> None:
        todo = to_do(self.study, self.rows, self.options.arms)
        own = len(list(of_shard(todo.runs, self.options.shard)))
        self.say(
            f"{self.study.name}: {todo.total} runs, {todo.total - len(todo.runs) - todo.waiting} done before,"
            f" {own} to do now"
            + (f", {todo.waiting} when learning rates are chosen" if todo.waiting else "")
            + f"; results in {self.options.out}"
        )

    def _next(self, busy: Sequence[str] = ()) -> Run | None:
        """Give the next run that ends before the time is up."""
        self._read_new()
        todo = to_do(self.study, self.rows, self.options.arms)
        left = self._seconds_left()
        for run in of_shard(todo.runs, self.options.shard):
            if run.name not in busy and self._expected(run) < left:
                return run
        return None

    def _seconds_left(self) -> float:
        if self.options.minutes is None:
            return float("inf")
        return self.begin + 60 * self.options.minutes - time.monotonic()

    def _expected(self, run: Run) -> float:
        """Seconds that a run will take: the longest of its kind so far, 0 where there was none."""
        return 1.1 * max(self.seconds.get((run.stage, run.labels), [0.0]))

    def _job(self, run: Run) -> Job:
        return Job(run, self.hashes[run.arm], self.earlier.get(run.name, ()))

    def _in_process(self) -> bool:
        execution = make_execution(self._setup())
        while (run := self._next()) is not None:
            job = self._job(run)
            self._finished(run, execution(run, job.weights_sha256, job.earlier))
        return self._own_left() > 0

    def _own_left(self) -> int:
        return len(list(of_shard(to_do(self.study, self.rows, self.options.arms).runs, self.options.shard)))

    def _setup(self) -> Setup:
        options = self.options
        folders = str(self.study.path), str(self.study.dataset_dir), str(options.out)
        return Setup(*folders, options.device, options.keep_weights, options.threads)

    def _in_workers(self) -> bool:
        workers: list[Worker] = []
        try:
            while True:
                self._fill(workers)
                if not any(worker.job for worker in workers):
                    return self._own_left() > 0
                left = self._seconds_left()
                if left <= 0:
                    self.say(
                        f"time is up: {sum(worker.job is not None for worker in workers)} unfinished runs are dropped"
                    )
                    return True
                for worker in wait_for(workers, min(left, POLL_SECONDS)):
                    self._hear(worker, workers)
        finally:
            for worker in workers:
                worker.stop()

    def _fill(self, workers: list[Worker]) -> None:
        """Give a run to each worker that has none, and start as many workers as there are runs for."""
        while True:
            busy = [worker.job.run.name for worker in workers if worker.job]
            idle = next((worker for worker in workers if worker.job is None), None)
            if idle is None and len(workers) >= self.options.jobs:
                return
            if (run := self._next(busy)) is None:
                return
            if idle is None:
                idle = Worker(self._setup())
                workers.append(idle)
            idle.give(self._job(run))

    def _hear(self, worker: Worker, workers: list[Worker]) -> None:
        """Take a worker's row, or note that it has ended."""
        try:
            row = worker.connection.recv() if worker.connection.poll() else None
            ended = row is None and not worker.process.is_alive() and not worker.connection.poll()
        except (EOFError, ConnectionError):
            row, ended = None, True
        if row is None and not ended:
            return
        if not worker.ready:
            if row != READY:
                raise WorkerError(f"a worker could not start: {row or f'exit code {worker.process.exitcode}'}")
            worker.ready = True
            return
        job = worker.job
        assert job is not None
        worker.job = None
        if row is None:
            worker.process.join()
            workers.remove(worker)
            worker.connection.close()
            row = self._lost(job, f"the worker process ended with exit code {worker.process.exitcode}")
        self._finished(job.run, row)

    def _lost(self, job: Job, error: str) -> dict[str, Any]:
        """Write the row of a run whose process ended, unless it had finished the run before."""
        from .workflow import begin_row

        rows = self.results.rows()
        if rows.get(job.run.name, {}).get("status") == "done":
            return rows[job.run.name]
        run = job.run
        subset = choose_subset(self.study, self.cohort, run.labels, run.fold, run.seed, run.stage == "tune")
        row = begin_row(run, self.study, subset.patients, job.weights_sha256, job.earlier)
        row |= {"error": error, "finished": now(), **self.settings.commands(run, subset)}
        self.results.finish(run, self.results.begin(run), row)
        self.results.sweep()
        return row

    def _finished(self, run: Run, row: dict[str, Any]) -> None:
        self.rows[run.name] = row
        self.earlier.pop(run.name, None)
        self.done_here += 1
        if row.get("seconds") is not None:
            self.seconds[run.stage, run.labels].append(float(row["seconds"]))
        self.results.write_table(self.rows)
        todo = to_do(self.study, self.rows, self.options.arms)
        result = f"{self.study.score} {row['score']:.4f}" if row["status"] == "done" else f"FAILED: {row['error']}"
        self.say(
            f"[{todo.total - len(todo.runs) - todo.waiting}/{todo.total}] {run.name}: {result}"
            f" ({float(row.get('seconds') or 0):.0f} s), {self._time_left(len(todo.runs) + todo.waiting)} left"
        )

    def _time_left(self, runs: int) -> datetime.timedelta:
        each = (time.monotonic() - self.begin) / self.done_here
        return datetime.timedelta(seconds=round(each * runs / self.options.shard[1]))

    def _summarise(self, outcome: Outcome, waiting: int) -> None:
        self.say(f"{outcome.finished} runs finished, {outcome.left} left; table: {self.results.folder / 'runs.csv'}")
        if waiting:
            self.say(f"{waiting} of them wait for runs that choose a learning rate")
        if outcome.failed:
            self.say(f"{len(outcome.failed)} runs failed (--retry does them again):")
            for name in outcome.failed:
                self.say(f"  {name}: {self.rows[name]['error']}")
