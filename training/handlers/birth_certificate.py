# SPDX-License-Identifier: Apache-2.0
"""Where weights come from: ``birth_certificate.json``, written by the training itself next to ``model.pt``.

Who downloads weights wants to know which scans they have seen (so that none of them is tested on), under which licence,
by which code, how long, and how good they are. The training knows all but the last; evaluations are added by
``tools/ship_weights.py``, which takes reports on the same weights alone.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple

from ...datasets.io.atomic_write import atomic_text
from ...datasets.io.file_hash import hash_of_files
from ...networks.weight_container import sha256_of
from ..engines.running_workflow import running_workflow
from .run_settings import entries_of

__all__ = [
    "CERTIFICATE",
    "data_of_birth",
    "session_of_now",
    "source_of_weights",
    "sources_of_run",
    "write_birth_certificate",
]

logger = logging.getLogger(__name__)

CERTIFICATE = "birth_certificate.json"
FORMAT = 1

_LIST_KEYS = ("name", "description", "licence", "license", "reference", "release", "split_rule", "use")
_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "numba", "nibabel")


def write_birth_certificate(
    weights: str | Path,
    settings: Mapping[str, Any],
    sources: Mapping[str, Any],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Path:
    """Write the certificate of weights next to them.

    Args:
        weights: the file that the training has written.
        settings: of the run, see :func:`~models_genesis.training.handlers.run_settings.settings_of_run`.
        sources: data list and weights that the training started from, see :func:`sources_of_run`.
        data: scans by use, see :func:`data_of_birth`.
        training: epochs, steps, hours, sessions, the measure that chose the weights.

    Returns:
        The certificate's path.
    """
    path = Path(weights).with_name(CERTIFICATE)
    tensors = torch.load(weights, map_location="cpu", weights_only=True)
    floating = [tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()]
    content = {
        "format": FORMAT,
        "weights": {
            "file": Path(weights).name,
            "sha256": sha256_of(weights),
            "values": sum(floating),
        },
        "training": dict(training),
        **sources,
        "data": dict(data),
        "settings": dict(settings),
        "evaluations": {},
    }
    with atomic_text(path) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")
    logger.info("wrote %s", path)
    return path


def session_of_now(first_epoch: int) -> dict[str, Any]:
    """Describe the code and the machine that train from now on; a resumed training has several such sessions.

    Args:
        first_epoch: the first epoch of the session, from 1.
    """
    return {
        "first_epoch": first_epoch,
        "last_epoch": first_epoch - 1,
        "begun": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "code": _code(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "machine": _machine(),
    }


def sources_of_run() -> dict[str, Any]:
    """Name the data list and the weights that the running workflow starts from.

    Returns:
        ``datalist``: its name, SHA-256 and what it says of licence and origin, ``pretrained``: name and SHA-256 of the
        weights that the training starts from; both None where there is none, or outside of a workflow.
    """
    workflow: Any = running_workflow()
    found: dict[str, Any] = {"datalist": None, "pretrained": None}
    if workflow is None:
        return found
    keys = [
        key for key in ("datalist", "dataset_dir", "store", "candidates", "pretrained") if key in workflow.parser.config
    ]
    given = {key: workflow.parser.get_parsed_content(key) for key in keys}
    # a store brings its list; what lies in dataset_dir then has no part in the training
    listed = None if given.get("store") else Path(str(given.get("dataset_dir"))) / "dataset.json"
    datalist = given.get("datalist") or listed
    if datalist is not None and Path(datalist).is_file():
        found["datalist"] = _describe_list(Path(datalist))
    table = given.get("candidates")
    if table is not None and Path(table).is_file():
        found["candidates"] = {"file": Path(table).name, "sha256": sha256_of(table)}
    pretrained = given.get("pretrained")
    if pretrained is not None and Path(pretrained).is_file():
        found["pretrained"] = source_of_weights(pretrained)
    return found


def source_of_weights(weights: str | Path, sha256: str | None = None) -> dict[str, Any]:
    """Name a file of weights, and say what they have seen.

    Args:
        weights: the file.
        sha256: of the file, where it has been hashed already.

    Returns:
        ``file`` and ``sha256``; where a birth certificate lies next to it, ``data``, the scans by use, and
        ``pretrained``, the same of the weights that these started from. Both are None where the certificate is of
        other weights, or cannot be read, which is logged.
    """
    source: dict[str, Any] = {"file": Path(weights).name, "sha256": sha256 or sha256_of(weights)}
    certificate = Path(weights).with_name(CERTIFICATE)
    if not certificate.is_file():
        return source
    source |= {"data": None, "pretrained": None}
    try:
        content = json.loads(certificate.read_text(encoding="utf-8"))
        if content["weights"]["sha256"] != source["sha256"]:
            raise ValueError(f"that of weights with sha256 {content['weights']['sha256']}")
        _check_source(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s: expected the birth certificate of %s, found %r; what these weights have seen is left out",
                       certificate, source["file"], error)  # fmt: skip
        return source
    return {**source, "data": content["data"], "pretrained": content.get("pretrained")}


def _check_source(source: Mapping[str, Any]) -> None:
    """Go through the scans that weights have seen, and those that they started from."""
    for scans in (source["data"] or {}).values():
        for scan in scans:
            scan.get("patient")
            for image in images_of(scan):
                image["file"], image["sha256"]
    if source.get("pretrained") and source["pretrained"].get("data"):
        _check_source(source["pretrained"])


def images_of(scan: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The images of a scan as :func:`data_of_birth` describes it, each with ``file`` and ``sha256``."""
    images = scan.get("image", ())
    return (images,) if isinstance(images, Mapping) else tuple(images)


def data_of_birth(dataset: Any, keys: Sequence[str] = ("image", "label")) -> list[dict[str, Any]]:
    """List the scans of a data set with the SHA-256 of each file.

    Args:
        dataset: whose ``data`` are the entries of a data list, or a set of candidates with such.
        keys: of the files in an entry that are hashed.

    Returns:
        For each scan its patient and licence, if the list says, and of each of its files the path below the folder that
        all have in common, and the SHA-256. Empty for a data set of anything else.
    """
    entries = entries_of(dataset) or []
    files = {os.path.abspath(name) for entry in entries for key in keys for name in _file_names(entry.get(key))}
    if not files:
        return []
    try:
        root = os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:  # several drives of Windows
        root = ""
    logger.info("hashing %d files", len(files))
    hashes = _stored_hashes(entries)
    hashes |= {file: hash_of_files(file) for file in sorted(files - set(hashes))}
    return [_scan(entry, root, hashes, keys) for entry in entries]


def _stored_hashes(entries: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """The hashes that a store of prepared scans has noted, for the files need not be here any more."""
    stored = [entry for entry in entries if isinstance(entry.get("stored"), Mapping)]
    return {os.path.abspath(entry["image"]): entry["stored"].get("sha256") or None for entry in stored}


def _file_names(value: Any) -> list[str | os.PathLike[str]]:
    """The files of an entry's key: one, several, or none where there are tensors or nothing."""
    return [name for name in ensure_tuple(value) if isinstance(name, str | os.PathLike)]


def _scan(entry: Mapping[str, Any], root: str, hashes: Mapping[str, str | None], keys: Sequence[str]) -> dict[str, Any]:
    scan: dict[str, Any] = {key: entry[key] for key in ("patient", "licence") if entry.get(key)}
    for key in keys:
        described = [
            {
                "file": Path(os.path.relpath(name, root)).as_posix() if root else Path(name).name,
                "sha256": hashes[os.path.abspath(name)],
            }
            for name in _file_names(entry.get(key))
        ]
        if described:
            scan[key] = described[0] if len(described) == 1 else described
    return scan


def _describe_list(path: Path) -> dict[str, Any]:
    description: dict[str, Any] = {"file": path.name, "sha256": sha256_of(path)}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return description
    if isinstance(content, Mapping):
        description |= {key: content[key] for key in _LIST_KEYS if key in content}
    return description


@cache
def _code() -> dict[str, Any]:
    """Version of this package, and the commit of its working tree if it is one."""
    here = Path(__file__).resolve().parent
    code: dict[str, Any] = {"models-genesis": _version("models-genesis")}
    try:
        commit = _git(here, "rev-parse", "HEAD")
        tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError) as error:
        # an installed package, a bundle with the code packed in, or a working tree that git will not read
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()
        return {**code, "commit": None, "no_commit_because": reason[0] if reason else type(error).__name__}
    return {**code, "commit": commit, "changed": bool(changed)} if tracked else code


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if torch.cuda.is_available():
        machine["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return machine


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
