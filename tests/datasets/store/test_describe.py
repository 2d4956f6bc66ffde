# SPDX-License-Identifier: Apache-2.0
"""Other settings have other descriptions, the same settings the same one in every process, or a refusal by name."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad, NormalizeIntensityd, ScaleIntensityRanged
from monai.utils import optional_import

from models_genesis.datasets.store.describe import describe
from models_genesis.datasets.store.settings import settings_of_steps

BUNDLES = sorted((Path(__file__).resolve().parents[3] / "bundles").glob("genesis_*"))
PREPROCESSING = ("train#preprocessing", "validate#preprocessing")


class Slots:
    """An object without a dictionary."""

    __slots__ = ("high",)

    def __init__(self, high):
        self.high = high


class Scale:
    """An object whose method is given."""

    def __init__(self, high):
        self.high = high

    def clip(self, scan):
        return scan.clip(-self.high, self.high)


def closure(high):
    return lambda scan: scan.clip(-high, high)


def nested(high):
    def clip(scan):
        return [part.clip(-high, high) for part in scan]

    return lambda scan: clip(scan)


def default(high):
    return lambda scan, limit=high: scan.clip(-limit, limit)


def keyword_default(high):
    def clip(scan, *, limit=high):
        return scan.clip(-limit, limit)

    return clip


def source(text, **names):
    """A function of a user's module."""
    return eval(text, {"np": np, "__name__": "my_scripts", **names})


def helper(high):
    names = {"__name__": "my_scripts"}
    exec(f"def limit(scan):\n    return scan.clip(-{high}, {high})\ndef clip(scan):\n    return limit(scan)", names)
    return names["clip"]


def in_module(high):
    module = types.ModuleType("my_settings")
    module.HIGH = high
    return source("lambda scan: scan.clip(-my_settings.HIGH, my_settings.HIGH)", my_settings=module)


def expression(high, text="$lambda scan: scan.clip(-1000, @hu_max)"):
    step = {"_target_": "Lambdad", "keys": "image", "func": text}
    parser = ConfigParser({"hu_max": high, "other": [high], "step": step})
    return parser.get_parsed_content("step")


FUNCTIONS = {
    "partial's keyword": lambda high: functools.partial(np.clip, a_min=0, a_max=high),
    "partial's argument": lambda high: functools.partial(operator.mul, high),
    "partial's function": lambda high: functools.partial(np.add if high == 1000 else np.subtract, 1),
    "partial of a partial": lambda high: functools.partial(functools.partial(np.clip, a_max=high), a_min=0),
    "closure": closure,
    "closure in a closure": nested,
    "default": default,
    "keyword's default": keyword_default,
    "constant": lambda high: source(f"lambda scan: scan.clip(-{high}, {high})"),
    "constant in a comprehension": lambda high: source(f"lambda scan: [part + {high} for part in scan]"),
    "global": lambda high: source("lambda scan: scan.clip(-HIGH, HIGH)", HIGH=high),
    "global in a comprehension": lambda high: source("lambda scan: [part + HIGH for part in scan]", HIGH=high),
    "global array": lambda high: source("lambda scan: scan + HIGH", HIGH=np.full(3, high)),
    "global of a module": in_module,
    "global of a class": lambda high: source("lambda scan: scan + S.high", S=type("S", (), {"high": high})),
    "function that it calls": helper,
    "attribute's name": lambda high: source("lambda scan: scan.min()" if high == 1000 else "lambda scan: scan.max()"),
    "method": lambda high: Scale(high).clip,
    "method of compiled code": lambda high: np.full(3, high).clip,
    "numpy's functions": lambda high: np.abs if high == 1000 else np.sqrt,
    "numpy's other functions": lambda high: np.mean if high == 1000 else np.median,
    "an object of slots": Slots,
    "operator": lambda high: operator.methodcaller("clip", -high, high),
    "cached": lambda high: functools.lru_cache(source(f"lambda scan: scan + {high}")),
}
VALUES = {
    "tensor": lambda high: torch.tensor(float(high)),
    "tensor's type": lambda high: torch.tensor(1, dtype=torch.int16 if high == 1000 else torch.int32),
    "tensor's shape": lambda high: torch.zeros(2, 3) if high == 1000 else torch.zeros(3, 2),
    "bfloat16": lambda high: torch.tensor([[float(high)]], dtype=torch.bfloat16),
    "affine": lambda high: MetaTensor(torch.zeros(1, 2, 2), affine=torch.eye(3) * high),
    "long array": lambda high: np.append(np.zeros(5000), high),
    "array's shape": lambda high: np.zeros((2, 3) if high == 1000 else (3, 2)),
    "array of objects": lambda high: np.array([{"high": high}], dtype=object),
    "numpy's number": lambda high: np.float32(high),
    "dtype": lambda high: torch.float32 if high == 1000 else torch.float16,
    "numpy's dtype": lambda high: np.dtype("int16" if high == 1000 else "uint16"),
    "device": lambda high: torch.device("cpu" if high == 1000 else "cuda"),
    "pattern": lambda high: re.compile("a" * 300 + str(high)),
    "bytes": lambda high: bytes([high % 256]),
    "path": lambda high: Path(f"/scans/{high}"),
    "set": lambda high: {"a", "b", str(high)},
}


@pytest.mark.parametrize("make", [*FUNCTIONS.values(), *VALUES.values()], ids=[*FUNCTIONS, *VALUES])
def test_other_settings_have_other_descriptions(make):
    first, again, other = describe(make(1000)), describe(make(1000)), describe(make(400))
    assert first == again != other
    assert " at 0x" not in json.dumps(first)


@pytest.mark.parametrize("make", [*FUNCTIONS.values(), *VALUES.values()], ids=[*FUNCTIONS, *VALUES])
def test_stores_tell_them_apart_too(make):
    first, again, other = (settings_of_steps([Scale(make(high))]) for high in (1000, 1000, 400))
    if isinstance(make(1000), torch.Tensor | np.ndarray | np.generic):
        return  # by their values alone: the types of a store's settings do not count
    assert first == again != other
    json.dumps(first)


@pytest.mark.parametrize("step", [
    lambda high: Lambdad("image", functools.partial(np.clip, a_max=high)),
    lambda high: NormalizeIntensityd("image", subtrahend=torch.tensor(float(high))),
    expression,
    lambda high: expression(high, "$lambda scan: [part + @other#0 for part in scan]"),
    lambda high: expression(high, "$lambda scan: (lambda part: part + @hu_max)(scan)"),
])  # fmt: skip
def test_steps_of_bundles(step):
    assert describe(step(1000)) == describe(step(1000)) != describe(step(400))
    assert settings_of_steps([step(1000)]) == settings_of_steps([step(1000)]) != settings_of_steps([step(400)])


def test_values_of_a_config_that_an_expression_does_not_name_do_not_count():
    first, other = (expression(high, "$lambda scan: scan + @other#0") for high in (1000, 1000))
    parser = ConfigParser({"unnamed": 3, "hu_max": 7, "step": {"_target_": "Lambdad", "keys": "image",
                           "func": "$lambda scan: scan + @hu_max"}})  # fmt: skip
    alone = describe(parser.get_parsed_content("step"))
    parser["unnamed"] = 4
    parser.parse(True)
    assert describe(parser.get_parsed_content("step")) == alone
    assert describe(first) == describe(other)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (Scale(part for part in "ab"), "Scale.high: expected a plain value.*found builtins.generator"),
        (Scale(memoryview(b"a")), "Scale.high: .* found builtins.memoryview"),
        (closure(iter(memoryview(b"a")).__iter__), "high: .*, found "),
        (source("lambda scan: HIGH", HIGH=memoryview(b"a")), ":HIGH: .* found builtins.memoryview"),
    ],
)
def test_what_has_no_description_is_refused_by_name(thing, words):
    with pytest.raises(ValueError, match=words):
        describe(thing)


def test_what_code_uses_while_it_runs_does_not_count():
    first, other = (source("lambda scan: LOCK and scan", LOCK=lock) for lock in (threading.Lock(), threading.Lock()))
    assert describe(first) == describe(other)
    assert describe(Scale(np.random.RandomState(1))) == describe(Scale(np.random.RandomState(2)))


@pytest.mark.parametrize(
    ("module", "followed"),
    [
        ("models_genesis.transforms.padding", False),
        ("json.decoder", False),
        ("models_genesis.mine", True),  # a user's script next to the code in a packed bundle
        ("models_genesis_2.transforms", True),
        ("__main__", True),
    ],
)
def test_globals_are_followed_in_the_users_own_code(module, followed):
    first, other = (describe(source("lambda scan: scan + HIGH", HIGH=high, __name__=module)) for high in (1000, 400))
    assert (first != other) == followed


@pytest.mark.parametrize("method", ["__call__", "property", "static", "base"])
def test_code_of_the_users_own_classes_counts(method):
    """A transform of the user's own is a class, and its code is edited as that of a function."""

    def kind(factor):
        names: dict = {"__name__": "my_scripts"}
        lines = {
            "__call__": f"class T:\n    def __call__(self, x):\n        return x * {factor}",
            "property": f"class T:\n    @property\n    def factor(self):\n        return {factor}",
            "static": f"class T:\n    @staticmethod\n    def by(x):\n        return x * {factor}",
            "base": f"class B:\n    def __call__(self, x):\n        return x * {factor}\nclass T(B):\n    pass",
        }
        exec(lines[method], names)
        return names["T"]()

    assert describe(kind(1)) == describe(kind(1)) != describe(kind(2))


def test_what_code_reads_of_its_surroundings_does_not_count(monkeypatch):
    """Ranks, and jobs of a queue, differ in their environment; they share what is prepared."""
    functions = [
        source("lambda scan: scan * float(os.environ.get('SCALE', '1'))", os=os),
        source("lambda scan: scan * float(environ['SCALE'])", environ=os.environ),
        source("lambda scan: sys.path and scan", sys=sys),
    ]
    before = [describe(function) for function in functions]
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.syspath_prepend("/elsewhere")
    assert [describe(function) for function in functions] == before


def test_a_package_that_is_not_installed_is_no_obstacle():
    missing, there = optional_import("no_such_package")
    assert not there
    function = source("lambda scan: missing.asarray(scan) if there else scan", missing=missing, there=there)
    assert describe(function) == describe(function)


def test_functions_that_call_many_others_are_described_once_each():
    """Each calls the two before it, so that following every call would take millions of steps."""
    names: dict = {"__name__": "my_scripts"}
    exec("def f0(x):\n    return x\ndef f1(x):\n    return x", names)
    for number in range(2, 40):
        exec(f"def f{number}(x):\n    return f{number - 1}(x) + f{number - 2}(x)", names)
    assert len(json.dumps(describe(names["f39"]))) < 40_000


def test_things_that_hold_themselves():
    scale = Scale(1)
    scale.own = [scale, scale.clip]
    assert "the same as above" in json.dumps(describe(scale))
    names: dict = {"__name__": "my_scripts"}
    exec("def even(n):\n    return n == 0 or odd(n - 1)\ndef odd(n):\n    return n != 0 and even(n - 1)", names)
    assert describe(names["even"]) != describe(names["odd"])


def test_plain_transforms_are_described_as_before():
    """By classes and attributes; stores that were made before compare these."""
    step = ScaleIntensityRanged("image", -1000, 1000, 0, 1, clip=True)
    settings = settings_of_steps([step])
    assert settings["1 ScaleIntensityRanged.scaler.a_min"] == -1000.0
    assert not [name for name in settings if name.endswith(".code")]


def descriptions():
    """Hashes of the descriptions of what each bundle prepares scans with, in each of its configs."""
    found = {}
    for bundle in BUNDLES:
        for mixins in ((), ("2d.json",), ("2.5d.json",), ("2d.json", "radiographs.json")):
            files = [bundle / "configs" / name for name in ("train.json", *mixins)]
            if not all(file.exists() for file in files):
                continue
            parser = ConfigParser()
            parser.read_config([str(file) for file in files])
            parser.update({"device": "cpu", "bundle_root": str(bundle)})
            for name in PREPROCESSING:
                steps = parser.get_parsed_content(name)
                text = json.dumps([describe(steps), settings_of_steps(Compose(steps).transforms)])
                assert " at 0x" not in text
                found[f"{bundle.name} {mixins} {name}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def test_the_bundles_preprocessing_is_the_same_in_another_process():
    """Another seed of Python's hashes and other addresses: nothing of them is in a description."""
    here = descriptions()
    assert len(here) > 2 * len(BUNDLES)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    code = f"import runpy, json; print(json.dumps(runpy.run_path({__file__!r})['descriptions']()))"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert json.loads(result.stdout.splitlines()[-1]) == here
