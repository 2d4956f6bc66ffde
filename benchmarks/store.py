# SPDX-License-Identifier: Apache-2.0
"""Cubes from a store of prepared scans: ``python -m benchmarks.store [--quick] [--datalist JSON] [--folder DIR]``.

How many cubes a second a processor core reads, with the files in the system's cache and without; what is read from the
disk for each; how large the store is; and how much memory the loader's processes take, over several epochs. In the same
run: the memory-mapped cache, zarr-python on the very same files, and MONAI's ``PersistentDataset``, which loads a whole
scan for each cube. Scans are the built-in phantom's, unless a data list is given.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from monai.data import PersistentDataset
from monai.transforms import Compose
from torch.utils.data import Dataset

from models_genesis.datasets import (
    CubeDataset,
    EpochSampler,
    PrefetchDataLoader,
    Preparation,
    ScanCache,
    load_datalist,
    prepare_store,
    write_phantom,
)
from models_genesis.datasets.store.location import Location
from models_genesis.datasets.store.manifest import ScanRow, Store
from models_genesis.transforms import RandGenesisDeformd, RandTissueCubed

from .measure import parse_arguments, print_machine, print_table, write_results

ReadCube = Callable[[int], np.ndarray]


def files_below(folder: Path) -> list[Path]:
    """List all files, of whatever depth."""
    return [path for path in folder.rglob("*") if path.is_file()]


def drop_from_cache(folder: Path) -> None:
    """Have the system forget the pages of all files in a folder, which must have been written to the disk."""
    for path in files_below(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> tuple[int, int]:
    """Bytes that this process has requested from files, and those that came from a disk."""
    pairs = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    counts = {name: int(value) for name, value in pairs}
    return counts["rchar"], counts["read_bytes"]


def zarr_reader(store: Path, rows: Sequence[ScanRow], cubes: Sequence[Any]) -> ReadCube | None:
    """Read the same files by zarr-python; None where it is not installed."""
    if importlib.util.find_spec("zarr") is None:
        return None
    import zarr

    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    arrays = [zarr.open_array(str(store / row.image_name), mode="r") for row in rows]
    return lambda number: arrays[cubes[number][0]][cubes[number][1]]


def readers(
    store: Path, folder: Path, data: Sequence[dict[str, Any]], preparation: Preparation, cubes: Sequence[Any]
) -> dict[str, tuple[ReadCube, Path]]:
    """Make the ways to read a cube, each with the folder that its files are in."""
    steps = [*preparation.steps(), preparation.windows()]
    stored = ScanCache(data, steps, cache_gib=0, progress=False, store=str(store))
    mapped = ScanCache(data, steps, cache_gib=0, cache_dir=folder / "mapped", progress=False, store=str(store))
    persistent = PersistentDataset(data, Compose(preparation.steps()), cache_dir=folder / "persistent")
    for number in range(len(data)):
        persistent[number]

    def from_cache(scans: ScanCache) -> ReadCube:
        return lambda number: np.array(scans[cubes[number][0]]["image"][cubes[number][1]])

    ways: dict[str, tuple[ReadCube, Path]] = {
        "store": (from_cache(stored), store),
        "mapped cache": (from_cache(mapped), folder / "mapped"),
        "PersistentDataset": (
            lambda number: np.array(persistent[cubes[number][0]]["image"][cubes[number][1]]), folder / "persistent",
        ),
    }  # fmt: skip
    rows = [row for row in Store(Location(str(store))).rows() if row.split == "training"]
    if (read := zarr_reader(store, rows, cubes)) is not None:
        ways["zarr-python"] = (read, store)
    expected = [ways["mapped cache"][0](number) for number in range(4)]
    for name, (read, _) in ways.items():
        for number, cube in enumerate(expected):
            if not np.array_equal(read(number), cube):
                raise ValueError(f"{name}: expected the same cube as all others, found another")
    return ways


def rate(read: ReadCube, numbers: Sequence[int], cube_bytes: int) -> dict[str, float]:
    """Read cubes and give cubes a second, by the clock and by processor time, and bytes read for a cube's byte."""
    requested, from_disk = bytes_read()
    wall, processor = time.perf_counter(), time.process_time()
    for number in numbers:
        read(number)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    after = bytes_read()
    total = len(numbers) * cube_bytes
    return {
        "cubes_per_second": len(numbers) / wall,
        "cubes_per_core_second": len(numbers) / processor,
        "requested_per_byte": (after[0] - requested) / total,
        "from_disk_per_byte": (after[1] - from_disk) / total,
    }


def time_readers(
    ways: dict[str, tuple[ReadCube, Path]], count: int, cube_bytes: int, rounds: int, cold: bool
) -> dict[str, dict[str, Any]]:
    """Read cubes in turn; PersistentDataset, which takes a hundred times longer, reads a twentieth of them."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(rounds + (not cold)):
        for name, (read, folder) in ways.items():
            number = max(count // 20, 2) if name == "PersistentDataset" else count
            if cold:
                drop_from_cache(folder)
            measured = rate(read, range(number), cube_bytes)
            if cold or turn > 0:  # the first turn fills caches
                results[name].append(measured)
    return {
        name: {
            key: {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}
            for key in turns[0]
            if (values := [turn[key] for turn in turns])
        }
        for name, turns in results.items()
    }


def read_in_turn(
    store: str, datalist: Path, root: Path | None, preparation: Preparation, count: int, rounds: int, number: int,
    barrier: Any, results: Any,
) -> None:  # fmt: skip
    """Be one of several processes that read random cubes of a store at once, after a turn to warm up."""
    data = load_datalist(datalist, root, store=store)
    scans = ScanCache(data, [*preparation.steps(), preparation.windows()], cache_gib=0, progress=False, store=store)
    rng = np.random.default_rng(number)
    for _ in range(rounds + 1):
        cubes = random_cubes(rng, [scans[index]["image"].shape for index in range(len(data))], preparation, count)
        barrier.wait()
        measured = rate(
            lambda index: np.array(scans[cubes[index][0]]["image"][cubes[index][1]]),  # noqa: B023 - used at once
            range(count),
            2 * int(np.prod(preparation.cube_size)),
        )
        results.put((number, measured))
        barrier.wait()


def time_readers_at_once(
    store: str, datalist: Path, root: Path | None, preparation: Preparation, count: int, rounds: int, readers: int
) -> dict[str, dict[str, float]]:
    """Let processes read at once; all together by the clock, and each by its own processor time."""
    context = multiprocessing.get_context("spawn")  # TensorStore's threads do not survive a fork
    barrier, results = context.Barrier(readers), context.Queue()
    fixed = (store, datalist, root, preparation, count, rounds)
    processes = [
        context.Process(target=read_in_turn, args=(*fixed, number, barrier, results)) for number in range(readers)
    ]
    for process in processes:
        process.start()
    turns = [[results.get(timeout=600)[1] for _ in range(readers)] for _ in range(rounds + 1)][1:]
    for process in processes:
        process.join()
    sums = {
        # the slowest one's time is that of all
        "cubes_per_second": [readers * min(each["cubes_per_second"] for each in turn) for turn in turns],
        "cubes_per_core_second": [float(np.mean([each["cubes_per_core_second"] for each in turn])) for turn in turns],
    }
    return {
        key: {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}
        for key, values in sums.items()
    }


def random_cubes(
    rng: np.random.Generator, shapes: Sequence[Sequence[int]], preparation: Preparation, count: int
) -> list[tuple[int, tuple[slice, ...]]]:
    """Draw a scan and a place in it, so many times."""
    cubes = []
    for number in rng.integers(0, len(shapes), count):
        sides = list(zip(shapes[number][1:], preparation.cube_size, strict=True))
        first = [int(rng.integers(0, size - side + 1)) for size, side in sides]
        window = (slice(0, 1), *(slice(a, a + side) for a, (_, side) in zip(first, sides, strict=True)))
        cubes.append((int(number), window))
    return cubes


def many_scans(folder: Path, number: int, shape: tuple[int, ...]) -> Path:
    """Write so many small scans, eight of which differ, and their data list."""
    written = write_phantom(folder / "eight", 8, region="chest", shape=shape)
    eight = [entry["image"] for key in ("training", "validation") for entry in load_datalist(written, key=key)]
    names = [folder / f"scan{index:05d}{''.join(Path(eight[0]).suffixes)}" for index in range(number)]
    for index, name in enumerate(names):
        shutil.copy(eight[index % len(eight)], name)
    (folder / "datalist.json").write_text(json.dumps({"training": [{"image": name.name} for name in names]}))
    return folder / "datalist.json"


def watch_memory(
    datalist: Path, store: str, preparation: Preparation, epochs: int, workers: int
) -> tuple[dict[str, Any], list[list[float]]]:
    """Let a loader deform cubes for some epochs, and note the memory of each of its processes after each, in MiB."""
    start = time.perf_counter()
    rows = prepare_store(datalist, store, preparation=preparation, progress=False)
    seconds = time.perf_counter() - start
    steps = [*preparation.steps(), preparation.windows()]
    transforms = Compose([
        RandTissueCubed("image", preparation.cube_size),
        RandGenesisDeformd("image", intensity_range=(-1000, 1000)),
    ])  # fmt: skip
    dataset: Dataset = CubeDataset(
        load_datalist(None, store=store), steps, transforms, cubes_per_scan=1, cache_gib=0, progress=False, store=store
    )
    sampler = EpochSampler(dataset, seed=0)
    loader = PrefetchDataLoader(dataset, batch_size=6, sampler=sampler, num_workers=workers, persistent_workers=True)
    memory = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        with closing(iter(loader)) as batches:  # type: ignore[type-var]
            for _ in batches:
                pass
        children = [child for child in psutil.Process().children(recursive=True) if child.memory_info().rss > 2**27]
        memory.append(sorted(child.memory_info().rss / 2**20 for child in children))
    about = {"scans": len(rows), "skipped": sum(bool(row.skipped) for row in rows), "seconds_to_prepare": seconds}
    return about, memory


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "Cubes from a store of prepared scans.",
        ("--datalist", {"type": Path, "help": "scans to prepare (default: the built-in phantom's)"}),
        ("--dataset_dir", {"type": Path, "help": "folder that its paths start from (default: the list's own)"}),
        ("--folder", {"type": Path, "help": "where to write, on the disk that is to be measured (default: a new one)"}),
        ("--cubes", {"type": int, "help": "cubes in a turn (600; 40 with --quick)"}),
        ("--rounds", {"type": int, "help": "turns (5; 2 with --quick)"}),
        ("--scans", {"type": int, "help": "scans whose loaders' memory is watched (1000; 12 with --quick)"}),
        ("--epochs", {"type": int, "help": "epochs of those (4; 2 with --quick)"}),
        ("--workers", {"type": int, "default": 2, "help": "processes that load"}),
        ("--readers", {"type": int, "nargs": "+", "help": "numbers of processes that read the store at once"}),
        ("--skip-memory", {"action": "store_true", "help": "leave the memory out"}),
    )
    logging.disable(logging.INFO)
    quick = arguments.quick
    cube_size = (32, 32, 16) if quick else (64, 64, 32)
    count, rounds = arguments.cubes or (40 if quick else 600), arguments.rounds or (2 if quick else 5)
    preparation = Preparation(cube_size=cube_size)
    results: dict[str, Any] = {"machine": print_machine()}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        datalist = arguments.datalist or write_phantom(
            folder / "scans", 4, region="chest", shape=(72, 64, 48) if quick else (320, 280, 240)
        )
        store = folder / "store"
        start = time.perf_counter()
        prepared = prepare_store(datalist, str(store), arguments.dataset_dir, preparation=preparation, progress=False)
        seconds = time.perf_counter() - start
        kept = [row for row in prepared if not row.skipped]
        raw = sum(2 * int(np.prod(row.shape)) for row in kept)
        starts = sum(row.starts * np.dtype(row.starts_type).itemsize for row in kept)
        images = sum(path.stat().st_size for path in files_below(store) if "image" in path.parts)
        results["size"] = {
            "scans": len(kept),
            "gib_uncompressed": raw / 2**30,
            "share": images / raw,
            "share_of_starts": sum(path.stat().st_size for path in files_below(store) if "starts-" in str(path))
            / starts,
            "starts_per_voxel": starts / raw * 2 / 4,
            "seconds_to_prepare": seconds,
        }
        print(
            f"\n{len(kept)} scans, {raw / 2**30:.2f} GiB: {seconds:.0f} s to prepare in one process; "
            f"the store has {images / raw:.3f} of the voxels' bytes, and {results['size']['share_of_starts']:.4f} of "
            "the starts'"
        )
        data = load_datalist(datalist, store=str(store))
        rng = np.random.default_rng(0)
        rows = [row for row in kept if row.split == "training"]
        cubes = random_cubes(rng, [row.shape for row in rows], preparation, count)
        ways = readers(store, folder, data, preparation, cubes)
        cube_bytes = 2 * int(np.prod(cube_size))
        for cold in (False, True):
            title = "cold: files dropped from the cache" if cold else "warm: files in the system's cache"
            results["cold" if cold else "warm"] = found = time_readers(ways, count, cube_bytes, rounds, cold)
            table = [(way, *(each["median"] for each in numbers.values())) for way, numbers in found.items()]
            print_table(
                f"{title}, cubes of {'x'.join(map(str, cube_size))}",
                ("", "cubes/s", "cubes/s of processor", "bytes requested a cube's byte", "bytes from disk"),
                table,
            )
        if arguments.readers:
            results["readers"] = {
                readers: time_readers_at_once(
                    str(store), datalist, arguments.dataset_dir, preparation, count, rounds, readers
                )
                for readers in arguments.readers
            }
            print_table(
                "processes that read the store at once, warm",
                ("processes", "cubes/s", "cubes/s of processor"),
                [(str(n), *(each["median"] for each in found.values())) for n, found in results["readers"].items()],
            )
        if not arguments.skip_memory:
            scans, epochs = arguments.scans or (12 if quick else 1000), arguments.epochs or (2 if quick else 4)
            shape = (48, 40, 32) if quick else (128, 112, 96)
            (folder / "many").mkdir()
            listed = many_scans(folder / "many", scans, shape)
            about, memory = watch_memory(listed, str(folder / "many_store"), preparation, epochs, arguments.workers)
            results["memory"] = {**about, "shape": shape, "epochs": epochs, "mib_after_each_epoch": memory}
            print_table(
                f"memory of the loader's processes, {scans} scans of {'x'.join(map(str, shape))} voxels, MiB",
                ("epoch", "largest"),
                [(str(epoch + 1), float(max(sizes))) for epoch, sizes in enumerate(memory)],
            )
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
