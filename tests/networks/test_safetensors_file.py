# SPDX-License-Identifier: Apache-2.0
"""Files of safetensors: they load like any other, by anybody; damage is seen, or the lack of a checksum is told."""

from __future__ import annotations

import json
import logging
import random
import struct
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from models_genesis.networks import DamagedFileError, GenesisUNet, load_pretrained
from models_genesis.networks.safetensors_file import DIGEST, is_safetensors
from models_genesis.networks.weight_files import read_weights, save_safetensors
from models_genesis.training import load_pretrained_weights


@pytest.fixture
def source() -> GenesisUNet:
    torch.manual_seed(0)
    return GenesisUNet(features=(4, 8))


@pytest.fixture
def ours(source: GenesisUNet, tmp_path: Path) -> Path:
    save_safetensors(source.state_dict(), tmp_path / "model.safetensors", {"note": "a word"})
    return tmp_path / "model.safetensors"


def same(network: GenesisUNet, source: GenesisUNet) -> bool:
    return all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_the_library_reads_what_we_write(ours: Path, source: GenesisUNet) -> None:
    with safe_open(ours, "pt") as file:
        assert file.metadata()["note"] == "a word" and file.metadata()["format"] == "pt"
        assert set(file.keys()) == set(source.state_dict())
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "network.module."])
@pytest.mark.parametrize("name", ["theirs.safetensors", "blob"])
def test_a_bundle_starts_from_files_of_the_library(
    prefix: str, name: str, source: GenesisUNet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name  # the cache of Hugging Face has names without a suffix
    safetensors.torch.save_file({prefix + key: value for key, value in source.state_dict().items()}, path)
    network = GenesisUNet(features=(4, 8))
    with caplog.at_level(logging.INFO):
        report = load_pretrained_weights(network, path)
    assert report is not None and len(report.matched) == len(source.state_dict()) and report.layout == "safetensors"
    assert same(network, source)
    assert "has no checksums" in caplog.text
    with pytest.raises(DamagedFileError, match=f"without the entry {DIGEST}"):
        load_pretrained(network, path, need_checksums=True)


def test_of_all_kinds_of_numbers_none_changes(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    tensors = {str(kind): torch.tensor([[0, 1, 1]]).to(kind).T for kind in kinds} | {
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    save_safetensors(tensors, tmp_path / "kinds.safetensors")
    found = read_weights(tmp_path / "kinds.safetensors", need_checksums=True).tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_of_400_flipped_bits_none_loads_as_another_number(ours: Path, source: GenesisUNet) -> None:
    content, R = ours.read_bytes(), random.Random(0)
    length = struct.unpack("<Q", content[:8])[0]
    refused = 0
    for number in range(400):  # half of them in the header, which is a tenth of the file
        byte = R.randrange(8 + length) if number % 2 else R.randrange(8 + length, len(content))
        damaged = bytearray(content)
        damaged[byte] ^= 1 << R.randrange(8)
        ours.write_bytes(damaged)
        network = GenesisUNet(features=(4, 8))
        try:
            load_pretrained(network, ours, strict=True, need_checksums=True)
        except ValueError as error:
            assert str(ours) in str(error)
            refused += 1
        else:  # a bit of a text that nobody reads
            assert same(network, source)
    assert refused > 380


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.01, 0.5, 0.9, 0.9999])
def test_truncated_files_are_refused(keep: float, ours: Path) -> None:
    content = ours.read_bytes()
    ours.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"cannot be read as weights: .* or a file of safetensors"):
        load_pretrained(GenesisUNet(features=(4, 8)), ours)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    for claim in (1 << 20, 1 << 40, (1 << 64) - 1):
        header = json.dumps({"weight": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
        (tmp_path / "claim.safetensors").write_bytes(struct.pack("<Q", claim) + header)
        with pytest.raises(DamagedFileError, match="bytes that safetensors refuses"):
            read_weights(tmp_path / "claim.safetensors")


def test_other_files_are_not_taken_for_it(source: GenesisUNet, tmp_path: Path) -> None:
    torch.save(source.state_dict(), tmp_path / "new.pt")
    torch.save(source.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text('        {"a": 1}')  # eight spaces are no length of a header
    assert not any(is_safetensors(tmp_path / name) for name in ("new.pt", "old.pt", "empty", "text"))


def test_without_the_package_the_message_names_it(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        read_weights(ours)
