# SPDX-License-Identifier: Apache-2.0
"""Command line of transfer: ``python -m models_genesis.transfer run|report|power|permute|embed|probe``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .clock import STARTED
from .workers import WorkerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: command line, by default the process's own.

    Returns:
        Exit code: 0; 1 where runs failed; 2 after one line on stderr that says what was wrong; 130 after Ctrl-C.
    """
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.command(parsed))
    except (ImportError, OSError, ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = ": the same command goes on from the runs that are finished" if parsed.command is _run else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models_genesis.transfer", description="Studies of what pretraining is worth."
    )
    commands = parser.add_subparsers(required=True)
    _add_run(commands.add_parser("run", help="do the runs of a study, from wherever it stands"))
    report = commands.add_parser("report", help="write report.html, results.csv and results.json")
    report.add_argument("folder", type=Path, help="the --out folder of the runs")
    report.add_argument("--resamples", type=int, default=9999, help="permutations and bootstrap samples")
    report.set_defaults(command=_report)
    power = commands.add_parser(
        "power", help="the smallest differences that a study can show, before or after it is run"
    )
    power.add_argument("study", type=Path)
    power.add_argument("--out", type=Path, help="results whose spread is taken, instead of assumed ones")
    power.add_argument("--power", type=float, default=0.8)
    power.set_defaults(command=_power)
    permute = commands.add_parser("permute", help="write weights with each tensor's values shuffled, a control")
    permute.add_argument("--weights", type=Path, required=True)
    permute.add_argument("--seed", type=int, default=0)
    permute.add_argument("--out", type=Path, required=True)
    permute.set_defaults(command=_permute)
    _add_embed(commands.add_parser("embed", help="write the encoder's features of scans, for retrieval and probes"))
    _add_probe(commands.add_parser("probe", help="tell two classes of scans apart from frozen features"))
    trainings = commands.add_parser(
        "trainings", help="compare tasks of pretraining by several trainings of each: is it the task, or its luck?"
    )
    trainings.add_argument(
        "folder", type=Path, help="of a probe, or of a study's runs, whose weights or arms are called TASK_1, TASK_2"
    )
    trainings.add_argument("--against", required=True, metavar="TASK", help="what others are compared with")
    trainings.add_argument("--of", required=True, nargs="+", metavar="TASK", help="whose mean is compared first")
    trainings.add_argument("--labels", type=_labels, default="all", help="labelled patients, a number or all")
    trainings.add_argument("--resamples", type=int, default=9999, help="bootstrap samples")
    trainings.set_defaults(command=_trainings)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, help="the study's JSON file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; the same again goes on")
    parser.add_argument("--dataset_dir", type=Path, help="where the data are on this machine")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes; 0 works in this process")
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--device", help="such as cuda:0 or cpu; by default as the bundle says")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="do the I-th of N parts")
    parser.add_argument("--minutes", type=float, help="stop before this time; the same command goes on later")
    parser.add_argument("--arms", type=lambda text: tuple(text.split(",")), help="only these arms, as A,B")
    parser.add_argument("--extend", action="store_true", help="accept arms, label counts and seeds added since")
    parser.add_argument("--retry", action="store_true", help="do failed runs again")
    parser.add_argument("--keep_weights", action="store_true", help="keep each run's model.pt")
    parser.set_defaults(command=_run)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help="file, folder (a bundle's or its ckpt_dir) or hub repository")
    parser.add_argument("--images", type=Path, required=True, help="folder of scans, or a data list")
    parser.add_argument("--out", type=Path, required=True, help=".npz or .csv")
    parser.add_argument("--per", choices=("scan", "region", "tile"), default="scan", help="what gets a vector")
    parser.add_argument("--levels", choices=("last", "all"), default="last", help="of the encoder")
    parser.add_argument("--split", nargs="+", default=["training"], help="lists of the data list")
    parser.add_argument("--skip_bad", action="store_true", help="leave out scans that cannot be read, and say which")
    _add_preprocessing(parser)
    parser.set_defaults(command=_embed)


def _add_probe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        required=True,
        nargs="+",
        metavar="NAME=WEIGHTS",
        help="as embed takes them; the others are also compared with the first",
    )
    parser.add_argument("--images", type=Path, required=True, help="data list with a class, 0 or 1, and a patient each")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of probe.csv, cases.csv and probe.json, which are replaced"
    )
    parser.add_argument(
        "--labels", type=_labels, nargs="+", default=["all"], help="labelled patients, such as 10 50 all"
    )
    parser.add_argument("--folds", type=int, default=5, help="number of cross-validation folds, split by patient")
    parser.add_argument("--seeds", type=int, default=5, help="number of draws of patients and of random weights")
    parser.add_argument(
        "--norm_statistics",
        choices=("scans", "own"),
        default="scans",
        help="running statistics of batch norm: those of "
        "these scans, as random weights have them, or those that the weights have",
    )
    parser.add_argument("--split", nargs="+", default=["training"], help="lists of the data list")
    _add_preprocessing(parser)
    parser.set_defaults(command=_probe)


def _add_preprocessing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_device, default="cuda:0" if _has_gpu() else "cpu")
    parser.add_argument("--modality", choices=("CT", "MR", "any"), help="default: CT where the weights are for HU")
    settings = parser.add_argument_group("preprocessing", "by default that of the weights (model.json, config.json)")
    settings.add_argument("--intensity_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="becomes [0, 1]")
    settings.add_argument("--normalise", choices=("none", "zscore", "minmax"))
    settings.add_argument("--spacing", type=float, nargs=3, help="mm")
    settings.add_argument("--axcodes", help="orientation, such as RAS")
    settings.add_argument(
        "--cube_size",
        type=int,
        nargs="+",
        help="voxels of a tile, for probe of the cube in the middle; of a 2D network two sides",
    )
    settings.add_argument("--slice_axis", type=int, choices=(0, 1, 2), help="axis across slices, of a 2D network")
    settings.add_argument("--allow_changed_settings", action="store_true", help="other settings than in the training")


def _device(text: str) -> str:
    import torch

    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected a device of this machine, found {text!r}: {error}") from None
    return text


def _labels(text: str) -> int | str:
    if text != "all" and not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number of patients or all, found {text!r}")
    return text if text == "all" else int(text)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _embed(arguments: argparse.Namespace) -> int:
    from .embedding_files import embed_files

    result = embed_files(
        arguments.weights,
        arguments.images,
        arguments.out,
        settings=_given(arguments),
        allow_changed_settings=arguments.allow_changed_settings,
        splits=arguments.split,
        device=arguments.device,
        skip_bad=arguments.skip_bad,
        progress=_say,
        per=arguments.per,
        levels=arguments.levels,
        modality=arguments.modality,
    )
    for line in result.skipped:
        print(f"left out: {line}")
    print(f"written: {arguments.out}, {len(result.features)} vectors of {len(result.features[0])} features")
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    from .probe_files import probe_files

    text = probe_files(
        arguments.weights,
        arguments.images,
        arguments.out,
        settings=_given(arguments),
        allow_changed_settings=arguments.allow_changed_settings,
        labels=arguments.labels,
        folds=arguments.folds,
        seeds=range(arguments.seeds),
        splits=arguments.split,
        norm_statistics=arguments.norm_statistics,
        device=arguments.device,
        modality=arguments.modality,
        progress=_say,
    )
    print(text)
    return 0


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the preprocessing that the command line names."""
    keys = ("intensity_range", "normalise", "spacing", "axcodes", "cube_size", "slice_axis")
    return {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, found {text!r}")
    return int(number), int(count)


def _run(arguments: argparse.Namespace) -> int:
    from .runner import Options, Runner
    from .study import load_study

    if arguments.jobs < 0 or arguments.threads < 1:
        raise ValueError(f"expected --jobs >= 0 and --threads >= 1, found {arguments.jobs} and {arguments.threads}")
    options = Options(
        out=arguments.out,
        jobs=arguments.jobs,
        device=arguments.device,
        shard=arguments.shard,
        minutes=arguments.minutes,
        threads=arguments.threads,
        arms=arguments.arms,
        extend=arguments.extend,
        retry=arguments.retry,
        keep_weights=arguments.keep_weights,
        started=STARTED,
    )

    def say(line: str) -> None:
        print(line, flush=True)

    outcome = Runner(load_study(arguments.study, arguments.dataset_dir), options, say)()
    return 1 if outcome.failed else 0


def _report(arguments: argparse.Namespace) -> int:
    from .report import write_report

    for path in write_report(arguments.folder, arguments.resamples):
        print(f"written: {path}")
    return 0


def _power(arguments: argparse.Namespace) -> int:
    from .power import power_text
    from .study import load_study

    print(power_text(load_study(arguments.study), arguments.out, arguments.power))
    return 0


def _trainings(arguments: argparse.Namespace) -> int:
    from .trainings import compare_trainings

    labels, resamples = arguments.labels, arguments.resamples
    print(compare_trainings(arguments.folder, arguments.against, arguments.of, labels, resamples))
    return 0


def _permute(arguments: argparse.Namespace) -> int:
    from .permuted import permuted_file

    print(f"written: {arguments.out}, {permuted_file(arguments.weights, arguments.out, arguments.seed)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
