# SPDX-License-Identifier: Apache-2.0
"""A study's answer claims no more than its test, its interval and its seeds together."""

from __future__ import annotations

import pytest

from models_genesis.transfer.answer import verdict

SHOWN = {"arm": "pretrained", "difference": 0.05, "low": 0.02, "high": 0.08, "p": 0.001, "p_holm": None, "seeds": 3}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "pretrained is better"),
        ({"difference": -0.05, "low": -0.08, "high": -0.02}, "pretrained is worse"),
        ({"seeds": 1}, "pretrained is better with this one seed, which says nothing of others"),
        ({"p": 0.05}, "no difference shown"),
        ({"p_holm": 0.2}, "no difference shown"),  # p alone would do
        ({"low": None}, "no difference shown"),
        ({"low": -0.01}, "no difference shown beyond these seeds"),
    ],
)
def test_a_difference_is_shown_by_test_and_interval_together(change, expected):
    assert verdict({**SHOWN, **change}) == expected
