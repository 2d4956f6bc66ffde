# SPDX-License-Identifier: Apache-2.0
"""Command line of the data sets: ``python -m models_genesis.datasets COMMAND`` writes data lists."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import overlap, prepare
from .datalist import DatasetSummary, write_datalist
from .io import dicom_seg
from .io.csv_file import printable
from .layouts import (
    brats,
    cadpe,
    candidate_list,
    case_checks,
    fumpe,
    image_folder,
    lidc,
    lits,
    luna16,
    luna16_candidates,
    msd,
    nnunet_raw,
    pairs,
    rspect,
)
from .phantom import write_brats, write_decathlon, write_emboli, write_luna16


@dataclass(frozen=True)
class Command:
    """One command: what it says of itself, its own arguments, and what it does; ``run`` returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def listing(list_scans: Callable[[argparse.Namespace], DatasetSummary]) -> Callable[[argparse.Namespace], int]:
    """Make a command that lists scans: it prints the summary, writes the report and the data list."""

    def run(arguments: argparse.Namespace) -> int:
        found = list_scans(arguments)
        print(found.table())
        if arguments.report:
            found.write_report(arguments.report)
        write_datalist(arguments.out, found.datalist(arguments.absolute))
        print(f"written: {arguments.out}")
        return 0

    return run


def _listing_arguments(
    own: Callable[[argparse.ArgumentParser], None], one_folder: bool = True
) -> Callable[[argparse.ArgumentParser], None]:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        if one_folder:
            parser.add_argument("--root", required=True, help="folder of the scans")
        parser.add_argument("--out", required=True, metavar="JSON", help="the data list to write")
        parser.add_argument("--absolute", action="store_true", help="write absolute paths, not relative to --root")
        parser.add_argument("--report", metavar="CSV", help="write what became of each scan")
        own(parser)

    return add_arguments


COMMANDS: dict[str, Command] = {
    "phantom": Command(
        "write the built-in phantom as a data set", write_decathlon.add_arguments, write_decathlon.run_phantom
    ),
    "phantom-brain": Command(
        "write the built-in phantom of brain MR with tumours as a data set",
        write_brats.add_arguments,
        write_brats.run,
    ),
    "phantom-emboli": Command(
        "write the built-in phantom's pulmonary angiograms with emboli and candidates as a data set",
        write_emboli.add_arguments,
        write_emboli.run,
    ),
    "phantom-luna16": Command(
        "write the built-in phantom in the raw layout of LUNA16", write_luna16.add_arguments, write_luna16.run
    ),
    "luna16": Command(
        "list the scans of LUNA16, split by fold",
        _listing_arguments(luna16.add_arguments),
        listing(luna16.list_scans),
    ),
    "luna16-candidates": Command(
        "list the scans of LUNA16 with its candidates, for false-positive reduction",
        _listing_arguments(luna16_candidates.add_arguments),
        listing(luna16_candidates.list_scans),
    ),
    "candidates": Command(
        "list any folder of CT with a candidate table, split by patient",
        _listing_arguments(candidate_list.add_arguments),
        listing(candidate_list.list_scans),
    ),
    "fumpe": Command(
        "make candidates of FUMPE's angiograms and masks of emboli, split by patient",
        _listing_arguments(fumpe.add_arguments),
        listing(fumpe.list_scans),
    ),
    "cadpe": Command(
        "make candidates of CAD-PE's angiograms and masks of emboli, split by patient",
        _listing_arguments(cadpe.add_arguments),
        listing(cadpe.list_scans),
    ),
    "rspect": Command(
        "list the angiograms of RSPECT with the labels of their studies (no candidates)",
        _listing_arguments(rspect.add_arguments),
        listing(rspect.list_scans),
    ),
    "folder": Command(
        "list any folder tree of scans, split by patient",
        _listing_arguments(image_folder.add_arguments),
        listing(image_folder.list_scans),
    ),
    "lits": Command(
        "list the volumes and segmentations of LiTS, split by index",
        _listing_arguments(lits.add_arguments),
        listing(lits.list_scans),
    ),
    "lidc": Command(
        "cut nodule cubes with the readers' consensus from LIDC-IDRI, split by patient",
        _listing_arguments(lidc.add_arguments),
        listing(lidc.list_scans),
    ),
    "brats": Command(
        "list the cases of BraTS of any year, split by patient",
        _listing_arguments(brats.add_arguments),
        listing(brats.list_scans),
    ),
    "msd": Command(
        "list a task of the Medical Segmentation Decathlon from its dataset.json, split by patient",
        _listing_arguments(msd.add_arguments),
        listing(msd.list_scans),
    ),
    "nnunet": Command(
        "list a data set of nnU-Net v2 from its dataset.json, split by nnU-Net's folds or by patient",
        _listing_arguments(nnunet_raw.add_arguments),
        listing(nnunet_raw.list_scans),
    ),
    "pairs": Command(
        "list any two folders of images and label maps of the same names, split by patient or by a given fold",
        _listing_arguments(pairs.add_arguments, one_folder=False),
        listing(pairs.list_scans),
    ),
    "dicom-seg": Command(
        "turn a bundle's label map of a DICOM series into a DICOM segmentation", dicom_seg.add_arguments, dicom_seg.run
    ),
    "prepare": Command(
        "prepare the scans of a data list once, into a store that pretraining reads", prepare.add_arguments, prepare.run
    ),
    "overlap": Command(
        "name scans that are twice in a store, or in a store and in the data list of a task; exit code 1 where there"
        " are such, 3 where there are none but scans that could not be compared",
        overlap.add_arguments,
        overlap.run,
    ),
    "check": Command(
        "load every case of a segmentation data list and name the bad ones", case_checks.add_arguments, case_checks.run
    ),
}
"""All commands by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: command line, by default the process's own.

    Returns:
        Exit code: 0, or 2 after one line on stderr that says what was wrong; what a command says otherwise, such as 1
        where ``check`` or ``overlap`` found something, is in its help.
    """
    parser = argparse.ArgumentParser(prog="python -m models_genesis.datasets", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name, help=command.help, description=command.help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_arguments(subparser)
    parsed = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return COMMANDS[parsed.command].run(parsed)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
    except (ArithmeticError, MemoryError, RecursionError, csv.Error) as error:  # of files that are no such files
        print(f"error: {type(error).__name__}: {printable(str(error))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
