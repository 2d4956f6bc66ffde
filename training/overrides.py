# SPDX-License-Identifier: Apache-2.0
"""Refuses command-line overrides that no config knows."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable, Sequence

from monai.bundle import ConfigParser

__all__ = ["UnknownOverrideError", "refuse_unknown_overrides"]

# The arguments of `python -m monai.bundle run` itself, and those it passes on to its workflow.
_RUN_ARGUMENTS = frozenset(
    {
        "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
        "workflow_type", "workflow_name", "properties_path", "experiment_name", "tracking_uri", "run_name",
        "save_execute_config",
    }
)  # fmt: skip


class UnknownOverrideError(ValueError):
    """An override on the command line that would change nothing."""


def refuse_unknown_overrides(arguments: Sequence[str] | None = None) -> None:
    """Raise if ``python -m monai.bundle run`` was given a ``--key`` that none of its config files has.

    MONAI accepts such a key silently: ``--epoch 1`` trains the default number of ``--epochs``. Outside of that command
    (``ConfigWorkflow`` in Python, MONAI Label) nothing is checked.

    Args:
        arguments: the command line, program first; None takes that of this process.

    Raises:
        UnknownOverrideError: naming the unknown keys and the nearest known ones.
    """
    arguments = sys.argv if arguments is None else arguments
    program = arguments[0].replace("\\", "/") if arguments else ""
    if not program.endswith("monai/bundle/__main__.py"):
        return
    options = _options(arguments[1:])
    args_file = options.pop("args_file", None)
    from_file = ConfigParser.load_config_file(args_file) if args_file is not None else {}
    config_files = _as_list(options.get("config_file", from_file.get("config_file", [])))
    contents = [ConfigParser.load_config_file(name) for name in config_files]
    known = {_top_level(key) for content in contents for key in content} | _RUN_ARGUMENTS
    given = [*options, *from_file]
    unknown = sorted({key for key in given if _top_level(key) not in known})
    if unknown:
        raise UnknownOverrideError(_message(unknown, known, config_files))


def _options(arguments: Sequence[str]) -> dict[str, str | None]:
    """The ``--key value`` and ``--key=value`` pairs, as fire reads them."""
    options: dict[str, str | None] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            key, separator, value = argument[2:].partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else None
            options[key.replace("-", "_")] = value if separator else following
    return options


def _as_list(config_file: str | Sequence[str] | None) -> list[str]:
    if not isinstance(config_file, str):
        return list(config_file or [])
    return [str(name) for name in ast.literal_eval(config_file)] if config_file.startswith("[") else [config_file]


def _top_level(key: str) -> str:
    return key.lstrip("+").replace("::", "#").split("#")[0]


def _message(unknown: Iterable[str], known: set[str], config_files: Sequence[str]) -> str:
    lines = []
    for key in unknown:
        near = difflib.get_close_matches(_top_level(key), sorted(known), n=1)
        lines.append(f"--{key}" + (f" (did you mean --{near[0]}?)" if near else ""))
    return f"{', '.join(lines)}: not in {', '.join(map(str, config_files))}, so it would change nothing"
