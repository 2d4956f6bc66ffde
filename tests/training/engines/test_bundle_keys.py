# SPDX-License-Identifier: Apache-2.0
"""The cards' tables of keys are those of the configs, and ``help`` prints them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from models_genesis.training.__main__ import main
from models_genesis.training.engines.bundle_keys import describe_keys, read_bundle_keys
from models_genesis.training.engines.moved_keys import MOVED_KEYS
from models_genesis.training.engines.option_types import is_expression

BUNDLES = sorted(path.parents[1] for path in Path(__file__).resolve().parents[3].glob("bundles/*/configs/train.json"))


def defaults_of(bundle: Path, name: str) -> list[Any]:
    """What the configs of the three stages have for a key."""
    contents = [
        json.loads((bundle / "configs" / f"{stage}.json").read_text()) for stage in ("train", "evaluate", "inference")
    ]
    found = [content[name] for content in contents if name in content]
    parsers = [parser for parser in map(ConfigParser, contents) if "#" in name and parser.get(name.rpartition("#")[0])]
    moved = {key.id: key.default for key in MOVED_KEYS.values()}  # Python's default where the config says none
    return found + [parser.get(name, moved.get(name)) for parser in parsers]


def literal(words: str) -> Any:
    try:
        return ast.literal_eval(words)
    except (ValueError, SyntaxError):
        return None if words == "none" else words


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_card_tells_the_default_of_each_key(bundle):
    """A plain default is the config's; what a config computes, or leaves to Python (None), the card says in words."""
    keys = read_bundle_keys(bundle)
    assert len({key.name for key in keys}) == len(keys) > 25
    for key in keys:
        defaults = defaults_of(bundle, key.name)
        assert defaults, f"--{key.name} is in no config"
        if all(default is None or is_expression(default) for default in defaults):
            continue
        if key.default not in ("equal", "validation; testing in inference.json"):
            assert key.default in defaults or literal(key.default) in defaults, key.name  # 2018 may be a name
        assert key.expected, key.name


def test_help_prints_values_default_and_meaning(capsys):
    assert main(["help", str(BUNDLES[2]), "epochs", "spacing"]) == 0
    printed = capsys.readouterr().out
    assert "--epochs   a whole number of 1 or more; default: 200" in printed
    assert "--spacing   a list of 3, each a number above 0, or None; default: none" in printed
    assert "--learning_rate" not in printed
    nested = describe_keys(BUNDLES[2], ["keep_last"])  # by its former name
    assert nested.startswith(
        "--train#run#keep_last   a whole number of 1 or more; default: 2   (not in inference.json)"
    )
    assert describe_keys(BUNDLES[2], ["--epochs", "warmup_epochs"]).count("length; the rate rises") == 1
    assert all(f"--{key.name} " in describe_keys(BUNDLES[2]) for key in read_bundle_keys(BUNDLES[2]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["epoch"], "did you mean --epochs?"), (["nothing_like_it"], "found none of that name")],
)
def test_a_key_that_is_not_there_is_named(arguments, message, capsys):
    assert main(["help", str(BUNDLES[0]), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --{arguments[0]}: expected a key of {BUNDLES[0].name}") and message in error


def test_another_folder_is_refused(tmp_path, capsys):
    assert main(["help", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: expected the folder of a bundle with docs/README.md" in capsys.readouterr().err
    (tmp_path / "docs").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("# Nothing\n")
    (tmp_path / "configs" / "train.json").write_text("{}")
    assert main(["help", str(tmp_path)]) == 2
    assert "expected a table of keys" in capsys.readouterr().err
