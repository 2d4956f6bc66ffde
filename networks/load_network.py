# SPDX-License-Identifier: Apache-2.0
"""A network of whichever kind weights are of."""

from __future__ import annotations

import os
from typing import Any

from .hub import NETWORKS
from .pretrained_config import read_config
from .pretrained_files import find_files
from .weight_files import read_weights

__all__ = ["load_network"]


def load_network(source: str | os.PathLike[str], filename: str | None = None, **options: Any) -> Any:
    """Make whichever of our networks weights are of, as their ``from_pretrained`` does.

    Args:
        source: a file, a folder, or a repository of the Hugging Face hub.
        filename: the weights' name in folder or repository, where it is not one of the usual.
        options: of ``huggingface_hub.hf_hub_download``, for a repository.

    Returns:
        A :class:`GenesisUNet` or a :class:`GenesisClassifier`, in evaluation mode.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: the weights are of no network of ours, contradict their config, or are damaged.
    """
    files = find_files(source, filename, **options)
    kind = read_config(files, read_weights(files.weights), NETWORKS).network
    make: Any = NETWORKS[kind]
    return make.from_pretrained(files.weights)
