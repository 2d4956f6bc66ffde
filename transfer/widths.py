# SPDX-License-Identifier: Apache-2.0
"""Whether a study compares networks of one width: pretrained weights bring theirs, random ones take the bundle's."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser

from ..datasets.io.scan_header import root_cause_message
from ..networks.weight_settings import settings_path
from .settings import weight_path
from .study import Study, StudyError
from .workflow import forget_other_scripts

Width = tuple[int, ...]

NETWORK = "network_def"
WIDTH_KEYS = ("features", f"{NETWORK}#features")


def check_widths(study: Study) -> list[str]:
    """Refuse arms whose networks differ in width without a word of the study.

    The fine-tuning bundles take the width of ``--pretrained`` from the ``model.json`` next to the weights, and their
    own from scratch. A permuted arm has the width of its source.

    Args:
        study: the study.

    Returns:
        Arms whose width cannot be told, since their weights are not here.

    Raises:
        StudyError: when an arm that says nothing of its width differs from another one, or a width cannot be computed.
    """
    if all(_says_width(study, arm) for arm in study.arms):
        return []
    widths = {arm: _width(study, arm) for arm in study.arms if _is_here(study, arm)}
    found = {arm: width for arm, width in widths.items() if width is not None}
    if len(set(found.values())) > 1 and not all(_says_width(study, arm) for arm in found):
        raise StudyError(_message(study, found))
    return [arm for arm in study.arms if arm not in widths and found]


def _overrides(study: Study, arm: str) -> dict[str, Any]:
    """Give the keys that a study sets in an arm's trainings, as far as they are its own."""
    own = study.arms[arm]
    groups = study.overrides, study.train_overrides, own.overrides, own.train_overrides
    return {key.replace("::", "#"): value for group in groups for key, value in group.items()}


def _says_width(study: Study, arm: str) -> bool:
    overrides = _overrides(study, arm)
    network = overrides.get(NETWORK)
    whole = isinstance(network, Mapping) and isinstance(network.get("features"), list)
    return whole or any(key in overrides for key in WIDTH_KEYS)


def _is_here(study: Study, arm: str) -> bool:
    weights = weight_path(study, arm)
    return weights is None or _says_width(study, arm) or weights.is_file() or settings_path(weights).is_file()


def _width(study: Study, arm: str) -> Width | None:
    """Compute the width of an arm's network as its training will; None for a network that has no such argument."""
    weights = weight_path(study, arm)
    parser = ConfigParser()
    parser.read_config([str(study.bundle / name) for name in study.train])
    given = {"bundle_root": str(study.bundle), "dataset_dir": str(study.dataset_dir), "datalist": str(study.datalist)}
    parser.update(given | _overrides(study, arm) | {"pretrained": "none" if weights is None else str(weights)})
    network = parser.get(NETWORK)
    if not isinstance(network, Mapping) or "features" not in network:
        return None
    search_path = list(sys.path)
    forget_other_scripts(study.bundle)
    sys.path.insert(0, str(study.bundle))
    try:
        return tuple(int(channels) for channels in parser.get_parsed_content(f"{NETWORK}#features"))
    except Exception as error:
        raise StudyError(
            f"{study.path}: arms#{arm}: expected to learn the network's width from the key features of {study.bundle}, "
            f"found: {root_cause_message(error)}"
        ) from error
    finally:
        sys.path[:] = search_path


def _message(study: Study, widths: Mapping[str, Width]) -> str:
    found = "; ".join(f"{arm}: {list(width)}" for arm, width in widths.items())
    pretrained = {width for arm, width in widths.items() if study.arms[arm].weights is not None}
    width = json.dumps(list(pretrained.pop())) if len(pretrained) == 1 else "[...]"
    return (
        f"{study.path}: arms: expected networks of one width, found features {found}. Weights bring their own, random "
        f'ones take the bundle\'s. Write "overrides": {{"features": {width}}} in the study for one network in all, or '
        '"overrides": {"features": [...]} in each arm where they are to differ'
    )
