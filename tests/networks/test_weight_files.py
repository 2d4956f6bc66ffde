# SPDX-License-Identifier: Apache-2.0
"""Weight files: unreadable ones are refused by name, written ones are whole."""

from __future__ import annotations

import errno
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models_genesis.networks import GenesisUNet, load_pretrained, save_weights
from models_genesis.networks.original_names import from_original_name
from models_genesis.networks.weight_files import read_weights


class RunsCode:
    """Unpickled without care, this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


def png() -> bytes:
    """One grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")
    )


def truncated(path: Path, keep: float, **how: Any) -> None:
    torch.save(GenesisUNet(features=(4, 8)).state_dict(), path, **how)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


WRONG: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "image": lambda path: path.write_bytes(png()),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\nsize 76298273\n"),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"not a tensor")),
    "truncated zip": lambda path: truncated(path, 0.5),
    "without the last bytes": lambda path: truncated(path, 0.999),
    "truncated old format": lambda path: truncated(path, 0.5, _use_new_zipfile_serialization=False),
    "pickled module": lambda path: torch.save(GenesisUNet(features=(4, 8)), path),
    "TorchScript": lambda path: torch.jit.save(torch.jit.script(GenesisUNet(features=(4, 8))), str(path)),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore:.*TorchScript archive.*", "ignore:.*torch.jit.*deprecated.*")
def test_unreadable_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pt"
    WRONG[kind](path)
    network = GenesisUNet(features=(4, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="cannot be read as weights: expected a state dict") as error:
        load_pretrained(network, path)
    assert str(path) in str(error.value) and f"found {path.stat().st_size} bytes" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_code_in_a_file_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": RunsCode(tmp_path / "harm")}, tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(tmp_path / "harmful.pt")
    assert not (tmp_path / "harm").exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt does not exist; expected a state dict"):
        load_pretrained(GenesisUNet(features=(4, 8)), tmp_path / "nowhere.pt")
    with pytest.raises(ValueError, match="is a folder; expected a state dict"):
        load_pretrained(GenesisUNet(features=(4, 8)), tmp_path)


def test_saved_weights_are_plain(tmp_path: Path) -> None:
    network = GenesisUNet(features=(4, 8))
    wrapped = {f"module._orig_mod.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path / "new" / "folder" / "model.pt"
    save_weights(wrapped, path)
    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == list(network.state_dict())
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
    assert os.listdir(path.parent) == ["model.pt"]
    network.load_state_dict(loaded)  # what MONAI does with a bundle's model.pt


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_the_old_file(existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    if existing:
        save_weights({"weight": torch.ones(3)}, path)

    def fail(content: Any, file: Any) -> None:
        file.write(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("models_genesis.networks.weight_files.torch.save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_weights({"weight": torch.zeros(3)}, path)
    assert os.listdir(tmp_path) == (["model.pt"] if existing else [])
    if existing:
        assert torch.equal(read_weights(path).tensors["weight"], torch.ones(3))


def test_other_processes_never_see_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    save_weights({"weight": torch.ones(3)}, path)
    seen = []
    replace = os.replace

    def look_then_replace(source: Path, target: Path) -> None:
        seen.append(torch.equal(read_weights(target).tensors["weight"], torch.ones(3)))  # still the old one
        assert torch.equal(read_weights(source).tensors["weight"], torch.zeros(3))  # the new one, complete
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_then_replace)
    save_weights({"weight": torch.zeros(3)}, path)
    assert seen == [True]
    assert torch.equal(read_weights(path).tensors["weight"], torch.zeros(3))


@pytest.mark.parametrize(
    ("state", "message"), [({}, "found nothing"), ({"weight": torch.ones(1), "epoch": 3}, r"found \['epoch'\]")]
)
def test_only_tensors_are_saved(state: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_weights(state, tmp_path / "model.pt")
    assert os.listdir(tmp_path) == []


def test_a_name_and_its_translation_are_one_tensor_too_many(
    tmp_path: Path, original_shapes: dict[str, tuple[int, ...]]
) -> None:
    """The original's names next to ours for the same tensors: which of both is meant nobody can tell."""
    state = {name.removeprefix("module."): torch.zeros(shape) for name, shape in original_shapes.items()}
    ours = {name: from_original_name(name) for name in state}
    first = next(name for name in state if name.endswith("bias") and ours[name] is not None)
    torch.save({**state, ours[first]: state[first]}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r"both\.pt holds several tensors of one name once they are") as error:
        read_weights(tmp_path / "both.pt")
    assert str(error.value).endswith(f"expected one: [{ours[first]!r}]")


def test_what_is_no_tensor_is_not_saved_and_the_first_five_are_named(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt"
    state: dict[str, Any] = {"weight": torch.ones(3), **{f"other{number}": number for number in range(6)}}
    with pytest.raises(ValueError, match=r"must hold named tensors only, found \['other0', .*'other4'\]$"):
        save_weights(state, path)
    with pytest.raises(ValueError, match=r"must hold named tensors only, found nothing$"):
        save_weights({}, path)
    assert not path.parent.exists()
