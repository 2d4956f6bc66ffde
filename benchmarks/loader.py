# SPDX-License-Identifier: Apache-2.0
"""What the loader of the pretraining bundle delivers, and whether training ever waits for it.

    python -m benchmarks.loader [--quick] [--out results.json] [--features 64 128 256 512] [--batch-size 6] [--steps 4]

The bundle's own configuration on phantom scans: preparing them, cutting cubes, the loader alone with worker processes
and threads, the training step alone on a batch that is there already, and steps fed by the loader, in turn. The network
is the bundle's whole one, in the precision that the bundle chooses; on a processor a step of it takes many seconds.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import ThreadDataLoader

from models_genesis.datasets import PrefetchDataLoader, ScanCache, write_phantom
from models_genesis.transforms import RandTissueCube, admissible_starts

from .measure import parse_arguments, print_machine, print_table, time_in_turn, write_results

CONFIG = Path(__file__).resolve().parents[1] / "bundles" / "genesis_chest_ct_pretraining" / "configs" / "train.json"
PUBLISHED_TRY_SECONDS = 0.58
"""Of the original, to try one window; another machine."""


def bundle(datalist: Path, **overrides: Any) -> ConfigParser:
    """Open the bundle's training configuration.

    Args:
        datalist: the scans' list, in their folder.
        overrides: values of the configuration.

    Returns:
        The parser.
    """
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"datalist": str(datalist), "dataset_dir": str(datalist.parent), "cubes_per_scan": 10**5})
    parser.update({"device": "cpu", **overrides})
    return parser


def endless(loader: Any) -> Generator[Any, None, None]:
    """Batches without end."""
    while True:
        yield from loader


def time_extraction(scans: ScanCache, cube_size: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Seconds of finding all admissible windows of a scan, and of cutting one cube."""
    arrays = scans[0]
    image, starts = arrays["image"], arrays["starts"]
    cut = RandTissueCube(cube_size)
    cut.set_random_state(0)
    seconds = time_in_turn(
        {
            "windows": lambda: admissible_starts(image, cube_size, border=None),
            "cut": lambda: [cut(image, starts) for _ in range(100)],
        },
        rounds,
    )
    windows = int(np.prod([size - side + 1 for size, side in zip(image.shape[1:], cube_size, strict=True)]))
    per_window = seconds["windows"] / windows
    return {
        "scan_voxels": image.size,
        "windows": windows,
        "seconds_all_windows": seconds["windows"],
        "seconds_per_window": per_window,
        "seconds_per_cube_cut": seconds["cut"] / 100,
        "times_faster_than_published_try": PUBLISHED_TRY_SECONDS / per_window,
    }


def time_loaders(parser: ConfigParser, batches: int, rounds: int) -> dict[str, float]:
    """Samples a second of the loader alone."""
    dataset, sampler = (parser.get_parsed_content(f"train#{name}") for name in ("dataset", "sampler"))
    size = parser.get_parsed_content("batch_size")
    ways: dict[str, dict[str, Any]] = {
        "in the main process": {"num_workers": 0},
        "1 worker process": {"num_workers": 1, "persistent_workers": True},
        "2 worker processes": {"num_workers": 2, "persistent_workers": True},
        "2 worker threads": {"num_workers": 2, "use_thread_workers": True},
    }
    rates = {}
    for name, way in ways.items():
        kind = ThreadDataLoader if "use_thread_workers" in way else PrefetchDataLoader
        source = endless(kind(dataset, batch_size=size, sampler=sampler, **way))

        def take(source: Iterator[Any] = source) -> None:
            for _ in range(batches):
                next(source)

        # not in turn: each loader would fill its buffers while the next is timed
        rates[name] = batches * size / time_in_turn({name: take}, rounds)[name]
        source.close()
    # one core's worth: the samples alone, one after another, in processor time
    indices = iter(sampler)
    start = time.process_time()
    for _ in range(batches * size):
        dataset[next(indices)]
    rates["per core"] = batches * size / (time.process_time() - start)
    return rates


def make_step(parser: ConfigParser) -> tuple[Callable[[Any], None], Callable[[Any], Any]]:
    """The training step of the bundle on prepared tensors, and what prepares a batch."""
    network, loss, optimizer, inferer, deformation = (
        parser.get_parsed_content(name) for name in ("network", "loss", "optimizer", "train#inferer", "deformation")
    )
    network.train()

    def step(pair: Any) -> None:
        images, targets = pair
        optimizer.zero_grad(set_to_none=True)
        loss(inferer(images, network), targets).backward()
        optimizer.step()

    return step, lambda batch: deformation.prepare_batch(batch, torch.device("cpu"), False)


def time_training(parser: ConfigParser, steps: int, rounds: int, workers: Sequence[int]) -> dict[str, float]:
    """Samples a second of the step alone, and of the step fed by a loader with so many worker processes."""
    dataset, sampler = (parser.get_parsed_content(f"train#{name}") for name in ("dataset", "sampler"))
    size = parser.get_parsed_content("batch_size")
    step, prepare = make_step(parser)
    sources = {
        f"training, {number} worker processes": endless(
            PrefetchDataLoader(
                dataset, batch_size=size, sampler=sampler, num_workers=number, persistent_workers=number > 0
            )
        )
        for number in workers
    }
    there = prepare(next(next(iter(sources.values()))))

    def alone() -> None:
        for _ in range(steps):
            step(there)

    def fed(source: Iterator[Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps):
                step(prepare(next(source)))

        return run

    candidates = {"step alone": alone, **{name: fed(source) for name, source in sources.items()}}
    seconds = time_in_turn(candidates, rounds)
    for source in sources.values():
        source.close()
    return {name: steps * size / value for name, value in seconds.items()}


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "The loader of the pretraining bundle.",
        ("--features", {"type": int, "nargs": "+", "help": "channels of the network's levels (those of the bundle)"}),
        ("--batch-size", {"type": int, "default": 6, "help": "cubes in a batch"}),
        (
            "--workers",
            {"type": int, "nargs": "+", "default": [0, 1, 2], "help": "numbers of worker processes to train with"},
        ),
        ("--steps", {"type": int, "default": 4, "help": "training steps in a turn"}),
        ("--rounds", {"type": int, "help": "turns (5; 2 with --quick)"}),
        ("--skip-training", {"action": "store_true", "help": "leave out the training step"}),
    )
    logging.disable(logging.INFO)
    quick = arguments.quick
    results: dict[str, Any] = {"machine": print_machine()}
    rounds = arguments.rounds or (2 if quick else 5)
    features = arguments.features or ([4, 8] if quick else [64, 128, 256, 512])
    cube_size = (32, 32, 16) if quick else (64, 64, 32)
    shape = (72, 64, 48) if quick else (256, 208, 192)
    with tempfile.TemporaryDirectory() as folder:
        # four patients, one of which is for validation
        data = write_phantom(Path(folder) / "scans", 4, region="chest", shape=shape)
        overrides = {
            "cube_size": list(cube_size),
            "features": features,
            "batch_size": arguments.batch_size,
            "train#dataset#cache_gib": 1,
        }
        parser = bundle(data, **overrides)
        parser["train#dataset#progress"] = False
        start = time.perf_counter()
        scans = parser.get_parsed_content("train#dataset").scans
        results["cache"] = {
            "scans": len(scans),
            "seconds_per_scan": (time.perf_counter() - start) / len(scans),
            "bytes_per_scan": scans.nbytes / len(scans),
            "voxels": int(np.prod(shape)),
        }
        cache = results["cache"]
        starts = np.mean([scans[index]["starts"].nbytes for index in range(len(scans))])
        print(
            f"\n{len(scans)} scans of {'x'.join(map(str, shape))} voxels: {cache['seconds_per_scan']:.2f} s to prepare "
            f"one, {cache['bytes_per_scan'] / 1e6:.1f} MB kept: "
            f"{(cache['bytes_per_scan'] - starts) / cache['voxels']:.2f} bytes a voxel, {starts / 1e6:.1f} MB of starts"
        )
        results["extraction"] = extraction = time_extraction(scans, cube_size, rounds)
        print(
            f"cubes of {'x'.join(map(str, cube_size))}: {extraction['windows']} windows judged in "
            f"{extraction['seconds_all_windows']:.3f} s, {1e9 * extraction['seconds_per_window']:.0f} ns a window: "
            f"{extraction['times_faster_than_published_try']:.1e} times faster than the published "
            f"{PUBLISHED_TRY_SECONDS} s a try (another machine); cutting a cube takes "
            f"{1e6 * extraction['seconds_per_cube_cut']:.0f} us"
        )
        results["loader"] = time_loaders(parser, 4 if quick else 30, rounds)
        print_table("the loader alone", ("", "cubes/s"), [(k, v) for k, v in results["loader"].items()])
        if not arguments.skip_training:
            results["features"] = features
            results["batch_size"] = arguments.batch_size
            results["training"] = training = time_training(parser, arguments.steps, rounds, arguments.workers)
            rows = [(k, v, 100 * v / training["step alone"]) for k, v in training.items()]
            title = f"training, features {features}, batch size {arguments.batch_size}"
            print_table(title, ("", "cubes/s", "% of the step alone"), rows)
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
