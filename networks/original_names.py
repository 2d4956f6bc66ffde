# SPDX-License-Identifier: Apache-2.0
"""The tensor names of the original Models Genesis U-Net, by rule, in terms of ours."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"(down|up)_tr(\d+)\.ops\.([01])\.(conv1|bn1)\.(\w+)")
_UPSAMPLE = re.compile(r"up_tr(\d+)\.up_conv\.(\w+)")
_HEAD = re.compile(r"out_tr\.final_conv\.(\w+)")
_SIDES = {"down": ("encoder", ""), "up": ("decoder", "merge.")}
_LAYERS = {"conv1": "conv", "bn1": "norm"}


def _level(channels: str) -> int | None:
    """Turn the number in the original's block name (64, 128, 256, ...) into the level (0, 1, 2, ...)."""
    ratio, rest = divmod(int(channels), 64)
    return ratio.bit_length() - 1 if rest == 0 and ratio.bit_count() == 1 else None


def from_original_name(name: str) -> str | None:
    """Give our name of a tensor of the original network (the PyTorch one of arXiv:2004.07882).

    The rule: ``down_trN`` is level ``l`` of the encoder and ``up_trN`` level ``l`` of the decoder with
    ``N = 64 * 2 ** l``; in them ``ops.i.conv1`` is ``conv(i + 1)`` and ``ops.i.bn1`` is ``norm(i + 1)``, under
    ``merge`` in the decoder; ``up_conv`` is ``upsample`` and ``out_tr.final_conv`` is ``head``. The last part (weight,
    bias, running_mean, ...) stays.

    Args:
        name: the original's name without the ``module.`` of DataParallel.

    Returns:
        Our name, or None where ``name`` is not one of the original's.

    Example:
        >>> from_original_name("down_tr128.ops.0.bn1.running_var")
        'encoder.levels.1.norm1.running_var'
        >>> from_original_name("up_tr64.up_conv.weight")
        'decoder.levels.0.upsample.weight'
    """
    if match := _BLOCK.fullmatch(name):
        side, channels, index, layer, kind = match.groups()
        (part, block), level = _SIDES[side], _level(channels)
        return None if level is None else f"{part}.levels.{level}.{block}{_LAYERS[layer]}{int(index) + 1}.{kind}"
    if match := _UPSAMPLE.fullmatch(name):
        level = _level(match[1])
        return None if level is None else f"decoder.levels.{level}.upsample.{match[2]}"
    if match := _HEAD.fullmatch(name):
        return f"head.{match[1]}"
    return None
