# SPDX-License-Identifier: Apache-2.0
"""From weights and a folder of scans to a file of vectors: what ``python -m models_genesis.transfer embed`` does."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets import list_folder, load_datalist
from ..datasets.datalist import NAME_EXCLUDED
from ..datasets.io.csv_file import printable, safe_cell
from ..networks import load_network
from ..networks.pretrained_config import PREPROCESSING
from ..networks.weight_container import sha256_of
from ..networks.weight_files import atomic_save
from ..training import check_model_settings
from .embedding import Embedding, embed_scans

__all__ = ["embed_files", "find_images", "load_with_settings", "save_embedding"]

_SUFFIXES = (".npz", ".csv")


def embed_files(
    weights: str | Path,
    images: str | Path,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    allow_changed_settings: bool = False,
    splits: Sequence[str] = ("training",),
    device: str | torch.device = "cpu",
    skip_bad: bool = False,
    **options: Any,
) -> Embedding:
    """Embed scans by weights from anywhere, and write the vectors: what the command line does.

    Args:
        weights: what :func:`~models_genesis.networks.load_network` takes.
        images: see :func:`find_images`.
        out: see :func:`save_embedding`.
        settings: preprocessing that the weights do not tell.
        allow_changed_settings: take ``settings`` also where the weights tell others.
        splits: see :func:`find_images`.
        device: of the network.
        skip_bad: leave out scans that cannot be read, instead of writing nothing.
        options: ``per``, ``levels``, ``modality`` and ``progress`` of :func:`embed_scans`.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: weights or images are not there.
        ValueError: weights, settings or a scan cannot be used; nothing is written.
    """
    check_suffix(out)
    network, used = load_with_settings(weights, settings, allow_changed_settings)
    entries, bad = find_images(images, splits)
    if bad and not skip_bad:
        raise ValueError(f"{images}: {len(bad)} scans cannot be read: {'; '.join(bad[:5])}")
    result = embed_scans(network.to(device), entries, used, on_bad_scan="skip" if skip_bad else "raise", **options)
    result.skipped[:0] = bad
    about = {
        "weights": str(weights),
        "weights_sha256": sha256_of(network.weight_report.path),
        "settings": json.dumps({key: used[key] for key in PREPROCESSING if key in used}),
    }
    save_embedding(result, out, about)
    return result


def load_with_settings(
    weights: str | Path, settings: Mapping[str, Any] | None = None, allow_changed_settings: bool = False
) -> tuple[Any, dict[str, Any]]:
    """Load weights together with the preprocessing that they want.

    Args:
        weights: what :func:`~models_genesis.networks.load_network` takes.
        settings: preprocessing that the weights do not tell.
        allow_changed_settings: take ``settings`` also where the weights tell others.

    Returns:
        The network in evaluation mode, and the settings.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: weights or settings cannot be used.
    """
    network = load_network(weights)
    recorded, given = dict(network.model_settings) or _published(network), dict(settings or {})
    check_model_settings(recorded, given, allow_changed_settings)
    return network, recorded | given


def _published(network: Any) -> dict[str, Any]:
    """Give the preprocessing of the original's weights, which come without settings (arXiv:2004.07882, section 3)."""
    if "original Models Genesis" not in network.weight_report.layout:
        return {}
    return {"intensity_range": [-1000, 1000], "cube_size": [64, 64, 32]}


def find_images(source: str | Path, splits: Sequence[str] = ("training",)) -> tuple[list[dict[str, Any]], list[str]]:
    """List the scans to embed.

    Args:
        source: a folder, in which every scan is taken, or a data list.
        splits: lists of the data list.

    Returns:
        Entries with an absolute ``image``, and a ``label`` where the data list has one; and what is wrong with scans of
        the folder that cannot be read. Files that are called as label maps are, are passed over.

    Raises:
        FileNotFoundError: there is no such folder or data list.
        ValueError: it has no scans, or not these lists.
    """
    path = Path(source)
    if not path.is_dir():
        return [entry for split in splits for entry in load_datalist(path, key=split)], []
    summary = list_folder(path, min_size=(1, 1, 1), modality="any")
    bad = [f"{scan.name}: {scan.detail}" for scan in summary.scans if scan.reason not in ("", NAME_EXCLUDED)]
    return [{"image": str(path.resolve() / scan.name)} for scan in summary.scans if scan.split], bad


def check_suffix(path: str | Path) -> Path:
    """Refuse a name of a kind of file that is not written, before any work is done.

    Args:
        path: the file to write.

    Returns:
        The path.

    Raises:
        ValueError: naming what is written.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(
            f"{path}: expected a name that ends in {' or '.join(_SUFFIXES)}, found {path.suffix!r}; pandas makes "
            "Parquet of either"
        )
    return path


def save_embedding(result: Embedding, path: str | Path, about: Mapping[str, str] | None = None) -> Path:
    """Write vectors, as a whole or not at all.

    Args:
        result: the vectors.
        path: ``.npz`` with the arrays ``features``, ``image``, ``label``, ``centre_mm`` and ``skipped``, to be read by
            ``numpy.load``; or ``.csv`` with the columns ``image``, ``label``, ``x``, ``y``, ``z``, ``f0``, ``f1``, ...
        about: texts that go into the ``.npz``.

    Returns:
        The path.

    Raises:
        ValueError: another suffix.
    """
    path = check_suffix(path)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {
            "features": np.stack(result.features),
            "image": np.array([printable(image) for image in result.images]),
            "label": np.array(result.labels, dtype=np.int64),
            "centre_mm": np.stack(result.centres),
            "skipped": np.array([printable(text) for text in result.skipped], dtype=str),
        }
        arrays |= {key: np.array(text) for key, text in (about or {}).items()}
        atomic_save(lambda file: np.savez_compressed(file, **arrays), path)
        return path
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "label", "x", "y", "z", *(f"f{number}" for number in range(len(result.features[0])))])
    for row in zip(result.images, result.labels, result.centres, result.features, strict=True):
        image, label, centre, features = row
        cells = [safe_cell(printable(image)), "" if label < 0 else label, *(f"{at:.3f}" for at in centre)]
        writer.writerow([*cells, *(f"{value:.8g}" for value in features)])
    atomic_save(lambda file: file.write(text.getvalue().encode()), path)
    return path
