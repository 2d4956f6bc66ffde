# SPDX-License-Identifier: Apache-2.0
"""``python -m models_genesis.networks``: fetching and converting the original's file, and looking into files."""

from __future__ import annotations

import functools
import hashlib
import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models_genesis.networks import GenesisClassifier, GenesisUNet, save_weights
from models_genesis.networks.__main__ import main
from models_genesis.networks.original_names import from_original_name


def original_file(path: Path, shapes: dict[str, tuple[int, ...]], **changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Write a file laid out as the released one, with random numbers, and give its state dict."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.tensor(0) if name.endswith("tracked") else torch.rand(shape, generator=generator) * 0.05
        for name, shape in shapes.items()
    } | changes
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    content = {"epoch": 200, "state_dict": state, "optimizer_state_dict": optimizer.state_dict()}
    torch.save(content, path)
    return state


@pytest.fixture
def small_shapes(original_shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The original's names with the shapes of a network of fewer features."""
    state = GenesisUNet(features=(4, 6, 8, 10)).state_dict()
    shapes = {}
    for name in original_shapes:
        ours = from_original_name(name.removeprefix("module."))
        assert ours is not None
        shapes[name] = tuple(state[ours].shape)
    return shapes


def test_convert_the_full_file_in_a_process_of_its_own(
    original_shapes: dict[str, tuple[int, ...]],
    forked_python: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    state = original_file(tmp_path / "Genesis_Chest_CT.pt", original_shapes)
    command = [sys.executable, "-m", "models_genesis.networks", "convert", "Genesis_Chest_CT.pt", "models/model.pt"]
    result = forked_python(command, tmp_path, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "106 matched, 0 adapted, 0 skipped, 0 missing" in result.stdout
    assert "non-commercial use only" in result.stdout
    converted = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    network = GenesisUNet().eval()
    network.load_state_dict(converted, strict=True)
    first = state["module.down_tr64.ops.0.conv1.weight"]
    assert torch.equal(network.encoder.levels[0].conv1.weight, first)
    for name, tensor in state.items():
        ours = from_original_name(name.removeprefix("module."))
        assert torch.equal(converted[ours], tensor), name
    with torch.inference_mode():
        assert torch.isfinite(network(torch.rand(1, 1, 16, 8, 8))).all()
    (tmp_path / "models" / "model.pt").unlink()
    (tmp_path / "Genesis_Chest_CT.pt").unlink()


def test_existing_files_are_replaced_only_by_force(
    small_shapes: dict[str, tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, target = tmp_path / "original.pt", tmp_path / "model.pt"
    state = original_file(original, small_shapes)
    target.write_text("precious")
    assert main(["convert", str(original), str(target)]) == 2
    assert "model.pt exists: give --force to replace it" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert main(["convert", str(original), str(target), "--force"]) == 0
    network = GenesisUNet(features=(4, 6, 8, 10))
    network.load_state_dict(torch.load(target, weights_only=True), strict=True)
    assert torch.equal(network.head.bias, state["module.out_tr.final_conv.bias"])
    before = original.read_bytes()
    assert main(["convert", str(original), str(original), "--force"]) == 2
    assert original.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module.extra.weight": torch.ones(2)}, "names that the original network has not: extra.weight"),
        ({"module.up_tr64.up_conv.weight": torch.ones(2)}, "decoder.levels.0.upsample.weight: shape (2,) != "),
        ({"module.out_tr.final_conv.bias": torch.tensor([torch.nan])}, "head.bias holds NaN"),
    ],
)
def test_files_that_are_not_quite_the_original_are_refused(
    changes: dict[str, Any],
    message: str,
    small_shapes: dict[str, tuple[int, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original_file(tmp_path / "original.pt", small_shapes, **changes)
    assert main(["convert", str(tmp_path / "original.pt"), str(tmp_path / "model.pt")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("module.up_tr128.ops.0.bn1.running_mean", "missing decoder.levels.1.merge.norm1.running_mean"),
        ("module.out_tr.final_conv.weight", "is not complete"),
        ("module.down_tr64.ops.0.conv1.weight", "is not complete"),
    ],
)
def test_incomplete_files_are_refused(
    missing: str,
    message: str,
    small_shapes: dict[str, tuple[int, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shapes = {name: shape for name, shape in small_shapes.items() if name != missing}
    original_file(tmp_path / "original.pt", shapes)
    assert main(["convert", str(tmp_path / "original.pt"), str(tmp_path / "model.pt")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "ours.pt"
    save_weights(GenesisUNet(features=(4, 8)).state_dict(), ours)
    assert main(["convert", str(ours), str(tmp_path / "model.pt")]) == 2
    assert "ours.pt has not the original's names" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nowhere.pt"), str(tmp_path / "model.pt")]) == 2
    assert "nowhere.pt does not exist" in capsys.readouterr().err
    (tmp_path / "image.pt").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["inspect", str(tmp_path / "image.pt")]) == 2
    assert "image.pt cannot be read as weights" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["convert", str(ours)])
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (
            GenesisUNet(2, 3, 4, (4, 8)),
            "GenesisUNet(spatial_dims=2, in_channels=3, features=(4, 8), out_channels=4)",
        ),
        (
            GenesisClassifier(features=(4, 8, 16), num_classes=5, hidden_channels=9),
            "GenesisClassifier(spatial_dims=3, in_channels=1, features=(4, 8, 16), num_classes=5, hidden_channels=9)",
        ),
        (torch.nn.Linear(3, 2), "not one of models_genesis.networks\n  weight (2, 3)\n  bias (2,)"),
    ],
)
def test_inspect(network: torch.nn.Module, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.save({"model": network.state_dict(), "epoch": 3}, path)
    assert main(["inspect", str(path)]) == 0
    parameters = sum(parameter.numel() for parameter in network.parameters())
    found = capsys.readouterr().out
    assert found == (
        f"file: {path}\nlayout: checkpoint, entry 'model'\n"
        f"tensors: {len(network.state_dict())}, parameters: {parameters:,}\nnetwork: {text}\n"
    )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and where a web server on this machine offers it."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_fetch_downloads_checks_and_converts(
    original_shapes: dict[str, tuple[int, ...]],
    served: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, web = served
    file = folder / "Genesis_Chest_CT.pt"
    state = original_file(file, original_shapes)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    fetch = ["fetch", f"{web}/{file.name}", str(tmp_path / "model.pt")]
    assert main(fetch) == 2
    assert "--accept-licence is needed" in capsys.readouterr().err
    assert main([*fetch, "--accept-licence", "--sha256", "0" * 64]) == 2
    assert "sha256 hash check of downloaded file failed" in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()
    assert main([*fetch, "--accept-licence", "--sha256", digest]) == 0
    printed = capsys.readouterr().out
    assert "106 matched" in printed and digest in printed and "non-commercial use only" in printed
    network = GenesisUNet()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert torch.equal(network.head.bias, state["module.out_tr.final_conv.bias"])
    file.unlink()


def test_fetch_refuses_what_is_not_the_released_network(
    small_shapes: dict[str, tuple[int, ...]],
    served: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, web = served
    original_file(folder / "small.pt", small_shapes)
    (folder / "page.pt").write_text("<html>please fill in this form</html>")
    for url, message in [
        (f"{web}/small.pt", "expected the released network of 19,073,665 parameters, found"),
        (f"{web}/page.pt", "cannot be read as weights"),
        (f"{web}/none.pt", "404"),
        ("ftp://127.0.0.1/x.pt", "expected a URL with https://"),
    ]:
        assert main(["fetch", url, str(tmp_path / "model.pt"), "--accept-licence"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "model.pt").exists()
