# SPDX-License-Identifier: Apache-2.0
"""Milliseconds a cube takes to be deformed, against the plain reference in the same run.

    python -m benchmarks.deformations [--quick] [--out results.json] [--chart picture.png]

One thread, in turn on the same cubes and draws; medians over the rounds, in processor time, which is what a quiet
machine's clock would show, however busy this one is. The whole chain is the mean over 50 samples that have the paper's
rates exactly.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models_genesis.datasets import make_phantom
from models_genesis.transforms import (
    BatchGenesisDeform,
    RandGenesisDeform,
    RandNonlinearIntensity,
    RandOutPainting,
    local_pixel_shuffle,
)
from models_genesis.transforms.batch_shuffle import draw_shuffle_sources
from models_genesis.transforms.local_shuffle import max_block_sides

from . import reference
from .measure import parse_arguments, print_machine, print_table, time_in_turn, write_results

NdArray = np.ndarray[Any, Any]
SHAPES = ((64, 64, 32), (96, 96, 96), (128, 128, 128))
PUBLISHED_MS = {(64, 64, 32): 40, (96, 96, 96): 158, (128, 128, 128): 285}
"""Of the original, one thread of another machine."""
HOUNSFIELD: dict[str, Any] = {"intensity_range": (-1000, 1000), "output_range": (0, 1)}
POINTS = ((0.1, 0.7), (0.8, 0.3))
SAMPLES = 50
SEED = 14522
"""Of these 50 samples 25 are shuffled, 45 mapped, 36 out-painted and 9 in-painted."""


_time = partial(time_in_turn, clock=time.process_time)


def drawn_parameters(shape: tuple[int, ...]) -> list[Any]:
    """The parameters of the samples, which all candidates share."""
    transform = RandGenesisDeform()
    transform.set_random_state(SEED)
    drawn = []
    for _ in range(SAMPLES):
        transform.randomize(shape)
        drawn.append(transform.parameters)
    shares = [sum(happens(p) for p in drawn) for happens in (
        lambda p: p.shuffle, lambda p: p.control_points is not None,
        lambda p: p.boxes is not None and p.out_painting, lambda p: p.boxes is not None and not p.out_painting,
    )]  # fmt: skip
    if shares != [25, 45, 36, 9]:
        raise RuntimeError(f"seed {SEED}: expected the paper's rates, 25, 45, 36 and 9 of 50, found {shares}")
    return drawn


def time_parts(cube: NdArray, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each part when it happens."""
    shape = cube.shape
    R = np.random.default_rng(0)
    unit = (cube.astype(np.float32) + 1000) / 2000
    hounsfield, floats = cube[None], unit[None]
    tensor = torch.from_numpy(floats)
    sides, draws = max_block_sides(shape), torch.Generator().manual_seed(0)

    def torch_shuffle() -> Any:
        sources = draw_shuffle_sources(draws, 1, shape, sides, 10_000)
        return tensor.flatten(1).gather(1, sources)

    curves = {
        name: RandNonlinearIntensity(1.0, intensity_range=span, backend="numba")
        for name, span in (("int16", (-1000, 1000)), ("float32", (0, 1)))
    }
    paintings = {backend: RandOutPainting(1.0, backend=backend) for backend in ("numba", "numpy")}
    for transform in (*curves.values(), *paintings.values()):
        transform.set_random_state(0)
    boxes = np.array([[(side // 5, side // 5 + side // 2) for side in shape]])
    seeds = iter(range(10**9))
    return {
        "shuffle": _time(
            {
                "reference": lambda: reference.shuffle(unit, R),
                "numba": lambda: local_pixel_shuffle(hounsfield, next(seeds), backend="numba"),
                "numpy": lambda: local_pixel_shuffle(hounsfield, next(seeds), backend="numpy"),
                "torch": torch_shuffle,
            },
            rounds,
        ),
        "map": _time(
            {
                "reference": lambda: reference.map_intensity(unit, POINTS, True),
                "int16": lambda: curves["int16"](hounsfield),
                "float32": lambda: curves["float32"](floats),
            },
            rounds,
            calls=3,
        ),
        "out-painting": _time(
            {
                "reference": lambda: reference.paint(unit, boxes, True, R),
                "numba": lambda: paintings["numba"](floats),
                "numpy": lambda: paintings["numpy"](floats),
            },
            rounds,
            calls=3,
        ),
    }


def time_chain(cube: NdArray, rounds: int, samples: int, with_torch: bool) -> dict[str, float]:
    """Seconds a sample takes, mean over the paper's rates."""
    drawn = drawn_parameters(cube.shape)[:samples]
    R = np.random.default_rng(0)
    images = {"int16": cube[None], "float32": cube[None].astype(np.float32)}

    def plain() -> None:
        for parameters in drawn:
            reference.deform(cube, parameters, R)

    candidates: dict[str, Any] = {"reference": plain}
    for backend in ("numba", "numpy"):
        for kind, image in images.items():
            transform = RandGenesisDeform(backend=backend, **HOUNSFIELD)

            def chain(transform: RandGenesisDeform = transform, image: NdArray = image) -> None:
                transform.set_random_state(SEED)
                for _ in drawn:
                    transform(image)

            candidates[f"{backend} {kind}"] = chain
    seconds = {name: value / len(drawn) for name, value in _time(candidates, rounds).items()}
    if with_torch:
        batch = torch.from_numpy(np.stack([images["int16"]] * 2))
        deform = BatchGenesisDeform(**HOUNSFIELD)
        seconds["torch batch int16, CPU"] = _time({"torch": lambda: deform(batch)}, rounds)["torch"] / len(batch)
    return seconds


def least_time(shape: tuple[int, ...]) -> dict[str, float]:
    """What memory and random numbers alone would take: the least a chain could need on this machine.

    A sample is read once as int16, and two float32 images are written: 10 bytes a voxel. Each noise voxel takes a
    random number; a shuffled sample takes three a block (side and corner of an axis come from one) and one a voxel.
    """
    voxels = int(np.prod(shape))
    drawn = drawn_parameters(shape)
    numbers = 0.0
    for parameters in drawn:
        inside = np.zeros(shape, bool)
        for box in () if parameters.boxes is None else parameters.boxes.tolist():
            inside[tuple(slice(*ends) for ends in box)] = True
        noise = 0 if parameters.boxes is None else int((inside != parameters.out_painting).sum())
        shown = voxels - noise if parameters.out_painting and parameters.boxes is not None else voxels
        numbers += noise + (30_000 + shown if parameters.shuffle else 0)
    numbers /= len(drawn)
    source, target = np.ones(2**24, np.float32), np.empty(2**24, np.float32)
    floats = np.empty(2**22, np.float32)
    generator = np.random.Generator(np.random.SFC64(0))
    seconds = _time(
        {"copy": lambda: np.copyto(target, source), "random": lambda: generator.random(dtype=np.float32, out=floats)}, 7
    )
    bandwidth, rate = 2 * source.nbytes / seconds["copy"], floats.size / seconds["random"]
    return {
        "bytes": 10.0 * voxels,
        "random_numbers": numbers,
        "bandwidth_GB_s": bandwidth / 1e9,
        "random_per_s": rate,
        "memory_ms": 10e3 * voxels / bandwidth,
        "random_ms": 1e3 * numbers / rate,
    }


def report(shape: tuple[int, ...], result: dict[str, Any]) -> None:
    """Print the tables of one size."""
    name = "x".join(map(str, shape))
    for part, seconds in result["parts"].items():
        rows = [(key, 1e3 * s, seconds["reference"] / s) for key, s in seconds.items()]
        print_table(f"{name}, {part} when it happens", ("", "ms", "times faster than the reference"), rows)
    chain, published = result["chain"], result["published_ms"]
    faster = [(k, 1e3 * s, chain["reference"] / s, published / s / 1e3) for k, s in chain.items()]
    print_table(
        f"{name}, whole chain, mean over the paper's rates",
        ("", "ms", "times faster than the reference", f"than the published {published} ms (another machine)"),
        faster,
    )
    if "limit" in result:
        limit = result["limit"]
        least = limit["memory_ms"] + limit["random_ms"]
        print(
            f"least time: {limit['bytes'] / 1e6:.1f} MB at {limit['bandwidth_GB_s']:.1f} GB/s = "
            f"{limit['memory_ms']:.2f} ms, {limit['random_numbers'] / 1e3:.0f} k random numbers at "
            f"{limit['random_per_s'] / 1e6:.0f} M/s (numpy's SFC64) = {limit['random_ms']:.2f} ms; "
            f"numba int16 takes {1e3 * chain['numba int16'] / least:.1f} times that"
        )


def draw_chart(path: Path, results: dict[str, Any]) -> None:
    """Draw the chain's times, logarithmic, as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    sizes = list(results["sizes"])
    names = [name for name in results["sizes"][sizes[0]]["chain"]]
    for number, name in enumerate(names):
        height = [1e3 * results["sizes"][size]["chain"][name] for size in sizes]
        bars = axis.bar(np.arange(len(sizes)) + 0.13 * (number - len(names) / 2 + 0.5), height, 0.12, label=name)
        axis.bar_label(bars, [f"{value:.3g}" for value in height], fontsize=6)
    axis.set(
        yscale="log", ylabel="ms of processor time a cube, one thread", xticks=range(len(sizes)), xticklabels=sizes
    )
    figure.legend(fontsize=7, loc="outside upper center", ncols=len(names))
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "Time of the deformations.",
        ("--chart", {"type": Path, "help": "PNG file for a chart"}),
        ("--rounds", {"type": int, "help": "how often each candidate has its turn (5; 3 with --quick)"}),
    )
    torch.set_num_threads(1)
    start = time.perf_counter()
    results: dict[str, Any] = {"machine": print_machine(), "sizes": {}}
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    for shape in SHAPES[:1] if arguments.quick else SHAPES:
        cube = make_phantom(0, region="chest", shape=shape).image.astype(np.int16)
        result: dict[str, Any] = {"parts": time_parts(cube, rounds)}
        # the first ten are 5 shuffled, 9 mapped, 8 out-painted and 1 in-painted: near enough for a check
        result["chain"] = time_chain(cube, rounds, 10 if arguments.quick else SAMPLES, with_torch=True)
        result["published_ms"] = PUBLISHED_MS[shape]
        if not arguments.quick:
            result["limit"] = least_time(shape)
        report(shape, result)
        results["sizes"]["x".join(map(str, shape))] = result
    results["minutes"] = (time.perf_counter() - start) / 60
    write_results(arguments.out, results)
    if arguments.chart:
        draw_chart(arguments.chart, results)
        print(f"wrote {arguments.chart}")


if __name__ == "__main__":
    main()
