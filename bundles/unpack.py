# SPDX-License-Identifier: Apache-2.0
"""Check a packed bundle against its SHA-256 and unpack it, all of it or nothing.

``python unpack.py NAME_vVERSION.zip --out DIR`` needs ``NAME_vVERSION.zip.sha256`` next to it, or ``--sha256``.
It stands alone: Python 3.10 or newer, no other package, so it can be published and downloaded next to the packages.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

MAX_FILES = 10_000
MAX_MIB = 2048
MAX_RATIO = 200
CHUNK = 1 << 20


class UnsafeArchiveError(ValueError):
    """A package that must not be used."""


def sha256_of(path: Path) -> str:
    """Compute a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def published_sha256(archive: Path) -> str:
    """Read the checksum from the ``.sha256`` file next to a package, in the format of ``sha256sum``.

    Args:
        archive: the package.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnsafeArchiveError: when there is no such file, or it names another package.
    """
    beside = archive.with_name(archive.name + ".sha256")
    if not beside.is_file():
        raise UnsafeArchiveError(f"{archive}: expected its checksum, by --sha256 or as {beside}; found none")
    line = beside.read_text(encoding="utf-8", errors="replace").strip()
    match = re.fullmatch(r"([0-9a-fA-F]{64})[ \t]+\*?(\S+)", line)
    if match is None or match[2] != archive.name:
        raise UnsafeArchiveError(f"{beside}: expected '<64 hexadecimal digits>  {archive.name}', found {line[:120]!r}")
    return match[1]


def check_members(archive: Path, members: Sequence[zipfile.ZipInfo], max_mib: int = MAX_MIB) -> str:
    """Refuse an archive that would write elsewhere than below one folder, or more than it should.

    Args:
        archive: the package, for messages.
        members: what it says it holds.
        max_mib: how much all files together may take, MiB.

    Returns:
        The name of its one base folder.

    Raises:
        UnsafeArchiveError: naming the member and the rule.
    """
    if not members:
        raise UnsafeArchiveError(f"{archive}: expected a bundle, found an empty archive")
    if len(members) > MAX_FILES:
        raise UnsafeArchiveError(f"{archive}: expected at most {MAX_FILES} files, found {len(members)}")
    seen: set[str] = set()
    for member in members:
        _check_member(archive, member)
        name = member.filename.rstrip("/").casefold()
        if name in seen:
            raise UnsafeArchiveError(f"{archive}: {member.filename!r} stands in it twice, upper and lower case alike")
        seen.add(name)
    files = {member.filename.casefold() for member in members if not member.is_dir()}
    for name in seen:
        parts = name.split("/")
        if inside := files & {"/".join(parts[:depth]) for depth in range(1, len(parts))}:
            raise UnsafeArchiveError(f"{archive}: {min(inside)!r} is a file and a folder")
    total = sum(member.file_size for member in members)
    if total > max_mib * 1024**2:
        raise UnsafeArchiveError(f"{archive}: expected at most {max_mib} MiB unpacked, found {total / 1024**2:.0f} MiB")
    bases = sorted({member.filename.split("/")[0] for member in members})
    if len(bases) > 1 or any("/" not in member.filename for member in members):
        raise UnsafeArchiveError(f"{archive}: expected one base folder that holds all files, found {bases[:5]}")
    stem = archive.name.removesuffix(".zip")
    if stem != bases[0] and not stem.startswith(f"{bases[0]}_v"):
        raise UnsafeArchiveError(f"{archive}: expected the base folder NAME of NAME_vVERSION.zip, found {bases[0]!r}")
    return bases[0]


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    name, mode = member.orig_filename, member.external_attr >> 16
    parts = name.removesuffix("/").split("/")
    if name != member.filename or "\\" in name or ":" in name or not name.isprintable():
        raise UnsafeArchiveError(f"{archive}: {name!r} has a backslash, a colon or a control character in its name")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise UnsafeArchiveError(f"{archive}: {name!r} is no plain path below the archive's folder")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchiveError(f"{archive}: {name!r} is a link or a device, expected plain files")
    if member.flag_bits & 0x1:
        raise UnsafeArchiveError(f"{archive}: {name!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsafeArchiveError(
            f"{archive}: {name!r} is compressed by method {member.compress_type}, expected it stored or deflated"
        )
    if member.file_size > CHUNK and member.file_size > MAX_RATIO * max(member.compress_size, 1):
        raise UnsafeArchiveError(
            f"{archive}: {name!r} would grow from {member.compress_size} to {member.file_size} bytes, "
            f"expected at most {MAX_RATIO} times"
        )


def unpack(archive: Path, out: Path, sha256: str | None = None, max_mib: int = MAX_MIB) -> Path:
    """Check a package and unpack it: to a temporary folder next to its place, then renamed.

    Args:
        archive: ``NAME_vVERSION.zip`` or ``NAME.zip``.
        out: folder to which ``NAME/`` is written.
        sha256: 64 hexadecimal digits; None takes those of the ``.sha256`` file next to the package.
        max_mib: how much it may take unpacked, MiB.

    Returns:
        The unpacked bundle.

    Raises:
        FileNotFoundError: when there is no such package.
        FileExistsError: when the bundle is there already.
        UnsafeArchiveError: when the checksum differs, the archive is damaged, or it would write where it should not.
    """
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: expected a package, found no such file")
    expected = sha256 if sha256 is not None else published_sha256(archive)
    found = sha256_of(archive)
    if found != expected.strip().lower():
        raise UnsafeArchiveError(
            f"{archive}: expected SHA-256 {expected}, found {found} ({archive.stat().st_size} bytes): "
            "damaged, not completely downloaded, or another file; nothing was unpacked"
        )
    try:
        with _open_archive(archive) as opened:
            base = check_members(archive, opened.infolist(), max_mib)
            target = out / base
            if target.exists() or target.is_symlink():
                raise FileExistsError(f"{target} exists: remove it, or name another folder with --out")
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{base}.", dir=out) as temporary:
                for member in opened.infolist():
                    _write(opened, member, Path(temporary) / member.filename)
                os.rename(Path(temporary) / base, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnsafeArchiveError(f"{archive}: expected a whole zip archive, found: {error}") from error
    return target


def _open_archive(archive: Path) -> zipfile.ZipFile:
    """Open a package; its list of files may hold a name that is not in the encoding that it claims."""
    with open(archive, "rb"):
        pass  # a file that cannot be opened at all is another error than a damaged one
    try:
        return zipfile.ZipFile(archive)
    except (OSError, ValueError, struct.error) as error:
        raise zipfile.BadZipFile(f"{error}") from error


def _open_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """Open a file of a package, whose place in the archive may be one before its beginning or beyond any file."""
    try:
        return opened.open(member)
    except (OSError, ValueError, struct.error) as error:
        raise zipfile.BadZipFile(f"{member.filename!r} where it cannot be: {error}") from error


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    if member.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _open_member(opened, member) as source,
        open(path, "xb") as target,
    ):  # reads no more than file_size, checks the CRC
        shutil.copyfileobj(source, target, CHUNK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None takes that of this process.

    Returns:
        0, or 2 after one line on stderr that says what was wrong.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, metavar="ZIP", help="the package")
    parser.add_argument("--sha256", help="its checksum, from a source you trust; without it ZIP.sha256 is read")
    parser.add_argument("--out", type=Path, default=Path(), help="folder to unpack to, by default this one")
    parser.add_argument("--max-mib", type=int, default=MAX_MIB, help=f"largest unpacked size, by default {MAX_MIB} MiB")
    options = parser.parse_args(arguments)
    try:
        print(unpack(options.archive, options.out, options.sha256, options.max_mib))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
