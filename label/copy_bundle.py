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
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from models_genesis.datasets import msd_task
from models_genesis.training import (
    ModelSettingsError,
    check_model_settings,
    convert_option,
    name_of_task,
    read_model_settings,
)
from models_genesis.training.engines.component_arguments import holder
from models_genesis.training.engines.moved_keys import now_at
from models_genesis.transforms.brats_regions import BRATS_REGIONS, brats_labels

CONFIGS = ("train", "inference")
"""The configs that MONAI Label reads."""


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
    checked = contents["inference"].get("settings_check", {}).get("given", {})
    enclosed = weights is None
    given = {key: value for key, value in settings.items() if key in checked}
    if "task" in settings:
        given["task"] = name_of_task(msd_task(settings["task"]))
    try:
        check_model_settings(recorded, given)
    except ModelSettingsError as error:
        if not enclosed:
            raise
        print(f"{trained}: left out of the copy. {error}")
        recorded, enclosed = {}, False
    for key, value in recorded.items():
        for config in (contents["train"], contents["train"].get("deformation", {})):
            if key in config:
                config[key] = value
                break
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
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("eval", "__pycache__", *left_out))
        for name, content in contents.items():
            text = json.dumps(content, indent=4, ensure_ascii=False)
            (copy / "configs" / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        if weights is not None:
            (copy / "models").mkdir(exist_ok=True)
            shutil.copy(weights, copy / "models" / "model.pt")
            if recorded:
                shutil.copy(weights.with_suffix(".json"), copy / "models" / "model.json")
        copy.replace(target)


def describe_channels(inference: Mapping[str, Any], metadata: dict[str, Any]) -> None:
    """Write the channels of the network and the labels of its label map into the metadata.

    Args:
        inference: content of ``inference.json``.
        metadata: content of ``metadata.json``, which is changed. MONAI Label takes the names of a label map's values
            from the ``channel_def`` of the output.
    """
    parser = ConfigParser(dict(inference))
    channels = {side: int(parser.get_parsed_content(f"{side}_channels")) for side in ("in", "out")}
    labels = {int(value): str(name) for value, name in parser.get_parsed_content("labels").items()}
    if "targets" in inference:
        labels = brats_names(parser.get_parsed_content("convention"), parser.get_parsed_content("targets"), labels)
    else:
        labels = {value: name for value, name in labels.items() if value < channels["out"]}
    formats = metadata["network_data_format"]
    formats["inputs"]["image"]["num_channels"] = channels["in"]
    formats["outputs"]["pred"]["num_channels"] = channels["out"]
    formats["outputs"]["pred"]["channel_def"] = {str(value): name for value, name in sorted(labels.items())}


def brats_names(convention: str, targets: Sequence[str], labels: Mapping[int, str]) -> dict[int, str]:
    """Name the values of the label map that nested BraTS regions are merged to.

    Args:
        convention: what the labels mean.
        targets: the regions that are predicted, from the outside inwards.
        labels: names of all values of the convention.

    Returns:
        Names by value; those of the regions where some are not predicted, for their voxels are in others then.

    Example:
        >>> brats_names("2018", ["whole tumour"], {1: "necrosis", 2: "oedema", 4: "enhancing tumour"})
        {0: 'background', 2: 'whole tumour'}
    """
    count = len(targets)
    nested = np.triu(np.ones((count, count + 1), np.uint8), 1).reshape(count, 1, 1, count + 1)
    values = [int(value) for value in np.ravel(brats_labels(nested, convention, targets))]
    names = [labels[value] for value in values[1:]] if count == len(BRATS_REGIONS) else list(targets)
    return dict(zip(values, ["background", *names], strict=True))


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
