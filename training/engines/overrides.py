# SPDX-License-Identifier: Apache-2.0
"""Refuses overrides that no config knows, or whose type is wrong, and converts texts that mean something else."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from .moved_keys import MOVED_KEYS, MovedKey
from .option_types import OPTION_KINDS, Kind, OptionTypeError, convert_option, is_expression, kind_like
from .running_workflow import running_workflow

__all__ = ["UnknownOverrideError", "refuse_unknown_overrides"]

logger = logging.getLogger(__name__)

# The arguments of `python -m monai.bundle run` itself, those it passes on to its workflow, and what --tracking adds.
_RUN_ARGUMENTS = frozenset(
    {
        "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
        "workflow_type", "workflow_name", "properties_path", "experiment_name", "tracking_uri", "run_name",
        "save_execute_config", "is_not_rank0",
    }
)  # fmt: skip

_PROGRAM = frozenset({"imports", "initialize", "run", "finalize", "_meta_"})
"""Keys of a config that hold what is done, not settings."""

_GONE = {
    "early_stop": "give early_stop_patience; what is better follows from the evaluator's metric_cmp_fn",
    "inferer": "it is train#inferer",
    "loaded_settings": "settings of weights are read from the model.json next to them",
    "metric_name": "it is train#run#metric",
    "probe": "it is train#run#probe",
    "rank": "torch.distributed tells it",
    "world_size": "torch.distributed tells it",
}
"""Keys that trainings had, and what stands for them: in a config file of the user's own they would change nothing."""

_WRITTEN_FOLDERS = frozenset({"bundle_root", "output_dir", "ckpt_dir", "cache_dir"})
"""Keys of folders that a run makes where there are none, so that a changed name would not be noticed."""

_LARGEST_CONFIG = 2**20
"""Bytes of a config at most; a data list may lie in the same folder."""

_MISSING = object()


class UnknownOverrideError(ValueError):
    """An override that would change nothing."""


def refuse_unknown_overrides(arguments: Sequence[str] | None = None) -> None:
    """Check the overrides of a run before it does anything; the first entry of every config's ``run``.

    * A ``--key`` of ``python -m monai.bundle run`` that none of its config files has is an error. MONAI accepts it
      silently: ``--epoch 1`` trains the default number of ``--epochs``. So is a key below ``train`` or ``validate``
      that nothing refers to.
    * Each value, also below nested ids and in config files of the user's own, must be of its key's type. A text that
      means such a value without doubt is converted: ``--tumour false``, ``--spacing none``, ``--epochs "5"``.
    * ``--key None``, which MONAI drops, sets None.

    In a ``ConfigWorkflow`` made in Python types are checked too. A top-level key that nothing uses is refused there if
    it is nearly one of the bundle's, such as ``epoch``, and else there is a warning.

    Args:
        arguments: the command line, program first; None takes that of this process.

    Raises:
        UnknownOverrideError: naming the unknown keys and the nearest known ones.
        OptionTypeError: naming the key, what was expected and what was found. So is a config file of slices, such as
            ``configs/2d.json``, where a later file takes what the weights say, and they are of another network.
    """
    arguments = sys.argv if arguments is None else arguments
    program = arguments[0].replace("\\", "/") if arguments else ""
    given = _options(arguments[1:]) if program.endswith("monai/bundle/__main__.py") else {}
    contents = _refuse_unknown_keys(dict(given)) if given else {}
    workflow = running_workflow()
    if workflow is not None:
        convert_settings(workflow, given)
        _refuse_other_slices(workflow, contents)


def _refuse_unknown_keys(options: dict[str, str | None]) -> dict[str, dict[str, Any]]:
    """Refuse options that none of the config files has; it returns the files' contents by name."""
    args_file = options.pop("args_file", None)
    from_file = ConfigParser.load_config_file(args_file) if args_file is not None else {}
    config_files = _as_list(options.get("config_file", from_file.get("config_file", [])))
    contents = [ConfigParser.load_config_file(name) for name in config_files]
    known = {_top_level(key) for content in contents for key in content} | _RUN_ARGUMENTS
    given = [*options, *from_file]
    unknown = sorted({key for key in given if _top_level(key) not in known})
    if any("train" in content for content in contents):
        _refuse_gone_keys({"train": None, **{_top_level(key): None for key in unknown}}, contents)
    _refuse_moved_keys(map(_top_level, unknown), contents)
    if unknown:
        raise UnknownOverrideError(_message(unknown, known, config_files))
    return dict(zip(config_files, contents, strict=True))


def convert_settings(workflow: ConfigWorkflow, given: Mapping[str, str | None] | None = None) -> dict[str, Any]:
    """Check and convert the settings of a workflow; the config files of its bundle tell their types.

    Args:
        workflow: whose config is changed where a text meant another type. What it evaluated before is evaluated again
            then.
        given: the options of the command line, of which ``None`` is what MONAI drops.

    Returns:
        The converted values by id.

    Raises:
        OptionTypeError: when a value does not have the type of its key.
        UnknownOverrideError: when a key changes nothing.
    """
    parser = workflow.parser
    files = _bundle_configs(workflow.config_root_path)
    dropped = [key for key, text in (given or {}).items() if text == "None" and _top_level(key) not in _RUN_ARGUMENTS]
    changes: dict[str, Any] = {_id(key): None for key in dropped}
    content: Any = parser.config
    config = {key: value for key, value in content.items() if key not in _PROGRAM}
    for path, value in _walk(config, ()):
        key = "#".join(path)
        if key not in changes:
            converted = _convert(path, value, files, (given or {}).get(path[0]))
            if converted is not value and (type(converted) is not type(value) or converted != value):
                changes[key] = converted
    for key in dropped:
        changes[_id(key)] = _convert(tuple(_id(key).split("#")), None, files)
    _refuse_gone_keys(config, files)
    text = json.dumps(config, default=str)
    _refuse_moved_keys((key for key in config if not re.search(rf"@{re.escape(key)}\b", text)), [config])
    _refuse_idle_keys(config, files)
    if not given:
        _refuse_misspelt_keys(workflow, files)
    for key, value in changes.items():
        logger.info("--%s is read as %r", key, value)
        parser.set(value, key)
    _check_sides(workflow)
    _check_voxels(workflow)
    return changes


def _check_sides(workflow: ConfigWorkflow) -> None:
    """Refuse a cube of two sides without the axis that slices stand across, and one of three with it."""
    config: Any = workflow.parser.config
    sliced = "slice_axis" in config
    if "cube_size" not in config or (is_expression(config["cube_size"]) and not sliced):
        return
    sides = workflow.parser.get_parsed_content("cube_size")
    axis = workflow.parser.get_parsed_content("slice_axis") if sliced else None
    wanted = 3 if axis is None else 2
    if len(sides) != wanted:
        slices = "of which --slice_axes takes slices"
        slices = "two where --slice_axis is 0, 1 or 2, as with configs/2d.json" if sliced else slices
        expected = f"a list of 3 sides, {slices}" if axis is None else f"a list of 2 sides, for --slice_axis is {axis}"
        raise OptionTypeError(f"--cube_size: expected {expected}, found {list(sides)}")


def _check_voxels(workflow: ConfigWorkflow) -> None:
    """Refuse slices across several axes through voxels whose sides are not known to be equal.

    They are channels of one image, of which a pixel would have other sides in each.
    """
    config: Any = workflow.parser.config
    if "slice_axes" not in config or "spacing" not in config:
        return
    axes = workflow.parser.get_parsed_content("slice_axes")
    vessel = "vessel" in config and workflow.parser.get_parsed_content("vessel")  # its cubes have equal sides
    if axes is None or len(axes) < 2 or vessel:
        return
    spacing = workflow.parser.get_parsed_content("spacing")
    if spacing is None or len(set(spacing)) > 1:
        raise OptionTypeError(
            f"--spacing: expected three equal sides in mm for slices across several axes, --slice_axes {list(axes)}, "
            f"such as [1.0, 1.0, 1.0], found {spacing}. A later config file, such as configs/paper.json, may have set "
            "it"
        )


def _refuse_other_slices(workflow: ConfigWorkflow, contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse weights of other slices than a config file says, where a later file takes the slices from the weights.

    Args:
        workflow: the workflow.
        contents: of its config files, by name.
    """
    config: Any = workflow.parser.config
    for key in ("slice_axis", "slice_axes"):
        for name, content in contents.items() if is_expression(config.get(key)) else ():
            asked = content.get(key)
            if asked is None or is_expression(asked):
                continue
            if asked != (trained := workflow.parser.get_parsed_content(key)):
                raise OptionTypeError(
                    f"--{key}: {name} says {asked}, the weights are for {trained} by their model.json, or have none. "
                    f"Leave {name} out to take what the weights were trained with; for weights without model.json give "
                    "it as the last config file"
                )


def _bundle_configs(folder: Path) -> list[dict[str, Any]]:
    """Read a bundle's own configs, with the macros of each in place; other files of the folder are passed over."""
    contents: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        if path.stem == "metadata" or path.stem.startswith("monailabel") or path.stat().st_size > _LARGEST_CONFIG:
            continue
        try:
            parser = ConfigParser(json.loads(path.read_text(encoding="utf-8")))
            parser.resolve_macro_and_relative_ids()
        except (OSError, ValueError, KeyError, RecursionError):
            continue
        content: Any = parser.config
        if isinstance(content, dict):
            contents.append(content)
    return contents


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Go through a config: its top-level keys, and below them all plain values and those of a declared kind."""
    if len(path) == 1 or not isinstance(value, dict | list) or "#".join(path) in OPTION_KINDS:
        yield path, value
    if isinstance(value, dict):
        for key, each in value.items():
            # an overlay's nested id may be left as a key where MONAI did not merge it
            yield from _walk(each, (*path, *_id(str(key)).split("#")))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _walk(each, (*path, str(index)))


def _id(key: str) -> str:
    return key.lstrip("+").replace("::", "#")


def _at(config: Any, path: Sequence[str]) -> Any:
    """Look up a value in a config, whose keys may be nested ids themselves."""
    if not path:
        return config
    if isinstance(config, list):
        return _at(config[int(path[0])], path[1:]) if path[0].isdigit() and int(path[0]) < len(config) else _MISSING
    if not isinstance(config, dict):
        return _MISSING
    for length in range(len(path), 0, -1):
        key = "#".join(path[:length])
        for written in (key, f"+{key}"):
            if written in config and (found := _at(config[written], path[length:])) is not _MISSING:
                return found
    return _MISSING


def _convert(path: tuple[str, ...], value: Any, files: Sequence[Any], raw: str | None = None) -> Any:
    """Convert one value by the defaults that the bundle's configs have for it, or refuse it."""
    key = "#".join(path)
    defaults = [found for file in files if (found := _at(file, path)) is not _MISSING]
    typed = [default for default in defaults if kind_like(default) is not None]
    if len(path) == 1 and raw is not None:
        kind = OPTION_KINDS.get(key) or next(map(kind_like, typed), None)
        value = _as_written(key, value, raw) if kind is not None and "a text" in kind.expected else value
    if key in _WRITTEN_FOLDERS and "::" in str(value) and not is_expression(value):
        _refuse_number_sign(key, str(value))
    if any(type(value) is type(default) and value == default for default in defaults) or is_expression(value):
        return value
    if len(path) == 1:
        return _first(key, value, typed or [None])
    if key in OPTION_KINDS:
        return OPTION_KINDS[key].convert(key, value)
    kinds = [kind for default in defaults if (kind := _nested_kind(default, value, files)) is not None]
    if not kinds:
        return convert_option("", value)
    errors = []
    for kind in kinds:
        try:
            return kind.convert(key, value)
        except OptionTypeError as error:
            errors.append(error)
    raise errors[0]


def _as_written(key: str, value: Any, raw: str) -> Any:
    """Take a name as it was written, of which fire makes Python: 1.1 of ``1.10``, one number of ``2024_11_28``.

    Args:
        key: what the message calls it.
        value: what fire made of it.
        raw: the text on the command line.

    Raises:
        OptionTypeError: when the name has a ``#``, which neither fire nor MONAI keeps.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float) or is_expression(value):
        return value
    if "#" in raw:
        _refuse_number_sign(key, raw)
    try:
        return value if isinstance(ast.literal_eval(raw), str) else raw  # a name in quotes of its own
    except (ValueError, SyntaxError):
        return raw


def _refuse_number_sign(key: str, name: str) -> None:
    raise OptionTypeError(
        f"--{key}: expected a name without #, found {name!r}: fire takes it for a comment, MONAI writes :: for it, "
        "so that another folder or file would be taken. Rename it, or give a link to it"
    )


def _first(key: str, value: Any, defaults: Sequence[Any]) -> Any:
    """Convert by the first default whose type fits."""
    errors = []
    for default in defaults:
        try:
            return convert_option(key, value, default)
        except OptionTypeError as error:
            errors.append(error)
    raise errors[0]


def _nested_kind(default: Any, value: Any, files: Sequence[Any]) -> Kind | None:
    """Give the kind that an argument of a component has by its default, where that can be told.

    Arguments of MONAI's components often take several types (one number or one for each axis), so that only switches,
    numbers given as texts, and switches given for numbers are held to it.
    """
    if isinstance(default, str) and default[:1] == "@":
        key = default[1:]
        kinds = [OPTION_KINDS.get(key), *(kind_like(file.get(key)) for file in files)]
        return next((kind for kind in kinds if kind is not None), None)
    kind = kind_like(default)
    if isinstance(default, bool) or (isinstance(value, str) and not isinstance(default, str)):
        return kind
    if isinstance(default, int | float) and isinstance(value, bool):
        return kind
    return None


def _refuse_gone_keys(config: Mapping[str, Any], files: Sequence[Mapping[str, Any]]) -> None:
    """Refuse keys of a training that its bundle had in earlier versions, in a config file of the user's own too."""
    if "train" not in config:
        return
    known = {key for file in files if "train" in file for key in file}
    for key, instead in _GONE.items():
        if key in config and key not in known:
            raise UnknownOverrideError(
                f"--{key}: not a key of this bundle any more, so it would change nothing: {instead}"
            )


def _refuse_moved_keys(keys: Iterable[str], configs: Sequence[Mapping[str, Any]]) -> None:
    """Refuse top-level keys that are set at a nested id now, where a config has the component that takes them."""
    for key in keys:
        moved = MOVED_KEYS.get(key)
        if moved is None:
            continue
        if any(_takes(config, moved) for config in configs):
            raise UnknownOverrideError(
                f"--{key}: not a key of this bundle any more, so it would change nothing: it is --{moved.id} now"
            )


def _takes(config: Mapping[str, Any], moved: MovedKey) -> bool:
    """Tell whether a config has the component that takes a moved key, and does not refer to another key there."""
    *parents, last = moved.id.split("#")
    owner, value = _at(config, [*parents, "_target_"]), _at(config, [*parents, last])
    return isinstance(owner, str) and owner.endswith(moved.owner) and not str(value).startswith("@")


def _refuse_idle_keys(config: Mapping[str, Any], files: Sequence[Any]) -> None:
    """Refuse keys of the sections ``train`` and ``validate`` that no config of the bundle has and nothing refers to."""
    text = json.dumps(config, default=str).replace("::", "#")
    for section in ("train", "validate"):
        part = config.get(section)
        known = {key for file in files if isinstance(found := _at(file, (section,)), dict) for key in found}
        known |= {key.split("#")[1] for file in files for key in file if _id(key).startswith(f"{section}#")}
        idle = [
            key for key in part or {} if key not in known and not re.search(rf"@{section}#{re.escape(key)}\b", text)
        ]
        if idle and known:
            near = difflib.get_close_matches(idle[0], sorted(known), n=1)
            hint = f" (did you mean --{section}#{near[0]}?)" if near else ""
            raise UnknownOverrideError(f"--{section}#{idle[0]}{hint}: not in the bundle's configs, and nothing uses it")


def _refuse_misspelt_keys(workflow: ConfigWorkflow, files: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a top-level key that nothing uses and that is nearly one of the bundle's; warn of others.

    A workflow does not tell which keys were given as arguments and which stand in a config file of the user's own,
    where a key may be a note, be used by a macro, or serve another program. So only what looks like a slip is refused.
    """
    if not (workflow.config_root_path / "metadata.json").is_file():
        return  # the first config file is none of a bundle's, so that the bundle's keys are not known here
    content: Any = workflow.parser.config
    text = json.dumps(content, default=str).replace("::", "#")
    known = {_top_level(key) for file in files for key in file}
    own = _RUN_ARGUMENTS | {workflow.init_id, workflow.run_id, workflow.final_id}
    for key in map(_top_level, content):
        if key in known | own or key[:1] == "_" or re.search(rf"[@%#]{re.escape(key)}\b", text):
            continue
        if near := difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.8):
            raise UnknownOverrideError(
                f"{key} (did you mean {near[0]}?): not in the bundle's configs, and nothing uses it"
            )
        logger.warning("%s is not in the bundle's configs, and nothing of the config uses it", key)


def _options(arguments: Sequence[str]) -> dict[str, str | None]:
    """The ``--key value`` and ``--key=value`` pairs, as fire reads them."""
    options: dict[str, str | None] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--") or (argument[:1] == "-" and argument[1:2].isalpha()):
            key, separator, value = argument.lstrip("-").partition("=")
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
