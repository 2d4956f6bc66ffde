# SPDX-License-Identifier: Apache-2.0
"""The translation of the original's names."""

from __future__ import annotations

import pytest

from models_genesis.networks import GenesisUNet
from models_genesis.networks.original_names import from_original_name


def test_every_name_of_the_original_file_is_one_of_ours(original_shapes: dict[str, tuple[int, ...]]) -> None:
    assert len(original_shapes) == 106
    translated = {from_original_name(name.removeprefix("module.")): shape for name, shape in original_shapes.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in GenesisUNet().state_dict().items()}
    assert len(translated) == 106  # no two names became one
    assert translated == ours  # names and shapes, nothing left over on either side


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("down_tr64.ops.0.conv1.weight", "encoder.levels.0.conv1.weight"),
        ("down_tr512.ops.1.bn1.num_batches_tracked", "encoder.levels.3.norm2.num_batches_tracked"),
        ("up_tr256.up_conv.bias", "decoder.levels.2.upsample.bias"),
        ("up_tr64.ops.1.conv1.bias", "decoder.levels.0.merge.conv2.bias"),
        ("out_tr.final_conv.weight", "head.weight"),
        ("down_tr1024.ops.0.conv1.weight", "encoder.levels.4.conv1.weight"),  # a deeper variant follows the rule
        ("down_tr96.ops.0.conv1.weight", None),
        ("down_tr64.ops.2.conv1.weight", None),
        ("down_tr64.ops.0.activation.weight", None),
        ("down_tr32.ops.0.conv1.weight", None),
        ("fc.weight", None),
    ],
)
def test_rule(original: str, ours: str | None) -> None:
    assert from_original_name(original) == ours
