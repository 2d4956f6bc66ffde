# SPDX-License-Identifier: Apache-2.0
"""Finding weights and what describes them: in a file, a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .weight_settings import settings_path

__all__ = ["CONFIG", "WEIGHTS", "PretrainedFiles", "find_files", "hub_library"]

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

_NAMES = (WEIGHTS, "models/model.pt", "model.pt", "Genesis_Chest_CT.pt")
"""Names of weights: ``save_pretrained``, a bundle's folder or repository, its ``ckpt_dir``, the original's file."""

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class PretrainedFiles:
    """Weights on this machine, and what lies next to them.

    Args:
        weights: the file of weights.
        config: the ``config.json`` that belongs to them, None where there is none.
    """

    weights: Path
    config: Path | None = None


def hub_library() -> Any:
    """Import ``huggingface_hub``.

    Raises:
        ImportError: it is not installed; the message names our extra.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "repositories of the Hugging Face hub need the package huggingface_hub: pip install 'models-genesis[hub]'"
        ) from error
    return huggingface_hub


def find_files(source: str | os.PathLike[str], filename: str | None = None, **options: Any) -> PretrainedFiles:
    """Find weights on this machine, or else in a repository of the hub.

    Args:
        source: a file; a folder with ``model.safetensors``, ``models/model.pt`` (a bundle's), ``model.pt`` (a bundle's
            ``ckpt_dir``) or ``Genesis_Chest_CT.pt``; or a repository, ``owner/name``, with one of these.
        filename: the weights' name in folder or repository, where it is another one.
        options: of ``huggingface_hub.hf_hub_download``.

    Returns:
        The files; those of a repository are in the hub's cache.

    Raises:
        FileNotFoundError: there is no such file, folder or repository, or no weights in it.
        ValueError: a folder has several of the names.
        ImportError: ``source`` can only be a repository, and ``huggingface_hub`` is not installed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if filename is not None:
            raise ValueError(f"{path} is a file; filename={filename!r} is for folders and repositories")
        return PretrainedFiles(path, _config_next_to(path))
    if path.is_dir():
        return _in_folder(path, filename)
    if isinstance(source, Path) or not _REPOSITORY.fullmatch(str(source)) or path.suffix in (".pt", ".safetensors"):
        raise FileNotFoundError(
            f"{source}: expected a file of weights, a folder with {_choice(filename)}, or a repository owner/name of "
            "the Hugging Face hub, found none"
        )
    return _in_repository(str(source), filename, options)


def _choice(filename: str | None) -> str:
    return " or ".join(_NAMES) if filename is None else filename


def _config_next_to(weights: Path) -> Path | None:
    """Give ``config.json`` in the folder of a ``model.safetensors``; next to others it may be anything."""
    config = weights.with_name(CONFIG)
    return config if weights.suffix == ".safetensors" and config.is_file() else None


def _in_folder(folder: Path, filename: str | None) -> PretrainedFiles:
    names = _NAMES if filename is None else (filename,)
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        here = sorted(each.name for each in folder.iterdir())[:8]
        raise FileNotFoundError(f"{folder}: expected {_choice(filename)}, found {here or 'an empty folder'}")
    if len(found) > 1:
        raise ValueError(
            f"{folder}: expected one file of weights, found {[str(each.relative_to(folder)) for each in found]}: which "
            "is meant? Name the file itself"
        )
    return PretrainedFiles(found[0], _config_next_to(found[0]))


def _in_repository(repository: str, filename: str | None, options: Mapping[str, Any]) -> PretrainedFiles:
    """Download what is not in the cache yet, all of one commit."""
    hub = hub_library()
    missing = hub.errors.EntryNotFoundError
    reasons: list[Exception] = []
    for name in _NAMES if filename is None else (filename,):
        try:
            weights = Path(hub.hf_hub_download(repository, name, **options))
        except missing as error:
            reasons.append(error)
            if _no_answer(hub, error):  # do not wait for the hub again: only the cache is left
                options = {**options, "local_files_only": True}
            continue
        except hub.errors.RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"{repository} is not a file or folder here, and as a repository of the hub: {error}"
            ) from error
        here = {**options, "revision": _commit(weights, name) or options.get("revision")}
        _fetch_companion(hub, repository, name, here)
        return PretrainedFiles(weights, _config_next_to(weights))
    if all(_no_answer(hub, error) for error in reasons):
        raise FileNotFoundError(
            f"{repository} is not a file or folder here, nor in the cache of the Hugging Face hub, and the hub was not "
            f"asked or did not answer: {str(reasons[0]).splitlines()[0]}"
        ) from reasons[0]
    raise FileNotFoundError(f"repository {repository}: expected {_choice(filename)}, found none") from reasons[-1]


def _fetch_companion(hub: Any, repository: str, name: str, options: Mapping[str, Any]) -> None:
    """Bring what describes the weights into the cache, where the repository has it."""
    companion = CONFIG if name == WEIGHTS else settings_path(name).as_posix()
    try:
        hub.hf_hub_download(repository, companion, **options)
    except hub.errors.EntryNotFoundError as error:
        if not _no_answer(hub, error) or _known_absent(hub, repository, companion, options):
            return
        if companion == CONFIG:  # activation and norm do not show in the weights
            raise
        logger.warning("%s: %s is not in the cache, so the preprocessing is not known", repository, companion)


def _commit(weights: Path, name: str) -> str | None:
    """Tell the commit from where the cache has put a file: ``snapshots/COMMIT/NAME``."""
    folder = weights.parents[len(Path(name).parts) - 1].name
    return folder if _COMMIT.fullmatch(folder) else None


def _no_answer(hub: Any, error: Exception) -> bool:
    return isinstance(error, hub.errors.LocalEntryNotFoundError)


def _known_absent(hub: Any, repository: str, name: str, options: Mapping[str, Any]) -> bool:
    """Tell whether the hub has said before that a commit has no such file."""
    known = hub.try_to_load_from_cache(
        repository, name, cache_dir=options.get("cache_dir"), revision=options.get("revision")
    )
    return known is not None and not isinstance(known, str)
