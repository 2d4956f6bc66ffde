# SPDX-License-Identifier: Apache-2.0
"""What ``bundles/unpack.py`` refuses, and what MONAI's own download does with the same archives."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from monai.apps.utils import extractall

UNPACK = Path(__file__).resolve().parents[2] / "bundles" / "unpack.py"
GOOD = {"a_bundle/LICENSE": b"terms", "a_bundle/configs/train.json": b"{}" * 1000}
LINK = 0o120777 << 16


@pytest.fixture(scope="module")
def unpack(load_script):
    return load_script(UNPACK)


def archive(folder: Path, files: list[tuple[str, bytes, int]], name: str = "a_bundle_v0.1.0.zip") -> Path:
    """Write a zip of names, contents and modes, with its right checksum next to it: only what is inside is wrong."""
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for file, content, attributes in files:
            member = zipfile.ZipInfo(file)
            member.external_attr = attributes
            member.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(member, content)
    return sign(path)


def sign(path: Path) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    return path


def plain(**extra: bytes) -> list[tuple[str, bytes, int]]:
    return [(name, content, 0o100644 << 16) for name, content in {**GOOD, **extra}.items()]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_unpacks_what_is_in_it(unpack, tmp_path):
    root = unpack.unpack(archive(tmp_path, plain()), tmp_path / "out")
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()} == GOOD
    assert left(tmp_path / "out") == ["a_bundle"]


EVIL = {
    "zip slip": ([("a_bundle/../../evil", b"x", 0)], "no plain path"),
    "zip slip at once": ([("../evil", b"x", 0)], "no plain path"),
    "absolute": ([("/tmp/evil", b"x", 0)], "no plain path"),
    "drive": ([("C:/evil", b"x", 0)], "colon"),
    "backslashes": ([("a_bundle\\..\\..\\evil", b"x", 0)], "backslash"),
    "control character": ([("a_bundle/e\nvil", b"x", 0)], "control character"),
    "empty part": ([("a_bundle//evil", b"x", 0)], "no plain path"),
    "link": ([("a_bundle/link", b"/etc", LINK)], "is a link"),
    "through a link": ([("a_bundle/link", b"/tmp", LINK), ("a_bundle/link/evil", b"x", 0)], "is a link"),
    "device": ([("a_bundle/device", b"", 0o060644 << 16)], "is a link or a device"),
    "several folders": ([("b_bundle/evil", b"x", 0)], "one base folder"),
    "loose file": ([("evil", b"x", 0)], "one base folder"),
    "twice": ([("a_bundle/license", b"x", 0)], "twice"),
    "file and folder": ([("a_bundle/LICENSE/evil", b"x", 0)], "a file and a folder"),
    "bomb": ([("a_bundle/zeros", bytes(4 << 20), 0)], "would grow"),
}


@pytest.mark.parametrize("case", EVIL)
def test_refuses(unpack, tmp_path, case):
    members, message = EVIL[case]
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(unpack.UnsafeArchiveError, match=message):
        unpack.unpack(archive(folder, plain() + members), tmp_path / "out")
    assert left(tmp_path) == ["downloads"], "something was written"


def test_refuses_more_than_it_may_take(unpack, tmp_path):
    path = archive(tmp_path, plain(**{"a_bundle/big": os.urandom(2 << 20)}))
    with pytest.raises(unpack.UnsafeArchiveError, match="at most 1 MiB unpacked, found 2 MiB"):
        unpack.unpack(path, tmp_path / "out", max_mib=1)
    assert not (tmp_path / "out").exists()


def test_refuses_too_many_files(unpack, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_FILES", 1)
    with pytest.raises(unpack.UnsafeArchiveError, match="at most 1 files, found 2"):
        unpack.unpack(archive(tmp_path, plain()), tmp_path / "out")


def test_refuses_a_member_that_lies_about_its_size(unpack, tmp_path):
    """The central directory says 4 bytes, the data are 2000: no more is read than was checked, and the CRC fails."""
    path = archive(tmp_path, plain())
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the last member's entry in the central directory
    assert struct.unpack_from("<I", content, at + 24) == (2000,)
    struct.pack_into("<I", content, at + 24, 4)
    path.write_bytes(content)
    with pytest.raises(unpack.UnsafeArchiveError, match="whole zip archive"):
        unpack.unpack(sign(path), tmp_path / "out")
    assert left(tmp_path / "out") == []


def test_refuses_another_bundle_under_this_name(unpack, tmp_path):
    with pytest.raises(unpack.UnsafeArchiveError, match=r"expected the base folder NAME of .*, found 'a_bundle'"):
        unpack.unpack(archive(tmp_path, plain(), "b_bundle_v0.1.0.zip"), tmp_path / "out")


def test_never_replaces(unpack, tmp_path):
    path = archive(tmp_path, plain())
    (tmp_path / "a_bundle").mkdir()
    with pytest.raises(FileExistsError, match="exists"):
        unpack.unpack(path, tmp_path)
    assert left(tmp_path / "a_bundle") == []


@pytest.mark.parametrize("damage", ["truncated", "one bit", "replaced by a page"])
def test_notices_damage_before_anything_is_written(unpack, tmp_path, damage):
    path = archive(tmp_path, plain())
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"<html>not found</html>")
    path.write_bytes(content)
    with pytest.raises(unpack.UnsafeArchiveError, match="nothing was unpacked"):
        unpack.unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_needs_a_checksum(unpack, tmp_path):
    path = archive(tmp_path, plain())
    beside = path.with_name(path.name + ".sha256")
    right = beside.read_text().split()[0]
    beside.write_text(f"{right}  another.zip\n")
    with pytest.raises(unpack.UnsafeArchiveError, match=r"expected '<64 hexadecimal digits>  a_bundle_v0.1.0.zip'"):
        unpack.unpack(path, tmp_path / "out")
    beside.unlink()
    with pytest.raises(unpack.UnsafeArchiveError, match="expected its checksum, by --sha256"):
        unpack.unpack(path, tmp_path / "out")
    assert unpack.unpack(path, tmp_path / "out", right.upper()).is_dir()


def test_command_line_alone_without_any_package(tmp_path):
    """As users have it: the script next to the package, in a Python without site-packages."""
    path = archive(tmp_path, plain())
    (tmp_path / "unpack.py").write_bytes(UNPACK.read_bytes())
    command = [sys.executable, "-I", "-S", "unpack.py", path.name, "--out", "here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path("here/a_bundle")
    path.write_bytes(path.read_bytes()[:-1])
    done = subprocess.run([*command[:-1], "there"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "expected SHA-256" in done.stderr
    assert not (tmp_path / "there").exists()


# What `python -m monai.bundle download` does after it has written NAME.zip; docs/publishing.md says it to users.
MONAI_REFUSES = ("zip slip", "zip slip at once", "absolute")
MONAI_TAKES = ("several folders", "loose file", "bomb", "link")


@pytest.mark.parametrize("case", MONAI_REFUSES + MONAI_TAKES)
def test_what_monai_does_with_it(tmp_path, case):
    path = archive(tmp_path, plain() + EVIL[case][0], "a_bundle.zip")
    if case in MONAI_REFUSES:
        with pytest.raises(ValueError, match=r"Unsafe path"):
            extractall(path, tmp_path / "out", has_base=True)
        assert left(tmp_path / "out") == ["a_bundle"]  # what came before the bad member stays, and is taken next time
    else:
        extractall(path, tmp_path / "out", has_base=True)
        assert not any(found.is_symlink() for found in (tmp_path / "out").rglob("*"))
        assert left(tmp_path / "out") == sorted({name.split("/")[0] for name, _, _ in plain() + EVIL[case][0]})


def test_monai_keeps_what_it_unpacked_of_a_damaged_package(tmp_path):
    """It raises, and the next download finds a folder that is not empty and says nothing: hence unpack.py."""
    path = archive(tmp_path, plain(), "a_bundle.zip")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x03\x04") + 30 + len("a_bundle/configs/train.json") + 3] ^= 255
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"CRC|decompressing|invalid"):
        extractall(path, tmp_path / "out", has_base=True)
    assert (tmp_path / "out" / "a_bundle" / "LICENSE").is_file()
    extractall(path, tmp_path / "out", has_base=True)


@pytest.mark.parametrize(
    ("entry", "place", "value"), [(b"PK\5\6", 16, 0xFFFFFF00), (b"PK\1\2", 42, 0xFFFFFF00), (b"PK\1\2", 8, 0x0800)]
)
def test_broken_directories_are_refused_as_damage(unpack, tmp_path, entry, place, value):
    """A directory or a file that begins beyond the archive's end, and a name that is not in UTF-8 though marked so."""
    path = archive(tmp_path, plain())
    content = bytearray(path.read_bytes().replace(b"LICENSE", b"LICENS\xff"))
    start = content.index(entry) + place
    content[start : start + 4] = struct.pack("<I", value)
    path.write_bytes(content)
    sign(path)
    with pytest.raises(unpack.UnsafeArchiveError, match=path.name):
        unpack.unpack(path, tmp_path / "out")
    assert not left(tmp_path / "out")


@pytest.mark.parametrize("method", [12, 14, 99])
def test_other_compressions_are_refused(unpack, tmp_path, method):
    """Their readers raise errors of their own for data that are damaged."""
    path = archive(tmp_path, plain())
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\1\2") + 10
    content[place : place + 2] = struct.pack("<H", method)
    path.write_bytes(content)
    sign(path)
    with pytest.raises(unpack.UnsafeArchiveError, match=f"LICENSE' is compressed by method {method}, expected"):
        unpack.unpack(path, tmp_path / "out")
    assert not left(tmp_path / "out")
