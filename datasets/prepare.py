# SPDX-License-Identifier: Apache-2.0
"""The scans of a data list prepared once, by many processes, into a store that trainings read cubes from."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.data.utils import json_hashing
from monai.transforms import Compose, LoadImaged, Orientationd, Transform
from tqdm import tqdm

from ..transforms.hounsfield import ClipHounsfieldd
from ..transforms.modality_check import CheckModalityd
from ..transforms.scan_normalisation import NormaliseScand, default_intensity_range
from ..transforms.tissue_windows import TissueWindowsd
from .datalist import made_by, read_all_splits
from .io.csv_file import printable
from .io.file_hash import hash_of_files
from .io.scan_header import BadScanError, file_states, scan_files, split_series
from .io.scan_reader import ScanReader
from .loading.prepare_scan import AFFINE_SUFFIX, PrepareScan, no_cubes, plain_arrays
from .loading.worker_shield import end_with_parent, hold_sigterm
from .splits import SPLITS
from .store.location import Location, import_extra
from .store.manifest import ScanRow, Store, name_of_datalist
from .store.ray_cluster import map_on_ray
from .store.scan_arrays import content_hash, image_chunk, read_array, write_array
from .store.settings import settings_of_steps
from .store.start_runs import runs_of_starts, starts_before_blocks, write_runs

__all__ = ["Preparation", "prepare_store"]

logger = logging.getLogger(__name__)

IMAGE, STARTS, SOURCE_AFFINE = "image", "starts", "source_affine"
BAR = "Preparing scans"


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared and their cubes may start: the keys of the pretraining bundle, with the same defaults.

    Args:
        axcodes: axes of a prepared scan.
        normalise: see :class:`~models_genesis.transforms.NormaliseScan`.
        intensity_range: values that are kept, in HU where ``normalise`` is ``"none"``; None for its default.
        modality: what scans must be; None for anything.
        cube_size: voxels of a cube.
        slice_axis: axis that slices stand across; None for cubes.
        tissue_threshold: see :class:`~models_genesis.transforms.TissueWindows`; ``"auto"`` is -150 HU for scans in HU,
            and no rule for others.
        tissue_score_range: see there.
        border: see there.
        on_empty: see there.
    """

    axcodes: str = "RAS"
    normalise: str = "none"
    intensity_range: tuple[float, float] | None = None
    modality: Literal["CT", "MR"] | None = "CT"
    cube_size: tuple[int, ...] = (64, 64, 32)
    slice_axis: int | None = None
    tissue_threshold: float | str | None = "auto"
    tissue_score_range: tuple[float, float] = (0.0, 0.15)
    border: Any = "proportional"
    on_empty: str = "lowest"

    def of_scans(self) -> dict[str, Any]:
        """Give the arguments that say how scans are prepared, wherever cubes start."""
        return {name: getattr(self, name) for name in ("axcodes", "normalise", "intensity_range", "modality")}

    def steps(self) -> list[Transform]:
        """Make the steps from a file to a prepared scan, those of the bundle."""
        low, high = self.intensity_range or default_intensity_range(self.normalise)
        return [
            LoadImaged(IMAGE, reader=ScanReader, dtype=None, ensure_channel_first=True),
            CheckModalityd(IMAGE, modality=self.modality),
            Orientationd(IMAGE, axcodes=self.axcodes, labels=None),
            NormaliseScand(IMAGE, normalise=self.normalise),
            ClipHounsfieldd(IMAGE, intensity_range=(low, high)),
        ]

    def windows(self) -> TissueWindowsd:
        """Make the step that finds where cubes may start."""
        threshold = self.tissue_threshold
        if threshold == "auto":
            threshold = -150 if self.normalise == "none" else None
        return TissueWindowsd(
            IMAGE,
            self.cube_size,
            STARTS,
            threshold=threshold,  # type: ignore[arg-type]
            score_range=self.tissue_score_range,
            border=self.border,
            on_empty=self.on_empty,  # type: ignore[arg-type]
            slice_axis=self.slice_axis,
        )


def prepare_store(
    datalist: str | Path,
    store: str,
    dataset_dir: str | Path | None = None,
    workers: int | None = 1,
    shard: tuple[int, int] = (0, 1),
    preparation: Preparation | None = None,
    progress: bool = True,
    ray: str | None = None,
) -> list[ScanRow]:
    """Prepare the scans of a data list into a store, those that are not in it yet.

    Each scan is decoded once, turned, clipped, written as one object and read back, and noted when all of that is done.
    A run that was killed is continued by the same call; a whole store is left as it is. Scans that cannot be used are
    noted with the reason, and tried again by the next call. Scans are known by path, size and time of their files.

    Args:
        datalist: JSON file in the layout of the Medical Segmentation Decathlon; every list of it whose entries have
            images is prepared, the Decathlon's ``"test"`` too.
        store: path, or URL of a bucket, see :class:`~models_genesis.datasets.store.location.Location`.
        dataset_dir: folder that relative paths start from, by default the list's own.
        workers: processes; None for as many as there are processor cores.
        shard: ``(i, n)``: every n-th scan from the i-th on, for n runs on whatever machines that share the store.
        preparation: how to prepare; None for the bundle's defaults.
        progress: whether to show a progress bar.
        ray: address of a Ray cluster whose cores do it, ``"auto"`` for the one that is running here; None for processes
            of this machine.

    Returns:
        The rows of the manifest of this shard.

    Raises:
        ModuleNotFoundError: When tensorstore or pyarrow is missing, or Ray with ``ray``.
        ConnectionError: When there is no cluster at ``ray``.
        ValueError: When an argument is out of range, the store was prepared otherwise, or holds a
            list of this name with other paths.
        OSError: When the store cannot be written, or a process died.
    """
    for package in ("tensorstore", "pyarrow"):
        import_extra(package)
    index, shards = shard
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    if not 0 <= index < shards:
        raise ValueError(f"shard must be i/n with 0 <= i < n, got {index}/{shards}.")
    preparation = preparation or Preparation()
    place = Store(Location(store))
    rows = list(_rows(datalist, dataset_dir))
    settings = settings_of_steps(preparation.steps())
    prepared_by = place.set_preparation(settings, preparation.of_scans(), made_by())
    place.check_sources(rows)
    windows = place.set_windows(settings_of_steps([preparation.windows()]))
    mine = [replace(row, preparation=prepared_by, windows=windows, entries=len(rows)) for row in rows[index::shards]]
    if not mine:
        return []
    prepare = _Prepare(store, preparation)
    if ray is None:
        done = _in_processes(prepare, mine, workers or os.cpu_count() or 1, progress)
    else:
        done = map_on_ray(prepare, mine, ray, workers, progress, BAR)
    place.check_preparation(settings)  # again, for another run may have begun at the same time
    place.check_sources(rows)
    place.write_manifest(done, index, shards)
    return done


def _rows(datalist: str | Path, dataset_dir: str | Path | None) -> Iterator[ScanRow]:
    name = name_of_datalist(datalist)
    for split, entries in read_all_splits(datalist, dataset_dir).items():
        for number, entry in enumerate(entries):
            if not isinstance(entry[IMAGE], str):
                raise ValueError(
                    f"{datalist}: expected one file a scan, found {len(entry[IMAGE])} in {split} {number}; a store has"
                    " scans of one channel"
                )
            yield ScanRow(
                name, split, number, source=entry[IMAGE], patient=patient_of(entry), series=series_of(entry),
                entry=json.dumps(entry),
            )  # fmt: skip


def patient_of(entry: Mapping[str, Any]) -> str:
    """Name the patient of an entry of a data list; an empty text where the list does not."""
    return str(entry.get("patient") or "")


def series_of(entry: Mapping[str, Any]) -> str:
    """Name the series of an entry of a data list; an empty text where the list does not."""
    image = entry[IMAGE] if isinstance(entry[IMAGE], str) else entry[IMAGE][0]
    return str(entry.get("seriesuid") or split_series(image)[1])


def _in_processes(prepare: _Prepare, rows: Sequence[ScanRow], workers: int, progress: bool) -> list[ScanRow]:
    """Prepare scans in processes of one thread each; forked ones TensorStore would abort.

    SIGTERM lets them finish the scans that they have begun, then ends this process with 143.
    """
    if workers == 1:
        return [prepare(row) for row in tqdm(rows, BAR, disable=not progress)]
    context = multiprocessing.get_context("spawn")
    done = {}
    with _exit_on_sigterm(), ProcessPoolExecutor(min(workers, len(rows)), context, initializer=_begin_worker) as pool:
        futures = {pool.submit(prepare, row): number for number, row in enumerate(rows)}
        try:
            for future in tqdm(as_completed(futures), BAR, len(rows), disable=not progress):
                done[futures[future]] = future.result()
        except BrokenProcessPool as error:
            raise OSError(
                f"a process was killed, perhaps for want of memory, after {len(done)} of {len(rows)} scans; what is"
                " done is kept: run the same command again, with fewer workers if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done[number] for number in range(len(rows))]


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise ``SystemExit``: in the main thread, which alone may ask, and where nobody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: the scans that were begun are finished
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _begin_worker() -> None:
    """Take one thread, leave SIGTERM to the parent, and end with it: half a scan does not count."""
    torch.set_num_threads(1)
    hold_sigterm()
    end_with_parent()


class _Prepare:
    """Prepare one scan into a store, as far as that is not done; it goes to worker processes."""

    def __init__(self, store: str, preparation: Preparation) -> None:
        self.store = Store(Location(store))
        self.preparation = preparation

    def __call__(self, row: ScanRow) -> ScanRow:
        """Give the row of a scan, with what the store has of it.

        Raises:
            OSError: When the store cannot be written.
        """
        row = replace(row, key=_key(row.source, row.preparation))
        noted = self.store.record(row)
        try:
            if noted is None:
                return self._from_file(row)
            return self.store.starts_record(noted) or self._starts_alone(noted)
        except BadScanError as error:
            return replace(row, skipped=printable(f"{error.reason}: {error.detail}"))

    def _from_file(self, row: ScanRow) -> ScanRow:
        load, *others = self.preparation.steps()
        steps: list[Callable] = [load, _keep_source_affine, *others, self.preparation.windows()]
        prepared = PrepareScan(Compose(steps), IMAGE, STARTS, "raise")({IMAGE: row.source})
        assert isinstance(prepared, dict)  # a bad scan was raised
        image, affine = prepared[IMAGE], prepared[f"{IMAGE}{AFFINE_SUFFIX}"]
        row = replace(
            row,
            sha256=hash_of_files(row.source) or "",
            hash=content_hash(image),
            shape=tuple(image.shape),
            dtype=str(image.dtype),
            spacing=tuple(np.linalg.norm(affine[:3, :3], axis=0)[: image.ndim - 1].tolist()),
            affine=tuple(affine.ravel().tolist()),
            orientation="".join(map(str, nib.orientations.aff2axcodes(prepared[SOURCE_AFFINE]))),
            low=float(image.min()),
            high=float(image.max()),
        )
        write_array(self.store.location, row.image_name, image, image_chunk(image.shape))
        self.store.write_record(row)
        return self._write_starts(row, prepared[STARTS])

    def _starts_alone(self, row: ScanRow) -> ScanRow:
        """Find the starts of a scan that is in the store, for another size of cubes, say."""
        image = read_array(self.store.location, row.image_name, row.shape, row.dtype, image_chunk(row.shape))
        try:
            starts = plain_arrays(self.preparation.windows()({IMAGE: image}))[STARTS]
        except ValueError as error:
            raise BadScanError(row.source, "no cubes", str(error).removeprefix("scan: ")) from error
        if len(starts) == 0:
            raise no_cubes(row.source)
        return self._write_starts(row, starts)

    def _write_starts(self, row: ScanRow, starts: np.ndarray) -> ScanRow:
        runs = runs_of_starts(starts)
        row = replace(
            row,
            starts=len(starts),
            starts_type=str(starts.dtype),
            starts_runs=runs.shape[1],
            starts_before=tuple(starts_before_blocks(runs)),
        )
        write_runs(self.store.location, row.starts_name, runs)
        self.store.write_starts_record(row)
        return row


def _keep_source_affine(item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    return {**item, SOURCE_AFFINE: np.array(item[IMAGE].affine)}


def _key(source: str, preparation: str) -> str:
    """Name a scan by how it is prepared and its files, their sizes and times; a missing one by its path."""
    try:
        files = file_states(scan_files(source))
    except (OSError, BadScanError):
        files = []
    return json_hashing([source, files, preparation]).decode()[:32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of ``python -m models_genesis.datasets prepare``."""
    parser.add_argument("--datalist", required=True, metavar="JSON", help="the scans, all splits of them")
    parser.add_argument("--dataset_dir", help="folder that its paths start from (default: the list's own)")
    parser.add_argument(
        "--store", required=True, metavar="URL", help="a folder, s3://bucket/prefix, gs://bucket/prefix"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a processor core)")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="prepare on a Ray cluster, by default the one that is running here or RAY_ADDRESS; --workers is then how"
        " many scans at once (default: one a core of the cluster)",
    )
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="i/n", help="every n-th scan from the i-th on")
    default = Preparation()
    parser.add_argument("--axcodes", default=default.axcodes, help="axes of prepared scans")
    parser.add_argument("--normalise", default=default.normalise, help="as in the bundle")
    parser.add_argument("--intensity_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="values that are kept")
    parser.add_argument("--modality", default=default.modality, help="what scans must be; 'any' for no check")
    parser.add_argument("--cube_size", type=int, nargs="+", default=default.cube_size, help="voxels of a cube")
    parser.add_argument("--slice_axis", type=int, help="axis that slices stand across")
    parser.add_argument("--tissue_threshold", type=_threshold, default="auto", help="number, 'none' or 'auto'")
    parser.add_argument("--tissue_score_range", type=float, nargs=2, default=default.tissue_score_range)
    parser.add_argument(
        "--border", type=_border, default=default.border, help="'proportional', 'paper', 'none', or voxels"
    )
    parser.add_argument(
        "--allow_left_out", action="store_true", help="exit with 0 though scans are left out, not with 1"
    )
    parser.add_argument("--on_empty", choices=["raise", "warn", "lowest"], default=default.on_empty)


def _shard(text: str) -> tuple[int, int]:
    index, _, shards = text.partition("/")
    return int(index), int(shards)


def _threshold(text: str) -> float | str | None:
    return text if text == "auto" else None if text == "none" else float(text)


def _border(text: str) -> str | int | None:
    return None if text == "none" else text if text in ("proportional", "paper") else int(text)


def preparation_of(arguments: argparse.Namespace) -> Preparation:
    """Read from the command line how to prepare."""
    names = ("axcodes", "normalise", "slice_axis", "tissue_threshold", "border", "on_empty")
    settings = {name: getattr(arguments, name) for name in names}
    return Preparation(
        intensity_range=None if arguments.intensity_range is None else tuple(arguments.intensity_range),
        modality=None if arguments.modality == "any" else arguments.modality,
        cube_size=tuple(arguments.cube_size),
        tissue_score_range=tuple(arguments.tissue_score_range),
        **settings,
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare a store and print what is in it; return 1 if scans are left out and that is not allowed."""
    preparation = preparation_of(arguments)
    rows = prepare_store(
        arguments.datalist, arguments.store, arguments.dataset_dir, arguments.workers, arguments.shard, preparation,
        ray=arguments.ray,
    )  # fmt: skip
    skipped = [row for row in rows if row.skipped]
    counts = Counter(row.split for row in rows if not row.skipped)
    index, shards = arguments.shard
    print(f"{arguments.store}: shard {index} of {shards}, {len(rows)} scans")
    for split in dict.fromkeys((*SPLITS, *counts)):
        print(f"  {split:<28}{counts[split]:>7}")
    print(f"  {'left out':<28}{len(skipped):>7}")
    for row in skipped:
        print(f"      {printable(row.source)}: {row.skipped}")
    return 1 if skipped and not arguments.allow_left_out else 0
