# SPDX-License-Identifier: Apache-2.0
"""Reading ``model.json``, which tells how the weights next to it were trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .weight_container import sha256_of

__all__ = ["ModelSettingsError", "read_settings_file", "settings_entry", "settings_of_weights", "settings_path"]

logger = logging.getLogger(__name__)

FORMAT = 1


class ModelSettingsError(ValueError):
    """Settings differ from those that the weights were trained with, or cannot be told."""


def settings_path(weights: str | Path) -> Path:
    """Give the file that holds the settings of weights: their name with ``.json``."""
    return Path(weights).with_suffix(".json")


def settings_of_weights(weights: str | Path) -> dict[str, Any]:
    """Read the settings that weights were trained with.

    Args:
        weights: the file; it need not exist.

    Returns:
        The settings by key; empty where there is no JSON next to the weights, as of weights from elsewhere.

    Raises:
        ModelSettingsError: the JSON cannot be read, or describes other weights.
    """
    weights = Path(weights)
    path = settings_path(weights)
    if not path.is_file():
        return {}
    content = read_settings_file(path)
    entry = settings_entry(weights, content) if weights.is_file() else content
    if entry is None:
        if Path(str(content["weights"].get("file"))).suffix not in ("", weights.suffix):
            return {}  # of model.pt, in the folder of a model.safetensors
        raise ModelSettingsError(
            f"{path}: expected the settings of {weights.name}, whose SHA-256 is {sha256_of(weights)}, found those of "
            f"weights with {content['weights']['sha256']}. Put the JSON next to the weights it was written with, or "
            "remove it to go by the bundle's keys alone"
        )
    logger.info("%s: trained with %s", path, entry["settings"])
    return dict(entry["settings"])


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read a file of settings and check its form.

    Args:
        path: the JSON.

    Returns:
        Its content.

    Raises:
        ModelSettingsError: it cannot be read, or has another form.
    """
    expected = "expected the settings that training writes next to its weights"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelSettingsError(f"{path}: {expected}, found: {error}") from error
    for entry in [content, *([content["previous"]] if isinstance(content, dict) and "previous" in content else [])]:
        well_formed = (
            isinstance(entry, dict)
            and isinstance(entry.get("settings"), dict)
            and isinstance(entry.get("weights"), dict)
            and isinstance(entry["weights"].get("sha256"), str)
        )
        if not well_formed:
            raise ModelSettingsError(f"{path}: {expected}, found no 'settings' and 'weights' with a 'sha256'")
    if content.get("format") != FORMAT:
        raise ModelSettingsError(f"{path}: {expected} in format {FORMAT}, found {content.get('format')!r}")
    return dict(content)


def settings_entry(weights: Path, content: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
    """Give the part of a file of settings that describes the weights next to it.

    Args:
        weights: the weights.
        content: of their JSON, read where it is not given.

    Returns:
        The part, None where none describes these weights.
    """
    if content is None:
        if not (weights.is_file() and settings_path(weights).is_file()):
            return None
        try:
            content = read_settings_file(settings_path(weights))
        except ModelSettingsError:  # about to be replaced
            return None
    sha256 = sha256_of(weights)
    entries = [content, content.get("previous")]
    return next((entry for entry in entries if entry and entry["weights"]["sha256"] == sha256), None)
