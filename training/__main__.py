# SPDX-License-Identifier: Apache-2.0
"""Command line of training: ``python -m models_genesis.training help BUNDLE`` prints a bundle's keys."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .engines.bundle_keys import describe_keys


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: command line, by default the process's own.

    Returns:
        Exit code: 0; 2 after one line on stderr that says what was wrong.
    """
    parser = argparse.ArgumentParser(prog="python -m models_genesis.training")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("help", help="print the keys of a bundle: values, defaults and what they do")
    command.add_argument("bundle", type=Path, help="folder of the bundle")
    command.add_argument("keys", nargs="*", help="names, such as epochs; all by default")
    parsed = parser.parse_args(arguments)
    try:
        print(describe_keys(parsed.bundle, parsed.keys, min(shutil.get_terminal_size().columns, 120)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
