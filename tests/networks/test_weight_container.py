# SPDX-License-Identifier: Apache-2.0
"""Damaged weight files are refused, whichever bit is wrong; what loads has the numbers that were saved."""

from __future__ import annotations

import logging
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models_genesis.networks import DamagedFileError, GenesisClassifier, GenesisUNet, load_pretrained, read_checkpoint
from models_genesis.networks.weight_files import read_weights


def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return GenesisUNet(features=(4, 8)).state_dict()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_of_400_flipped_bits_none_loads_as_another_number(tmp_path: Path) -> None:
    """A bit of padding or of a time stamp may change nothing; all others must be refused."""
    path = tmp_path / "model.pt"
    torch.save(small_state(), path)
    whole, expected = path.read_bytes(), small_state()
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        bit = generator.randrange(8 * len(whole))
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert same(read_weights(path).tensors, expected), f"bit {bit} loads as other numbers"
        except DamagedFileError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 200  # the numbers alone are half of such a small file


def test_a_bit_that_marks_numbers_as_a_folder_is_refused(tmp_path: Path) -> None:
    """It is in no checksum, and torch would give the numbers that happen to be in memory."""
    path = tmp_path / "model.pt"
    torch.save(small_state(), path)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0", 0, content.rindex(b"data/1")))
    content[entry + 38] ^= 16
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="marked as a folder"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_truncated_files_are_refused(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_state(), path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DamagedFileError, match=r"model\.pt cannot be read"):
        read_weights(path)


def test_a_part_that_is_there_twice_or_compressed_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in parts.items():
            target.writestr(name, content)
    with pytest.raises(DamagedFileError, match="compressed"):
        read_weights(tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr(next(name for name in parts if name.endswith("data/0")), b"\1" * 4000)
    with pytest.raises(DamagedFileError, match="different"):
        read_weights(tmp_path / "model.pt")


def test_the_format_without_checksums_is_refused_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.pt"
    torch.save(small_state(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedFileError, match=r"checksums.*another format"):
        read_weights(path, need_checksums=True)
    with caplog.at_level(logging.WARNING):
        assert same(read_weights(path).tensors, small_state())
    assert "has no checksums" in caplog.text and str(path) in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("name", ["encoder.levels.0.conv1.weight", "encoder.levels.0.norm1.running_var", "head.bias"])
def test_numbers_that_are_no_weights_are_refused_wherever_they_are(name: str, value: float, tmp_path: Path) -> None:
    """Also in parts that are not taken, here the head by a classifier: the file is not what a training wrote."""
    state = small_state()
    state[name].view(-1)[-1] = value
    torch.save(state, tmp_path / "model.pt")
    for network in (GenesisUNet(features=(4, 8)), GenesisClassifier(features=(4, 8), hidden_channels=16)):
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        with pytest.raises(ValueError, match=rf"model\.pt: {name} holds"):
            load_pretrained(network, tmp_path / "model.pt")
        assert same(network.state_dict(), before)


@pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel], ids=["bare", "wrapped"])
def test_networks_themselves_refuse_nan(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Those who load weights by their own means, as MONAI Label does, meet it too."""
    network = wrap(GenesisUNet(features=(4, 8)))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: torch.full_like(tensor, float("nan")) for name, tensor in before.items() if tensor.ndim > 1}
    with pytest.raises(ValueError, match="holds NaN"):
        network.load_state_dict(before | state)
    assert same(network.state_dict(), before)


SPECIAL: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.eye(4).to_sparse(),
    "sparse rows": lambda: torch.eye(4).to_sparse_csr(),
    "complex": lambda: torch.zeros(4, dtype=torch.complex64),
    "without content": lambda: torch.zeros(4, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "of shape (1000000, 1000000)": lambda: torch.zeros(1).expand(10**6, 10**6),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.filterwarnings("ignore:.*Sparse.*", "ignore:.*quantize.*", "ignore:.*TypedStorage.*")
def test_tensors_that_are_no_plain_arrays_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {"bias": torch.zeros(3), "odd": SPECIAL[kind]()}}, tmp_path / "model.pt")
    with pytest.raises(DamagedFileError, match=r"model\.pt"):
        read_checkpoint(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_pretrained(nn.Linear(3, 3), tmp_path / "model.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("beyond", [0, 1])
def test_arrays_larger_than_their_file_are_refused(dtype: torch.dtype, beyond: int, tmp_path: Path) -> None:
    """Of one number that is said to be many; small files are allowed 4,096 bytes."""
    many = torch.zeros(1, dtype=dtype).expand(4096 // dtype.itemsize + beyond)
    torch.save({"many": many}, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 4096
    if not beyond:
        assert torch.equal(read_checkpoint(tmp_path / "model.pt")["many"], many)
        return
    with pytest.raises(DamagedFileError, match=rf"model\.pt: .*, found many of shape \({len(many)},\)$"):
        read_checkpoint(tmp_path / "model.pt")
