# SPDX-License-Identifier: Apache-2.0
"""Checks commands and code of the documents without running them, by the programs' own parsers."""

from __future__ import annotations

import argparse
import ast
import configparser
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import fire
from document_blocks import ROOT
from document_shell import Command
from monai.bundle import ConfigWorkflow

from models_genesis.training import refuse_unknown_overrides
from models_genesis.training.engines.overrides import convert_settings

OWN_MODULES = re.compile(r"(models_genesis|benchmarks)(\.\w+)+")
OWN_FOLDERS = re.compile(r"(benchmarks|bundles|docs|label|tests|tools)/")
RUN_ARGUMENTS = set(inspect.signature(importlib.import_module("monai.bundle.scripts").run).parameters)


class CommandError(ValueError):
    """A command that would not work as it stands."""


class _Parsed(BaseException):
    """The program has accepted its command line; it goes no further."""


def check(command: Command, incomplete: bool = False) -> None:
    """Check a command that calls ``python``, ``torchrun``, ``make`` or ``pip``, or ``srun`` with one of them.

    Relative paths count from here.

    Args:
        command: as bash hands it over.
        incomplete: whether required arguments may be missing, as in a sentence that names a command.

    Raises:
        CommandError: naming the command and what is wrong.
    """
    program, *words = command.words
    if program == "srun" and words and not words[0].startswith("-"):  # SLURM starts the rest as it stands
        program, *words = words
    try:
        if program == "python":
            _check_python(words, command.stdin, incomplete)
        elif program == "torchrun":
            launcher = importlib.import_module("torch.distributed.run").get_args_parser()
            with _one_line_for_exit():
                given = launcher.parse_args(words)
            _check_python(["-m"] * given.module + [given.training_script, *given.training_script_args], "", incomplete)
        elif program == "make":
            _run_quietly("make", "--dry-run", *words)
        elif program == "pip":
            _check_pip(words)
        else:
            raise CommandError("there is no check for this program, and the table does not say where it is run")
    except CommandError as error:
        raise CommandError(f"{command}: {error}") from error


def _check_python(words: Sequence[str], stdin: str, incomplete: bool) -> None:
    first = words[0] if words else ""
    if first in ("-", "-c"):
        check_code(stdin if first == "-" else words[1])
    elif first == "-m" and words[1:2] == ["pip"]:
        _check_pip(words[2:])
    elif first == "-m" and words[1:2] == ["monai.bundle"]:
        _check_bundle(words[2:], incomplete)
    elif first == "-m" and OWN_MODULES.fullmatch(words[1]):
        _check_program(words[1], words[2:], incomplete)
    elif first.endswith(".py") and (ROOT / first).is_file():
        _check_program(ROOT / first, words[1:], incomplete)
    else:
        raise CommandError("expected a module or a script of the project, and the table does not say where it is run")
    for option, word in zip(["", *words], words, strict=False):
        if OWN_FOLDERS.match(word) and option != "--out" and not (ROOT / word).exists():
            raise CommandError(f"expected a file of the project, found no {word}")


def _check_program(program: str | Path, words: Sequence[str], incomplete: bool) -> None:
    """Let a module or a script parse its arguments with its own parser, and stop it there."""
    parse, error = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.error

    def parse_args(self: argparse.ArgumentParser, *arguments: Any) -> None:
        if incomplete:
            _require_nothing(self)
        parse(self, *arguments)
        raise _Parsed

    def report(self: argparse.ArgumentParser, message: str) -> None:
        if incomplete and re.search(r"invalid \w+ value: '[A-Z]+'", message):
            raise _Parsed
        error(self, message)

    spec = importlib.util.find_spec(program) if isinstance(program, str) else None
    if isinstance(program, str) and spec is None:
        raise CommandError(f"No module named {program}")
    folder = str(program.parent) if isinstance(program, Path) else str(ROOT)
    before = set(sys.modules)
    with (
        mock.patch.object(sys, "argv", [str(program), *words]),
        mock.patch.object(sys, "path", [folder, *sys.path]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        mock.patch.object(argparse.ArgumentParser, "error", report),
        _one_line_for_exit(),
        contextlib.suppress(_Parsed),
    ):
        if isinstance(program, Path):
            runpy.run_path(str(program), run_name="__main__")
        else:
            # running a module that is imported already is warned of; of a package its __main__ is run, and it stays
            package = spec is not None and bool(spec.submodule_search_locations)
            module = None if package else sys.modules.pop(program, None)
            try:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
            finally:
                sys.modules.update({} if module is None else {program: module})
        raise CommandError("it has parsed no arguments")
    if isinstance(program, Path):  # scripts import their neighbours under names such as "build"
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).parent == program.parent:
                del sys.modules[name]


def _require_nothing(parser: argparse.ArgumentParser) -> None:
    """Let options and arguments be missing, of subcommands too, so that what is given is still compared."""
    for group in parser._mutually_exclusive_groups:
        group.required = False
    for action in parser._actions:
        action.required = False
        if isinstance(action, argparse._SubParsersAction):
            for each in set(action.choices.values()):
                _require_nothing(each)


@contextlib.contextmanager
def _one_line_for_exit() -> Iterator[None]:
    """Make an error of what a parser writes before it exits; ``--help`` is no error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            yield
    except SystemExit as exit_:
        if exit_.code not in (0, None):
            lines = said.getvalue().strip().splitlines() or [str(exit_.code)]
            raise CommandError(lines[-1]) from exit_


def _check_bundle(words: Sequence[str], incomplete: bool) -> None:
    """Check a command of ``python -m monai.bundle``: its name, its arguments, and the keys of the configs it names."""
    main = importlib.import_module("monai.bundle.__main__")
    name, *rest = words
    function = getattr(main, name, None)
    if not callable(function):
        raise CommandError(f"monai.bundle has no command {name}")
    given: dict[str, Any] = {}

    @functools.wraps(function)
    def note(*values: Any, **options: Any) -> None:
        bound = inspect.signature(function).bind(*values, **options)
        given.update(bound.arguments.pop("override", {}))
        given.update({key: value for key, value in bound.arguments.items() if value is not None})  # fire gives defaults

    with _one_line_for_exit():
        fire.Fire(note, command=rest)
    known = set(inspect.signature(function).parameters)
    if "config_file" in given:
        _check_keys(given, name, known)
    elif not incomplete and set(given) - known:
        raise CommandError(f"unknown: {sorted(set(given) - known)}")


def _check_keys(given: dict[str, Any], name: str, known: set[str]) -> None:
    """Check the keys that a command has for its configs, and their types, as a run does when it starts."""
    line = [
        part for key, value in given.items() if key not in known - RUN_ARGUMENTS for part in (f"--{key}", str(value))
    ]
    overrides = {key: value for key, value in given.items() if key not in known | RUN_ARGUMENTS}
    try:
        refuse_unknown_overrides(["monai/bundle/__main__.py", name, *line])
        workflow = ConfigWorkflow(config_file=given["config_file"], logging_file=False, **overrides)
        convert_settings(workflow, {key: str(value) for key, value in overrides.items()})
    except (ValueError, OSError, KeyError) as error:
        raise CommandError(f"{type(error).__name__}: {error}") from error
    for key in overrides:
        _check_nested(workflow.parser.config, key)


def _check_nested(config: Any, key: str) -> None:
    """Refuse a nested id (``a#b#c``) whose parent is not there, or is a component that does not take it."""
    *parents, _ = key.replace("::", "#").split("#")
    for part in parents:
        try:
            config = config[int(part) if isinstance(config, list) else part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CommandError(f"--{key}: there is no {part}") from error
    if (
        parents
        and isinstance(config, dict)
        and "_target_" in config
        and config["_target_"].startswith("models_genesis")
    ):
        check_call(_located(config["_target_"]), {each for each in config if not each.startswith("_")})


def _located(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _check_pip(words: Sequence[str]) -> None:
    """Check an installation: of this project, the extras that it names; of other packages, nothing is known here."""
    if words[:1] != ["install"]:
        raise CommandError("expected pip install")
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg", encoding="utf-8")
    for word in words[1:]:
        for extra in re.findall(r"^(?:\.|models-genesis)\[([^]]+)\]$", word):
            if missing := set(extra.split(",")) - set(extras["options.extras_require"]):
                raise CommandError(f"setup.cfg has no extras {sorted(missing)}")


def _run_quietly(*line: str) -> None:
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise CommandError(done.stderr.strip().splitlines()[-1])


def check_code(text: str) -> None:
    """Compile Python code, do its imports, and compare its calls of what it imported with the signatures.

    Raises:
        CommandError: naming what does not exist or is not accepted.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise CommandError(f"line {error.lineno}: {error.msg}") from error
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            try:
                exec(compile(ast.Module([node], []), "<imports>", "exec"), names)
            except ImportError as error:
                raise CommandError(str(error)) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (found := _imported(node.func, names)) is not None:
            keywords = {each.arg for each in node.keywords if each.arg is not None}
            check_call(found, keywords, len(node.args))


def _imported(node: ast.expr, names: dict[str, Any]) -> Any:
    """Find what an expression such as ``np.load`` stands for, where it begins with an imported name."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _imported(node.value, names)) is not None:
        if not hasattr(owner, node.attr):
            raise CommandError(f"{owner!r} has no {node.attr}")
        return getattr(owner, node.attr)
    return None


def check_call(function: Any, keywords: set[str], positional: int = 0) -> None:
    """Refuse a call that the signature of a function or class does not take; required arguments may be missing.

    Raises:
        CommandError: naming the function and the arguments.
    """
    try:
        inspect.signature(function).bind_partial(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise CommandError(f"{getattr(function, '__qualname__', function)}: {error}") from error
    except ValueError:  # a built-in without a signature
        return
