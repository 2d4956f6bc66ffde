# SPDX-License-Identifier: Apache-2.0
"""Copy a bundle for a MONAI Label app, with settings of your own, and with the label names that follow from them.

MONAI Label reads a bundle's files and takes no overrides, so settings such as ``features``, ``task`` or ``tumour`` are
written into the copy's configs, and the channels and label names of ``metadata.json`` are made to agree::

    python label/copy_bundle.py bundles/genesis_msd_segmentation app/model/pancreas_segmentation \
        --set task=Task07_Pancreas --weights model.pt

MONAI Label tells by the folder's name what a bundle is for: keep ``_segmentation`` at its end.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from models_genesis.networks.network_def import rare_arguments
from models_genesis.training import (
    ModelSettingsError,
    convert_option,
    read_model_settings,
    recorded_overrides,
)
from models_genesis.training.engines.bundle_metadata import describe_channels
from models_genesis.training.engines.component_arguments import holder
from models_genesis.training.engines.model_settings import check_config_settings
from models_genesis.training.engines.moved_keys import now_at

CONFIGS = ("train", "inference")
"""The configs that MONAI Label reads."""

PATHS_OF_SCANS = "monailabel_train.json"
"""The config that MONAI Label writes for a training on several GPUs, with the paths of all scans; it is not copied."""


def copy_bundle(source: Path, target: Path, settings: Mapping[str, Any], weights: Path | None = None) -> None:
    """Copy a bundle.

    Args:
        source: folder of the bundle.
        target: folder of the copy, which must not exist.
        settings: values by key; each must be a top-level key of ``train.json`` or of ``inference.json``, or a nested
            id of a component that one of them has, such as ``train#run#keep_last``.
        weights: the copy's ``models/model.pt``; by default those of the bundle, if it has any that were trained with
            these settings. The settings that they were trained with come along, and fine-tuning goes on with them.

    Raises:
        FileExistsError: when the copy exists.
        FileNotFoundError: when the bundle or the weights are missing.
        ValueError: when no config has a key, a value has another type than its key, or the weights were trained with
            other settings.
    """
    configs = {name: source / "configs" / f"{name}.json" for name in (*CONFIGS, "metadata")}
    if missing := [str(path) for path in (*configs.values(), weights) if path is not None and not path.is_file()]:
        raise FileNotFoundError(f"{source}: expected {missing}, found no such files")
    contents = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in configs.items()}
    trained = weights if weights is not None else source / "models" / "model.pt"
    recorded = read_model_settings(trained.parent, trained.name)
    settings = {key: convert_option(key, value, contents["train"].get(key)) for key, value in settings.items()}
    enclosed = weights is None
    try:
        check_config_settings(recorded, contents["inference"], settings)
    except ModelSettingsError as error:
        if not enclosed:
            raise
        print(f"{trained}: left out of the copy. {error}")
        recorded, enclosed = {}, False
    train = ConfigParser(contents["train"])
    train.update(recorded_overrides(contents["train"], recorded))
    contents["train"] = train.config
    settings = {**rare_arguments(recorded), **settings}  # of the network, which inference has to be told
    for key, value in settings.items():
        having = [found for name in CONFIGS if (found := holder(contents[name], key)) is not None]
        if not having:
            raise ValueError(
                f"{source}: expected {key!r} to be a key of train.json or inference.json, found no such key"
                f"{now_at(key)}"
            )
        for component, last in having:
            component[last] = value
    if source.name.endswith("_segmentation"):
        describe_channels({**contents["inference"], "model_settings": recorded}, contents["metadata"])
    left_out = () if enclosed else ("model.pt", "model.json", "birth_certificate.json")
    if target.exists():
        raise FileExistsError(f"{target}: expected no such file or folder, found one")
    target.parent.mkdir(parents=True, exist_ok=True)
    # next to the target, which thus is whole or does not exist, wherever the copying is interrupted
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=target.parent) as scratch:
        copy = Path(scratch) / target.name
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("eval", "__pycache__", PATHS_OF_SCANS, *left_out))
        make_writable(copy)
        for name, content in contents.items():
            text = json.dumps(content, indent=4, ensure_ascii=False)
            (copy / "configs" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        if weights is not None:
            (copy / "models").mkdir(exist_ok=True)
            shutil.copyfile(weights, copy / "models" / "model.pt")
            if recorded:
                shutil.copyfile(weights.with_suffix(".json"), copy / "models" / "model.json")
        copy.replace(target)


def make_writable(folder: Path) -> None:
    """Let the owner write what was copied from a read-only folder, whose modes ``shutil.copytree`` copies, too."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def setting(text: str) -> tuple[str, Any]:
    """Read ``key=value``, the value a Python literal or else a string.

    Example:
        >>> setting("features=[8, 16]"), setting("task=Task09_Spleen")
        (('features', [8, 16]), ('task', 'Task09_Spleen'))
    """
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None takes that of this process.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("copy", type=Path, help="folder of the copy")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--weights", type=Path, metavar="PT", help="weights of the copy")
    given = parser.parse_args(arguments)
    copy_bundle(given.bundle, given.copy, dict(given.set), given.weights)
    print(f"written: {given.copy}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
