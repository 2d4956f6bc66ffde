# SPDX-License-Identifier: Apache-2.0
"""What a GPU does with the pretraining: its floors, a training step in many forms, deformations, and the whole bundle.

    python -m benchmarks.gpu [--quick] [--out results.json] [--parts floors forms profile sizes deform training]

- ``floors``: the bfloat16 matrix product and the copy bandwidth, on random numbers.
- ``forms``: one training step on a resident batch, in float32 and bfloat16, both memory layouts, with cuDNN's search
  for the fastest algorithm, fused AdamW, ``torch.compile`` and CUDA graphs.
- ``profile``: the operations of a step and of a deformation with the largest times on the device.
- ``sizes``: cubes a second, TFLOP/s and memory for three sizes of cubes and batches up to the end of the memory.
- ``deform``: milliseconds a batch, operation by operation and as a CUDA graph.
- ``training``: the bundle's own trainer on scans, for each place of the deformations, against the step alone.

Results are written after each row, so what was measured stays if a later part fails or time runs out; what failed is
named in them. Without a GPU, ``--quick`` runs the same code on the processor with small sizes.
"""

from __future__ import annotations

import gc
import itertools
import logging
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import set_determinism
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from models_genesis.datasets import write_phantom
from models_genesis.networks import GenesisUNet
from models_genesis.training import AutocastInferer, Precision, RestorationLoss, choose_precision
from models_genesis.transforms import BatchGenesisDeform

from .deformations import HOUNSFIELD, SHAPES
from .loader import bundle
from .measure import parse_arguments, print_machine, print_table, write_results
from .network import where_time_goes

PARTS = ("floors", "forms", "profile", "sizes", "deform", "training")
FEATURES = [64, 128, 256, 512]
BFLOAT16 = Precision(torch.bfloat16, channels_last=True)

Step = Callable[[], Any]


class Clock:
    """Times calls on a device; on the processor by the wall's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Step, rounds: int, calls: int = 1, warmup: int = 2) -> float:
        """Median over rounds of the seconds a call takes, the device's work included."""
        for _ in range(warmup):
            call()
        times = []
        for _ in range(rounds):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronize()
            times.append((time.perf_counter() - start) / calls)
        return statistics.median(times)


class Results:
    """Rows by part, written after each; a part that fails is noted and the next one goes on."""

    def __init__(self, path: Path | None, machine: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": machine, "failed": []}

    def add(self, part: str, row: dict[str, Any]) -> None:
        """Add a row and write all."""
        print(part, {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
        self.content.setdefault(part, []).append(row)
        self.write()

    def write(self) -> None:
        """Write what there is."""
        if self.path is not None:
            write_results(self.path, self.content)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Note an error instead of raising it."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.content["failed"].append({"what": what, "error": f"{type(error).__name__}: {str(error)[:500]}"})
            self.write()


def measure_floors(clock: Clock, size: int, megabytes: int) -> dict[str, Any]:
    """Operations a second of a bfloat16 matrix product, and bytes read and written a second of a copy."""
    device = clock.device
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    product = clock.seconds(partial(torch.mm, a, b), 5, 10)
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    copy = clock.seconds(partial(target.copy_, source), 5, 5)
    return {
        "matrix_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e9,
    }


def count_gflop(features: list[int], shape: tuple[int, ...]) -> float:
    """Operations of a training step on one cube, counted by torch without computing anything."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.rand(1, 1, *shape)
        RestorationLoss()(GenesisUNet(features=features)(images), images).backward()
    return counter.get_total_flops() / 1e9


def make_step(
    features: list[int],
    shape: tuple[int, ...],
    batch_size: int,
    device: torch.device,
    precision: Precision = BFLOAT16,
    fused: bool | None = None,
    compiled: str | None = None,
    graph: bool = False,
) -> Step:
    """A training step on a resident batch."""
    torch.manual_seed(0)
    network: nn.Module = precision.place(GenesisUNet(features=features), device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=fused, capturable=graph)
    run = network if compiled is None else torch.compile(network, mode=compiled)
    inferer, loss = AutocastInferer(precision), RestorationLoss()
    images, targets = torch.rand(2, batch_size, 1, *shape, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(images, run), targets).backward()
        optimizer.step()

    return record(step) if graph else step


def record(step: Step) -> Step:
    """Record a step as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def time_step(clock: Clock, gflop: float, batch_size: int, make: Callable[[], Step], rounds: int) -> dict[str, Any]:
    """Seconds, cubes and operations a second, and memory at the peak of a step."""
    cuda = clock.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step = make()
    step()
    clock.synchronize()
    first = time.perf_counter() - start
    seconds = clock.seconds(step, rounds, 3)
    return {
        "ms": 1e3 * seconds,
        "cubes_per_s": batch_size / seconds,
        "tflops": gflop * batch_size / seconds / 1e3,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "seconds_first": first,
    }


def set_search(search: bool) -> None:
    """Let cuDNN search for the fastest algorithms, or use reproducible ones as ``set_determinism`` does."""
    torch.backends.cudnn.benchmark = search
    torch.backends.cudnn.deterministic = not search


def compare_forms(
    clock: Clock, results: Results, features: list[int], shape: tuple[int, ...], quick: bool, compiled: bool
) -> None:
    """Time the forms of a step, that of ``torch.compile`` only if asked for, since it takes a minute to make."""
    cuda = clock.device.type == "cuda"
    gflop = count_gflop(features, shape)
    results.content["gflop_per_cube"] = gflop
    plain: dict[str, Any] = {"precision": Precision(), "search": False}
    forms: dict[str, dict[str, Any]] = {
        "float32, reproducible": plain,
        "bfloat16, contiguous, reproducible": {"precision": Precision(torch.bfloat16), "search": False},
        "bfloat16, channels last, reproducible": {"search": False},
        "bfloat16, channels last, search": {"search": True},
        "bfloat16, channels last, search, fused AdamW": {"search": True, "fused": True},
        "bfloat16, channels last, reproducible, fused AdamW": {"search": False, "fused": True},
    }
    if cuda:
        fused = {"search": False, "fused": True}
        forms |= {
            "bfloat16, channels last, reproducible, fused AdamW, CUDA graph": {**fused, "graph": True},
            "bfloat16, contiguous, search, fused AdamW": {
                "search": True, "fused": True, "precision": Precision(torch.bfloat16),
            },
        }  # fmt: skip
        if compiled:
            for mode in ("default", "reduce-overhead"):
                form = f"bfloat16, channels last, reproducible, fused AdamW, compiled ({mode})"
                forms[form] = {**fused, "compiled": mode}
    batch_size = 1 if quick else 6
    for name, form in forms.items():
        with results.attempt(f"forms: {name}"):
            arguments = dict(form)
            set_search(arguments.pop("search"))
            make = partial(make_step, features, shape, batch_size, clock.device, **arguments)
            row = time_step(clock, gflop, batch_size, make, 2 if quick else 10)
            results.add("forms", {"form": name, "features": features, "shape": shape, "batch_size": batch_size, **row})


def profile_calls(clock: Clock, results: Results, features: list[int], shape: tuple[int, ...], size: int) -> None:
    """Where the time of a step and of a deformation goes, and how many operations the device is given."""
    set_search(False)
    device = clock.device
    images = torch.randint(-1000, 1001, (size, 1, *shape), dtype=torch.int16, device=device)
    calls = {
        "step": make_step(features, shape, size, device, fused=True),
        "deformation": partial(BatchGenesisDeform(**HOUNSFIELD, device=device), images),
    }
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for name, call in calls.items():
        call()
        clock.synchronize()
        with profile(activities=activities) as run:
            call()
            clock.synchronize()
        rows = where_time_goes(run, device, 24)
        results.add("profile", {"what": name, "batch_size": size, "operations": rows})


def sweep_sizes(clock: Clock, results: Results, features: list[int], shapes: Any, quick: bool) -> None:
    """Time cubes of three sizes in batches of more and more cubes, as the bundle trains, until the memory ends."""
    set_search(False)
    for shape in shapes:
        gflop = count_gflop(features, shape)
        for batch_size in (1, 2) if quick else (1, 2, 6, 12, 24, 48, 96, 192, 288, 384):
            try:

                def make(shape: tuple[int, ...] = shape, batch_size: int = batch_size) -> Step:
                    return make_step(features, shape, batch_size, clock.device, fused=True)

                row = time_step(clock, gflop, batch_size, make, 2)
            except torch.OutOfMemoryError:
                results.add("sizes", {"shape": shape, "batch_size": batch_size, "out_of_memory": True})
                break
            results.add("sizes", {"shape": shape, "batch_size": batch_size, "gflop_per_cube": gflop, **row})


def time_deformations(clock: Clock, results: Results, shapes: Any, quick: bool) -> None:
    """Time the deformation of a batch, operation by operation and as a graph."""
    device = clock.device
    for shape in shapes:
        backends = ("triton", "torch") if device.type == "cuda" else ("torch",)
        for batch_size, backend in itertools.product((2,) if quick else (6, 64), backends):
            with results.attempt(f"deform: {shape}, batch {batch_size}, {backend}"):
                images = torch.randint(-1000, 1001, (batch_size, 1, *shape), dtype=torch.int16, device=device)
                deform = BatchGenesisDeform(**HOUNSFIELD, device=device, backend=backend)
                row: dict[str, Any] = {"shape": shape, "batch_size": batch_size, "backend": backend}
                row["ms"] = 1e3 * clock.seconds(partial(deform, images), 2 if quick else 10)
                if device.type == "cuda":
                    row["ms_graph"] = 1e3 * time_graph(clock, deform, images)
                results.add("deform", row)


def time_graph(clock: Clock, deform: BatchGenesisDeform, images: torch.Tensor) -> float:
    """Seconds of the deformation recorded as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(deform.generator)
    with torch.cuda.graph(graph):
        deform(images)
    return clock.seconds(graph.replay, 10)


class BusyMeter:
    """Share of the time in which a GPU computes, as its driver says, sampled in a thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.samples: list[int] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Sample while the block runs."""
        end = threading.Event()
        thread = threading.Thread(target=self._sample, args=(end,), daemon=True)
        if self.device.type == "cuda":
            thread.start()
        try:
            yield
        finally:
            end.set()
            if thread.is_alive():
                thread.join()

    def _sample(self, end: threading.Event) -> None:
        try:
            while not end.wait(0.1):
                self.samples.append(torch.cuda.utilization(self.device))
        except (ImportError, RuntimeError, ModuleNotFoundError) as error:
            print(f"the share of busy time cannot be read: {error}", flush=True)

    def share(self) -> float | None:
        """Mean of the samples, percent."""
        return statistics.mean(self.samples) if self.samples else None


def train_bundle(
    data: Path, device: torch.device, iterations: int, warmup: int, search: bool, **overrides: Any
) -> tuple[float, float | None]:
    """Seconds an iteration of the bundle's own trainer takes, after the first ones, and the GPU's busy share."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"output_dir": f"{folder}/eval", "ckpt_dir": f"{folder}/models"}
        parser = bundle(data, **{**paths, "device": str(device), "epochs": 1, "val_cubes_per_scan": 6, **overrides})
        scans = len(parser.get_parsed_content("train#data"))
        parser["cubes_per_scan"] = -(-iterations * parser["batch_size"] // scans)
        parser["device"] = device
        parser["train#run#cudnn_benchmark"] = search
        parser["train#dataset#progress"] = parser["validate#dataset#progress"] = False
        parser.parse(True)
        parser.get_parsed_content("initialize")
        trainer = parser.get_parsed_content("train#trainer")
        meter, times = BusyMeter(device), []

        def note(engine: Engine) -> None:
            times.append(time.perf_counter())

        def stop(engine: Engine) -> None:
            if len(times) >= iterations:
                engine.terminate()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
        with meter.watch():
            trainer.run()
    del trainer, parser
    gc.collect()  # what is left of a run on the GPU must not be freed in the next run's workers
    rest = times[warmup:]
    return (rest[-1] - rest[0]) / (len(rest) - 1), meter.share()


@dataclass(frozen=True)
class Training:
    """How the bundle trains.

    Args:
        deform_on: place of the deformations.
        num_workers: loader processes.
        batch_size: cubes in a batch.
        shape: voxels of a cube.
        search: whether cuDNN searches for its fastest algorithms.
        compiled: whether MONAI's trainer compiles the network.
    """

    deform_on: str
    num_workers: int
    batch_size: int
    shape: tuple[int, ...] = SHAPES[0]
    search: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        kind = ", ".join(name for name in ("search", "compiled") if getattr(self, name))
        return (
            f"{self.deform_on}, {self.num_workers} workers, batch {self.batch_size} of {self.shape}, {kind or 'plain'}"
        )


def trainings(quick: bool, compiled: bool) -> list[Training]:
    """The trainings to time, in order of worth."""
    if quick:
        return [Training(place, workers, 2, (32, 32, 16)) for place, workers in (("step", 4), ("cpu", 4), ("step", 0))]
    plans = [Training("step", 4, 6), Training("cpu", 4, 6), Training("device", 0, 6)]
    if compiled:
        plans.append(Training("step", 4, 6, compiled=True))
    plans += [Training(place, 4, 6, shape) for shape in SHAPES[1:] for place in ("step", "cpu")]
    return [*plans, Training("step", 4, 24), Training("step", 0, 6), Training("step", 4, 24, search=True)]


def time_training(
    clock: Clock, results: Results, data: Path, cache: Path, features: list[int], plans: list[Training]
) -> None:
    """The bundle's trainer for each place of the deformations, against the step alone at the same settings."""
    precision = choose_precision(clock.device)
    for plan in plans:
        with results.attempt(f"training: {plan}"):
            set_search(plan.search)
            fused, form = clock.device.type == "cuda" or None, "default" if plan.compiled else None
            step = make_step(features, plan.shape, plan.batch_size, clock.device, precision, fused, form)
            alone = clock.seconds(step, 10 if plan.shape == SHAPES[0] else 3)
            del step
            given: dict[str, Any] = {"deform_on": plan.deform_on, "num_workers": plan.num_workers}
            given |= {"batch_size": plan.batch_size, "features": features, "cube_size": list(plan.shape)}
            given |= {"train#dataset#cache_gib": 0, "cache_dir": f"{cache}", "train#trainer#compile": plan.compiled}
            on_cpu, small = clock.device.type == "cpu", plan.shape == SHAPES[0]
            iterations, warmup = (6, 2) if on_cpu else (100, 30) if small else (25, 8)
            seconds, busy = train_bundle(data, clock.device, iterations, warmup, plan.search, **given)
            row = {**asdict(plan), "ms": 1e3 * seconds, "cubes_per_s": plan.batch_size / seconds}
            row |= {"ms_step_alone": 1e3 * alone, "percent_of_step": 100 * alone / seconds, "busy_percent": busy}
            results.add("training", row)


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments(
        "Pretraining on a GPU.",
        ("--parts", {"nargs": "+", "default": list(PARTS), "choices": PARTS, "help": "what to measure"}),
        ("--features", {"type": int, "nargs": "+", "help": "channels of the network's levels, for the forms"}),
        ("--compile", {"action": "store_true", "help": "a compiled step among the forms"}),
        ("--data", {"type": Path, "help": "data list of scans to train on (default: phantoms)"}),
    )
    logging.basicConfig(level=logging.WARNING)
    quick = arguments.quick
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not quick:
        raise SystemExit("this machine has no CUDA device; --quick runs small sizes on the processor")
    clock, results = Clock(device), Results(arguments.out, print_machine())
    set_determinism(seed=0)
    features, shapes = ([4, 8, 16], [(32, 32, 16)]) if quick else (FEATURES, SHAPES)
    calls: dict[str, Step] = {
        "floors": lambda: results.add("floors", measure_floors(clock, *((256, 4) if quick else (8192, 2048)))),
        "forms": lambda: compare_forms(
            clock, results, arguments.features or features, shapes[0], quick, arguments.compile
        ),
        "profile": lambda: profile_calls(clock, results, features, shapes[0], 2 if quick else 6),
        "sizes": lambda: sweep_sizes(clock, results, features, shapes, quick),
        "deform": lambda: time_deformations(clock, results, shapes, quick),
    }
    with tempfile.TemporaryDirectory() as folder:

        def training() -> None:
            shape = (72, 64, 48) if quick else (160, 144, 136)  # making larger ones takes a minute
            data = arguments.data or write_phantom(Path(folder) / "scans", 4, region="chest", shape=shape)
            plans = trainings(quick, arguments.compile)
            time_training(clock, results, data, Path(folder) / "cache", features, plans)

        calls["training"] = training
        for part in arguments.parts:
            start = time.perf_counter()
            with results.attempt(part):
                calls[part]()
            results.content.setdefault("seconds", {})[part] = time.perf_counter() - start
    results.write()
    for part in arguments.parts:
        rows = results.content.get(part, [])
        if rows:
            print_table(part, list(rows[0]), [[row.get(name) for name in rows[0]] for row in rows])
    for failure in results.content["failed"]:
        print(f"failed: {failure['what']}: {failure['error']}")
    if results.content["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
