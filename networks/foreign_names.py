# SPDX-License-Identifier: Apache-2.0
"""Tensor names of other projects' pretrained weights, by rule, in terms of the network that takes them."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["translate_foreign_names"]

# learned from the projects' public loading code; each rule is a pattern and what takes its place
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "names below backbone, as in SuPreM, the Universal Model and VoCo": ((r"^backbone\.", ""),),
    "names of MONAI's self-supervised Swin transformer (model_swinvit.pt)": (
        (r"^(?:swin_vit\.|swinViT\.)?(patch_embed|layers[1-4]c?)\.", r"swinViT.\1."),
        (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
    ),
    "names of MONAI's disruptive autoencoder (ssl_pretrained_weights.pth)": (
        (r"^encoder\.(layers[1-4]\.0)\.0\.", r"swinViT.\1."),
        (r"^encoder\.patch_embed\.", "swinViT.patch_embed."),
    ),
    "names of a ResNet, as in torchvision, for the encoder of a U-Net": (
        (r"^(conv1|bn1|layer[1-4])\.", r"encoder.\1."),
    ),
}


def translate_foreign_names(found: Collection[str], wanted: Collection[str]) -> tuple[dict[str, str], str]:
    """Find the project whose naming fits a network, where the names themselves do not.

    Args:
        found: bare names in a file.
        wanted: bare names of the network.

    Returns:
        Names of the network by names in the file, and the layout in words; names as they are and ``""`` where no other
        naming fits more tensors.

    Example:
        >>> translate_foreign_names(["backbone.head.bias", "controller.bias"], ["head.weight", "head.bias"])[0]
        {'backbone.head.bias': 'head.bias', 'controller.bias': 'controller.bias'}
    """
    best, words = {name: name for name in found}, ""
    most = len(set(found) & set(wanted))
    for layout, rules in _LAYOUTS.items():
        names = {name: _translated(name, rules) for name in found}
        names = {name: new if new in wanted else name for name, new in names.items()}
        fitting = len(set(names.values()) & set(wanted))
        if fitting > most and len(set(names.values())) == len(names):
            best, words, most = names, layout, fitting
    return best, words


def _translated(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
