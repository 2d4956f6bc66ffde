# SPDX-License-Identifier: Apache-2.0
"""Command line of transfer studies: ``python -m models_genesis.transfer run|report|power|permute``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


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
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the runs that are finished", file=sys.stderr)
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


def _permute(arguments: argparse.Namespace) -> int:
    from .permuted import permuted_file

    print(f"written: {arguments.out}, {permuted_file(arguments.weights, arguments.out, arguments.seed)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
