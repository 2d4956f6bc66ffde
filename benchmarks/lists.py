# SPDX-License-Identifier: Apache-2.0
"""Long lists: ``python -m benchmarks.lists [--quick] [--folder DIR]``.

What a data list of 20,000 scans and a table of 754,975 candidates over 888 scans (the size of LUNA16's
``candidates_V2.csv``) take before the first cube is cut: time and memory of each step that the bundles run, and what
they add to each process of a loader. Series and places are made up. Scans are eight small phantoms, each hard-linked
to many paths, and so are their prepared files: each path is checked, opened and noted by itself, but what is read lies
in the system's cache. Each step runs in a process of its own, forked from one that has imported everything.
"""

from __future__ import annotations

import csv
import gc
import json
import logging
import multiprocessing
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401 - so that no step imports it
import tensorstore  # noqa: F401

from models_genesis.datasets import (
    CandidateDataset,
    CubeDataset,
    EpochSampler,
    PredictionStore,
    Preparation,
    load_candidates,
    load_datalist,
    prepare_store,
    read_candidates,
    subsample_negatives,
    write_phantom,
    write_probabilities,
)
from models_genesis.datasets.__main__ import main as run_command
from models_genesis.datasets.io.scan_header import read_scan_header
from models_genesis.datasets.loading.mapped_scans import preprocessing_key, scan_key
from models_genesis.datasets.loading.prepare_scan import PrepareScan
from models_genesis.datasets.store.location import Location
from models_genesis.datasets.store.manifest import Store, name_of_datalist
from models_genesis.transforms import RandTissueCubed

from .measure import parse_arguments, print_machine, print_table, write_results

SPLITS = ("training", "validation")
COSTS = ("seconds", "processor_seconds", "peak_mib", "kept_mib")
WORKER_COSTS = ("indices", "pickled_mib", "at_start_mib", "after_epoch_mib")


@dataclass(frozen=True)
class Sizes:
    """How long the lists are, and how large the phantoms and cubes."""

    scans: int = 20_000
    rows: int = 754_975
    series: int = 888
    positives: int = 1_557
    shape: tuple[int, int, int] = (96, 88, 64)
    cube_size: tuple[int, int, int] = (64, 64, 32)
    rounds: int = 3


QUICK = Sizes(160, 3_000, 12, 40, (40, 36, 32), (16, 16, 16), 1)


def memory(name: str) -> float:
    """Read a figure of this process in MiB: ``VmRSS``, ``VmHWM``, or ``Private`` for what it shares with nobody."""
    file = "/proc/self/smaps_rollup" if name == "Private" else "/proc/self/status"
    lines = [line.split() for line in Path(file).read_text().splitlines() if line.startswith(name)]
    return sum(int(line[1]) for line in lines) / 1024


def in_child(work: Callable[..., Any], *arguments: Any, method: str = "fork") -> Any:
    """Run a function in a process of its own and give what it returns."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        kind, result = ours.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}: the process died") from None
    finally:
        process.join()
    if kind == "error":
        raise result
    return result


def _send(connection: Any, work: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        connection.send(("result", work(*arguments)))
    except Exception as error:
        connection.send(("error", error))


def cost_of(work: Callable[[], Any]) -> dict[str, float]:
    """Measure a call in this process: seconds, and memory beyond what was there before."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest memory so far
    before, wall, processor = memory("VmRSS"), time.perf_counter(), time.process_time()
    result = work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = memory("VmHWM")
    gc.collect()
    costs = (wall, processor, peak - before, memory("VmRSS") - before)
    del result
    return dict(zip(COSTS, costs, strict=True))


def link_scans(folder: Path, names: Sequence[str], eight: Sequence[Path]) -> None:
    """Give scans other names."""
    folder.mkdir()
    for number, name in enumerate(names):
        os.link(eight[number % len(eight)], folder / f"{name}.nii.gz")


def link_prepared(cache: Path, entries: Sequence[dict[str, Any]], settings: Any) -> None:
    """Give each scan the files that were prepared for the same phantom, as if it had been prepared itself."""
    first: dict[int, list[Path]] = {}
    for entry in entries:
        file = Path(entry["image"]).stat().st_ino
        key = scan_key(entry, settings)
        if file not in first:
            first[file] = sorted(cache.glob(f"{key}.*"))
        for path in first[file]:
            target = cache / f"{key}.{path.name.split('.', 1)[1]}"
            if not target.exists():
                os.link(path, target)


class Lists:
    """The files, and the steps that read them.

    Args:
        folder: where everything is written.
        sizes: how much.
    """

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder, self.sizes = folder, sizes
        self.preparation = Preparation(cube_size=sizes.cube_size)
        self.scans, self.candidates = folder / "scans", folder / "candidates"
        self.datalist, self.store = folder / "datalist.json", str(folder / "store")
        self.table, self.candidate_list = folder / "candidates.csv", self.candidates / "datalist.json"

    def write(self) -> None:
        """Write scans, data list, table, what is prepared of the scans, and predictions."""
        written = write_phantom(self.folder / "eight", 8, region="chest", shape=self.sizes.shape)
        eight = [Path(entry["image"]) for split in SPLITS for entry in load_datalist(written, key=split)]
        names = [f"patient{number:05d}" for number in range(self.sizes.scans)]
        link_scans(self.scans, names, eight)
        entries = [{"image": f"scans/{name}.nii.gz", "patient": name} for name in names]
        cut = self.sizes.scans * 4 // 5
        self.datalist.write_text(json.dumps({"training": entries[:cut], "validation": entries[cut:]}, indent=2))
        series = self._write_table(eight)
        link_scans(self.candidates, series, eight)
        self.command("candidates", self.candidates, self.candidate_list, "--candidates", str(self.table))
        self._prepare()
        self._write_store(written)
        with self.predictions() as kept:
            rows = np.arange(len(kept.table))
            kept.add(rows.tolist(), np.linspace(-4, 4, len(rows)).tolist())

    def _write_table(self, eight: Sequence[Path]) -> list[str]:
        """Write the table, with each place inside its scan."""
        rng = np.random.default_rng(0)
        headers = [read_scan_header(str(path)) for path in eight]
        numbers = rng.integers(10**17, 10**18, (self.sizes.series, 2))
        series = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{first}{last}" for first, last in numbers.tolist()]
        label = np.zeros(self.sizes.rows, int)
        label[rng.choice(len(label), self.sizes.positives, replace=False)] = 1
        scan = np.sort(rng.integers(0, len(series), len(label)))
        world = np.empty((len(label), 3))
        for number, header in enumerate(headers):
            rows = np.flatnonzero(scan % len(headers) == number)
            voxels = rng.random((len(rows), 3)) * (np.array(header.shape) - 1)
            world[rows] = (voxels @ header.affine[:3, :3].T + header.affine[:3, 3]) * (-1, -1, 1)
        with self.table.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("seriesuid", "coordX", "coordY", "coordZ", "class"))
            columns = (scan.tolist(), world.round(2).tolist(), label.tolist())
            writer.writerows((series[number], *place, kind) for number, place, kind in zip(*columns, strict=True))
        return series

    def _prepare(self) -> None:
        """Prepare eight scans of each kind, and link what was made of them to the others."""
        listed = [entry for split in SPLITS for entry in load_datalist(self.datalist, key=split)]
        self.cubes(listed[:8])
        link_prepared(self.folder / "cache", listed, preprocessing_key(self._steps(True)))
        data = [load_candidates(self.candidate_list, key=split).data for split in SPLITS]
        first = [*data[0], *data[1]]
        settings = preprocessing_key(self._steps(False))
        one_of_each = {Path(entry["image"]).stat().st_ino: entry for entry in first}
        CubeDataset(
            list(one_of_each.values()), self._steps(False), [_nothing], cache_gib=0,
            cache_dir=self.folder / "cache", progress=False,
        )  # fmt: skip
        link_prepared(self.folder / "cache", [*one_of_each.values(), *first], settings)

    def _write_store(self, eight: Path) -> None:
        """Prepare eight scans into a store, and write the manifest of a list in which they have many names."""
        rows = prepare_store(eight, self.store, preparation=self.preparation, progress=False)
        name, many = name_of_datalist(self.datalist), []
        for split in SPLITS:
            for number, entry in enumerate(load_datalist(self.datalist, key=split)):
                source, unlike = entry["image"], f"{len(many):064x}"
                row = replace(rows[len(many) % len(rows)], hash=unlike, sha256=unlike, entries=self.sizes.scans)
                row = replace(row, datalist=name, split=split, number=number, source=source)
                many.append(replace(row, patient=entry["patient"], entry=json.dumps(entry)))
        Store(Location(self.store)).write_manifest(many, 0, 1)

    def _steps(self, starts: bool) -> Any:
        steps: list[Any] = [*self.preparation.steps(), *([self.preparation.windows()] if starts else [])]
        return PrepareScan(steps, "image", "starts", "raise").preprocessing

    def command(self, name: str, root: Path, out: Path, *options: str) -> None:
        """Run ``python -m models_genesis.datasets NAME`` in this process."""
        with (self.folder / "printed.txt").open("w") as stream, redirect_stdout(stream):
            if code := run_command([name, "--root", str(root), "--out", str(out), *options]):
                raise RuntimeError(f"{name}: expected exit code 0, found {code}")

    def listed(self) -> list[list[dict[str, Any]]]:
        """Read both splits of the data list, as a pretraining does."""
        return [load_datalist(self.datalist, key=split) for split in SPLITS]

    def cubes(self, data: Sequence[dict[str, Any]] | None = None) -> CubeDataset:
        """Make the training set of all scans, which are prepared."""
        if data is None:
            data = [entry for split in self.listed() for entry in split]
        return CubeDataset(
            data, self._steps(True), [RandTissueCubed("image", self.sizes.cube_size)], cubes_per_scan=1, cache_gib=0,
            cache_dir=self.folder / "cache", progress=False,
        )  # fmt: skip

    def of_store(self) -> list[list[dict[str, Any]]]:
        """Read both splits of the list in the store."""
        return [load_datalist(self.datalist, key=split, store=self.store) for split in SPLITS]

    def stored_cubes(self) -> CubeDataset:
        """Make the training set of all scans of the store."""
        data = [entry for split in self.of_store() for entry in split]
        return CubeDataset(
            data, self._steps(True), [RandTissueCubed("image", self.sizes.cube_size)], cubes_per_scan=1, cache_gib=0,
            progress=False, store=self.store,
        )  # fmt: skip

    def candidate_cubes(self) -> CandidateDataset:
        """Make the training set of candidates, whose scans are prepared."""
        return CandidateDataset(
            load_candidates(self.candidate_list), self._steps(False), [_nothing], cache_gib=0,
            cache_dir=self.folder / "cache", progress=False,
        )  # fmt: skip

    def predictions(self) -> PredictionStore:
        """Open the predictions of all candidates, as an evaluation does that goes on."""
        return PredictionStore(self.folder / "predictions.txt", read_candidates(self.table))

    def all_steps(self) -> dict[str, Callable[[], Any]]:
        """Name the steps that are measured."""
        out = self.folder / "out"

        def probabilities() -> int:
            table = read_candidates(self.table)
            return write_probabilities(out / "scored.csv", table, np.linspace(0, 1, len(table)))

        return {
            "`load_datalist`, both splits of a data list": self.listed,
            "`python -m models_genesis.datasets folder`": lambda: self.command(
                "folder", self.scans, out / "a.json", "--min-size", ",".join(map(str, self.sizes.cube_size))
            ),
            "data list and `CubeDataset`, scans prepared before": self.cubes,
            "`load_datalist` of a store, both splits": self.of_store,
            "the same and `CubeDataset` from the store": self.stored_cubes,
            "`read_candidates`": lambda: read_candidates(self.table),
            "`load_candidates`, training": lambda: load_candidates(self.candidate_list),
            "`load_candidates` and `subsample_negatives`, validation": lambda: subsample_negatives(
                load_candidates(self.candidate_list, key="validation"), 10.0
            ),
            "`load_candidates` and `CandidateDataset`, scans prepared before": self.candidate_cubes,
            "`read_candidates` and `PredictionStore`, all rows scored": self.predictions,
            "`read_candidates` and `write_probabilities`": probabilities,
            "`python -m models_genesis.datasets candidates`": lambda: self.command(
                "candidates", self.candidates, out / "b.json", "--candidates", str(self.table)
            ),
        }

    def training_sets(self, method: str) -> dict[str, Callable[[], Any]]:
        """Name the data sets that a loader's processes may hold; those that read a store are not forked."""
        made = {"`CubeDataset`": self.cubes, "`CandidateDataset`": self.candidate_cubes}
        return made if method == "fork" else {"`CubeDataset` from the store": self.stored_cubes, **made}


def _nothing(item: Any) -> Any:
    return item


def private_after_epoch(dataset: Any) -> tuple[float, float, int]:
    """Be a loader's process: go through an epoch's indices up to where voxels would be read.

    Returns:
        MiB that this process shares with nobody at its start, and after the epoch and a garbage collection, which
        touches every object; and the number of indices.
    """
    before, count = memory("Private"), 0
    if dataset is not None:
        for index in EpochSampler(dataset, seed=0):
            dataset._item(*divmod(index, len(dataset)))
            count += 1
    gc.collect()
    return before, memory("Private"), count


def worker_costs(make: Callable[[], Any], method: str, started: float, bare: float) -> dict[str, float]:
    """Measure what a data set adds to a loader's process, of which one without takes ``started`` and ``bare`` MiB."""
    dataset = make()
    with_data, after, count = in_child(private_after_epoch, dataset, method=method)
    costs = (count, len(pickle.dumps(dataset)) / 2**20, with_data - started, after - bare)
    return dict(zip(WORKER_COSTS, costs, strict=True))


def medians(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Give the median of each figure."""
    return {name: statistics.median_low([turn[name] for turn in turns]) for name in turns[0]}


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "Long data lists and candidate tables.",
        ("--folder", {"type": Path, "help": "where to write (default: the system's folder for temporary files)"}),
        ("--rounds", {"type": int, "help": "how often each step runs (3; 1 with --quick)"}),
    )
    logging.disable(logging.WARNING)
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.rounds:
        sizes = replace(sizes, rounds=arguments.rounds)
    Preparation().steps()  # imports readers, which is no part of a step
    results: dict[str, Any] = {"machine": print_machine(), "sizes": vars(sizes)}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        lists = Lists(Path(name), sizes)
        in_child(lists.write)
        turns: dict[str, list[dict[str, float]]] = {}
        for _ in range(sizes.rounds):
            for step, work in lists.all_steps().items():
                turns.setdefault(step, []).append(in_child(cost_of, work))
                print(f"{step}: {turns[step][-1]['seconds']:.3g} s", flush=True)
        results["steps"] = {step: medians(costs) for step, costs in turns.items()}
        results["workers"] = {}
        for method in ("fork", "spawn"):
            started, bare, _ = in_child(private_after_epoch, None, method=method)
            for step, make in lists.training_sets(method).items():
                costs = [in_child(worker_costs, make, method, started, bare) for _ in range(sizes.rounds)]
                results["workers"][f"{step}, {method}"] = medians(costs)
    print_table(
        f"{sizes.scans:,} scans; {sizes.rows:,} candidates of {sizes.series} scans; medians of {sizes.rounds}",
        ("step", "s by the clock", "s of a core", "MiB at most", "MiB kept"),
        [(step, *(costs[cost] for cost in COSTS)) for step, costs in results["steps"].items()],
    )
    print_table(
        "what a data set adds to each process of a loader",
        ("data set, how the process starts", "indices", "MiB pickled", "MiB at its start", "MiB after an epoch"),
        [(name, *(costs[cost] for cost in WORKER_COSTS)) for name, costs in results["workers"].items()],
    )
    write_results(arguments.out, results)


if __name__ == "__main__":
    sys.exit(main())
