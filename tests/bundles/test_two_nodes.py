# SPDX-License-Identifier: Apache-2.0
"""``torchrun`` on two machines with two processes each: two network namespaces, joined by a cable, stand for them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from models_genesis.networks import GenesisUNet, load_pretrained
from models_genesis.networks.weight_files import save_weights

PRETRAINING, LIDC = "genesis_chest_ct_pretraining", "genesis_lidc_nodule_ct_segmentation"
LUNA = "genesis_luna16_nodule_ct_classification"
FEATURES = [4, 8]
SMALL: dict[str, Any] = {"features": FEATURES, "epochs": 2, "warmup_epochs": 0, "learning_rate": 0.01, "amp": False}
OWN: dict[str, dict[str, Any]] = {
    PRETRAINING: {
        "cube_size": [16, 16, 16], "tissue_threshold": "$None", "cubes_per_scan": 8, "val_cubes_per_scan": 4,
        "network_def#norm": "instance",
    },
    LIDC: {"cube_size": [16, 16, 16], "split": "training", "epochs": 1},  # each process validates a case or more
    LUNA: {"cube_size": [12, 12, 12], "max_shift": 2, "samples_per_epoch": 8, "epochs": 1},
}  # fmt: skip

RANK = """
import json, os, runpy, sys
from pathlib import Path

import monai.bundle, monai.engines, monai.handlers, numba, torch._dynamo
import models_genesis.training, models_genesis.datasets

for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    if number:  # torchrun's own store belongs to the first training
        os.environ |= {"MASTER_PORT": str(29600 + number), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    child = os.fork()
    if not child:
        sys.argv = ["monai.bundle", *arguments]
        runpy.run_module("monai.bundle", run_name="__main__")
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{arguments} failed")
"""
"""One process of the job: each training in a child, so that MONAI is imported once."""


class Node(NamedTuple):
    """A network namespace, its end of the cable, and its address."""

    name: str
    link: str
    address: str

    def received(self) -> int:
        """Count the bytes that have come through the cable."""
        (link,) = json.loads(ip("-n", self.name, "-s", "-j", "link", "show", self.link))
        return int(link["stats64"]["rx"]["bytes"])


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30).stdout


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two machines with nothing but each other."""
    if not shutil.which("ip"):
        pytest.skip("two nodes: expected the command ip (iproute2), found none")
    pair = [Node(f"mg{os.getpid()}{end}", f"mg{os.getpid()}{end}", f"10.77.0.{n}") for n, end in enumerate("ab", 1)]
    try:
        for node in pair:
            ip("netns", "add", node.name)
        ip("-n", pair[0].name, "link", "add", pair[0].link, "type", "veth", "peer", pair[1].link, "netns", pair[1].name)
        for node in pair:
            ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", node.link)
            for link in ("lo", node.link):
                ip("-n", node.name, "link", "set", link, "up")
        ip("netns", "exec", pair[0].name, "true")
    except subprocess.CalledProcessError as error:
        remove(pair)
        pytest.skip(f"two nodes: network namespaces cannot be made here: {error.stderr.strip()}")
    yield pair
    remove(pair)


def remove(pair: list[Node]) -> None:
    for node in pair:
        subprocess.run(["ip", "netns", "delete", node.name], capture_output=True, timeout=30)


def start(node: Node, first: Node, arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start ``torchrun`` on a node; the command is the same on both, but for the node's own address."""
    launcher = [
        "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_id=two",
        f"--rdzv_endpoint={first.address}:29400", f"--rdzv_conf=is_host={node is first}",
        f"--local_addr={node.address}", "-m", "rank_program",
    ]  # fmt: skip
    return subprocess.Popen(
        ["ip", "netns", "exec", node.name, sys.executable, *launcher, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": node.link, "PYTHONPATH": str(folder)},
        stdout=(folder / f"{node.name}.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(folder: Path) -> list[float]:
    with (folder / "eval" / "history.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) for name in ("train_loss", "val_metric")]


def test_two_nodes_train_the_bundles_together(nodes, bundle_command, run_bundle, data_of, tmp_path):
    """Pretraining has the loss curve of one process with the same cubes; the others give their weights."""
    save_weights(GenesisUNet(features=FEATURES).state_dict(), tmp_path / "pretrained.pt")

    def given(name: str, folder: Path, **own: Any) -> dict[str, Any]:
        start = {} if name == PRETRAINING else {"pretrained": tmp_path / "pretrained.pt"}
        places = {"output_dir": folder / "eval", "ckpt_dir": folder / "models"}
        return {**SMALL, **OWN[name], **data_of(name), **start, **places, **own}

    several = {"backend": "gloo", "device": "$torch.device('cpu')", "network#device_ids": "$None", "batch_size": 1}
    lines = [
        bundle_command(name, ["train", "multi_gpu_train"], **given(name, tmp_path / name, **several))[3:]
        for name in OWN
    ]
    (tmp_path / "rank_program.py").write_text(RANK)
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    running = [start(node, nodes[0], [str(tmp_path / "lines.json")], tmp_path) for node in nodes]
    try:
        ended = [process.wait(400) for process in running]
    finally:
        for process in running:
            process.kill()
    assert ended == [0, 0], "\n".join((tmp_path / f"{node.name}.log").read_text()[-3000:] for node in nodes)
    received = [node.received() for node in nodes]

    run_bundle(PRETRAINING, ["train"], **given(PRETRAINING, tmp_path / "one", batch_size=4))
    assert losses(tmp_path / PRETRAINING) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for name in OWN:
        assert len(losses(tmp_path / name)) == 2 * {**SMALL, **OWN[name]}["epochs"], name
    network = GenesisUNet(features=FEATURES, norm="instance")
    assert load_pretrained(network, tmp_path / PRETRAINING / "models" / "model.pt", strict=True).matched
    gradients = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert min(received) > 12 * gradients / 2  # of the 12 steps of pretraining, half a ring's share at least
