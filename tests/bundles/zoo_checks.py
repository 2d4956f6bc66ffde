# SPDX-License-Identifier: Apache-2.0
"""The model zoo's own checks in full mode, for unpacked bundles: ``python zoo_checks.py TASKS.json`` prints JSON.

Runs in an environment that has what the bundles' metadata pin, and not this project. Each bundle has processes of its
own, forked after MONAI was imported: all bundles call their code ``scripts``, and importing MONAI takes longest.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow, ckpt_export, load, verify_net_in_out

STAGES = {"train": ["train"], "evaluate": ["train", "evaluate"], "inference": ["inference"]}


def config(root: Path, stage: str) -> str:
    return str(root / "configs" / f"{stage}.json")


def make_weights(root: Path, data: dict[str, Any]) -> None:
    """Random weights of the network that the config defines, and what it gives for some input."""
    workflow = ConfigWorkflow(config(root, "inference"), workflow_type="inference")
    workflow.initialize()
    state = workflow.network_def.state_dict()
    (root / "models").mkdir(exist_ok=True)
    torch.save(state, root / "models" / "model.pt")


def loads_from_another_directory(root: Path, data: dict[str, Any]) -> None:
    """``monai.bundle.load`` has no path to ``scripts`` but the one that ``initialize`` makes."""
    state = torch.load(root / "models" / "model.pt", weights_only=True)
    assert str(root) not in sys.path and "scripts" not in sys.modules
    for kind in ("train", "inference"):
        network = load(root.name, bundle_dir=root.parent, source="github", workflow_type=kind)
        assert type(network).__module__.startswith(("scripts.", "monai.")), type(network)
        assert all(torch.equal(state[key], value) for key, value in network.state_dict().items()), kind


def verify_as_the_zoo_does(root: Path, data: dict[str, Any]) -> None:
    """``ci/verify_bundle.py`` in full mode: shape of the output, TorchScript; with its arguments."""
    os.chdir(root)
    sys.path.insert(0, str(root))
    verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/inference.json")
    exported = "models/verify_model.ts"
    ckpt_export(
        "network_def", filepath=exported, ckpt_file="models/model.pt", meta_file="configs/metadata.json",
        config_file="configs/inference.json",
    )  # fmt: skip
    network = load(root.name, bundle_dir=root.parent, source="github", workflow_type="inference").eval()
    channels = json.loads(Path("configs/metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    image = torch.rand(1, channels["num_channels"], 32, 32, 16)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.load(exported)(image), network(image), rtol=1e-4, atol=1e-5)


def imports_every_module(root: Path, data: dict[str, Any]) -> None:
    sys.path.insert(0, str(root))
    scripts = importlib.import_module("scripts")
    assert scripts.__file__.startswith(str(root))
    # by their files: pkgutil passes over folders without __init__.py
    files = sorted((root / "scripts").rglob("*.py"))
    names = [".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files]
    assert len(names) > 90, names
    assert "scripts.datasets.io.scan_header" in names
    for name in names:
        # Triton comes with torch for CUDA alone, and its kernels are imported where they run
        if not name.endswith("__main__") and not (name.endswith(".triton_deform") and not find_spec("triton")):
            importlib.import_module(name)


def has_all_properties(stage: str) -> Callable[[Path, dict[str, Any]], None]:
    def check(root: Path, data: dict[str, Any]) -> None:
        kind = "inference" if stage == "inference" else "train"
        files = [config(root, name) for name in STAGES[stage]]
        with tempfile.TemporaryDirectory() as out:
            own = {**data[kind], "bundle_root": str(root), "output_dir": out}
            workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **own)
            workflow.initialize()
            assert workflow.check_properties() == []

    return check


CHECKS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "make_weights": make_weights,
    "loads_from_another_directory": loads_from_another_directory,
    **{f"has_all_properties_{stage}": has_all_properties(stage) for stage in STAGES},
    "imports_every_module": imports_every_module,
    "verify_as_the_zoo_does": verify_as_the_zoo_does,
}
PROPERTIES = [name for name in CHECKS if name.startswith("has_all_properties")]
PROCESSES = [[name] if name not in PROPERTIES else PROPERTIES for name in CHECKS if name not in PROPERTIES[1:]]
"""Checks that share a process: those that only initialise workflows. All others begin without the bundle's code."""


def in_a_process_of_its_own(names: list[str], root: Path, data: dict[str, Any]) -> dict[str, str]:
    """Run checks in a fork.

    Returns:
        What went wrong by check, "" where all is well.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.write(writing, json.dumps({name: what_is_wrong(CHECKS[name], root, data) for name in names}).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return json.loads(found) if status == 0 else dict.fromkeys(names, f"{found}\nended with status {status}")


def what_is_wrong(check: Callable[[Path, dict[str, Any]], None], root: Path, data: dict[str, Any]) -> str:
    talk = io.StringIO()
    try:
        with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
            check(root, data)
    except BaseException:
        return traceback.format_exc()[-6000:] + talk.getvalue()[-2000:]
    return ""


def main() -> None:
    tasks = json.loads(Path(sys.argv[1]).read_text())
    results: dict[str, dict[str, str]] = {name: {} for name in tasks}
    for name, task in tasks.items():
        for checks in PROCESSES:
            results[name] |= in_a_process_of_its_own(checks, Path(task["root"]), task["data"])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
