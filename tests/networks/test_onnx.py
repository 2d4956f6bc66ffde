# SPDX-License-Identifier: Apache-2.0
"""Networks as TorchScript and ONNX give the numbers that they give in PyTorch, at any batch and image size."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export
from monai.networks import convert_to_onnx
from torch import Tensor, nn

from models_genesis.networks import GenesisClassifier, GenesisUNet, save_weights

ROOT = Path(__file__).resolve().parents[2]
OPSET = 20
TOLERANCE = 1e-4
"""Share of the output's spread. The runtimes sum in another order: float32 has 6e-8, a voxel sums some 1,000 products a
layer over some 15 layers, and normalising a bottleneck of three voxels by its own statistics magnifies what is left."""

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[export]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[export]'")


def trained(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give batch norm's running statistics the data's values, else a deep network's output is nearly constant."""
    norms = [module for module in network.modules() if hasattr(module, "momentum")]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(image(shape, 7))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def exported(network: nn.Module) -> Callable[[Tensor], np.ndarray]:
    """Export with every size open, as docs/formats.md does, and give the ONNX runtime's network."""
    open_sizes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    model = convert_to_onnx(
        network,
        [image((2, 1, 32, 32, 32))],
        input_names=["image"],
        output_names=["pred"],
        opset_version=OPSET,
        dynamic_shapes=(open_sizes,),
        external_data=False,
    )
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    sizes = [side.dim_param for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert [sizes[0], *sizes[2:]] == list(open_sizes.values())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["pred"], {"image": batch.numpy()})[0]


def assert_equal(found: np.ndarray, expected: Tensor) -> None:
    spread = float(expected.std())
    assert spread > 1e-3  # an output that says nothing would be equal to anything
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=TOLERANCE * spread)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_unet(batch_statistics: bool) -> None:
    torch.manual_seed(0)
    network = GenesisUNet(features=(4, 8), out_channels=2, batch_statistics=batch_statistics)
    run = exported(trained(network, (3, 1, 8, 8, 8)))
    for shape in [(1, 1, 16, 24, 40), (3, 1, 8, 2, 12), (2, 1, 32, 16, 8)]:
        with torch.inference_mode():
            assert_equal(run(image(shape)), network(image(shape)))
    # with the batch's own statistics the output of a sample depends on its mates, in both
    pair = image((2, 1, 16, 16, 16))
    differs = not np.allclose(run(pair)[:1], run(pair[:1]), rtol=0, atol=1e-3)
    assert differs == batch_statistics
    with pytest.raises(Exception, match=r"(?i)concat"):
        run(image((1, 1, 17, 16, 16)))


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_classifier(batch_statistics: bool) -> None:
    torch.manual_seed(0)
    network = GenesisClassifier(
        features=(4, 8), num_classes=3, hidden_channels=16, dropout=0.5, batch_statistics=batch_statistics
    )
    trained(network, (4, 1, 16, 16, 16))
    run = exported(network)
    for shape in [(3, 1, 16, 24, 40), (5, 1, 17, 9, 22)]:  # a rest that pooling leaves out is allowed here
        with torch.inference_mode():
            assert_equal(run(image(shape)), network(image(shape)))


def documented(command: str) -> list[str]:
    """Take the command line of ``python -m monai.bundle COMMAND`` from the docs, without those words."""
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(rf"^python -m monai\.bundle {command} (.*)$", text, re.MULTILINE)
    return shlex.split(line.replace("$B", str(ROOT / "bundles" / "genesis_lits_liver_ct_segmentation")))


@pytest.fixture(scope="module")
def liver_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """The liver bundle's network in full size, and the folder in which its weights are, as models/model.pt."""
    torch.manual_seed(0)
    network = trained(GenesisUNet(out_channels=2), (2, 1, 16, 16, 16))
    folder = tmp_path_factory.mktemp("work")
    save_weights(network.state_dict(), folder / "models" / "model.pt")
    return network, folder


@pytest.mark.parametrize("command", [ckpt_export, onnx_export])
def test_the_documented_commands_export_the_full_network(
    command: Any, liver_network: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, folder = liver_network
    monkeypatch.chdir(folder)
    (folder / "tmp").mkdir(exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    fire.Fire(command, command=documented(command.__name__))
    shape = (1, 1, 24, 16, 32)
    with torch.inference_mode():
        expected = network(image(shape))
        if command is ckpt_export:
            assert torch.equal(torch.jit.load("models/model.ts")(image(shape)), expected)
            return
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    names = {"cubes": image(shape).numpy()}
    exec(re.findall(r"```python\n(import onnxruntime.*?)```", text, re.DOTALL)[0], names)
    assert_equal(names["logits"], expected)
    assert sorted(path.name for path in Path("models").iterdir() if "onnx" in path.name) == ["model.onnx"]
    assert not list((folder / "tmp").glob("*.data"))  # no weights left behind by the exporter
