# SPDX-License-Identifier: Apache-2.0
"""Each argument of a random array transform reaches it through its dictionary twin, and none another one's place."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from models_genesis.transforms import (
    RandGenesisDeform,
    RandGenesisDeformd,
    RandInPainting,
    RandInPaintingd,
    RandLocalPixelShuffle,
    RandLocalPixelShuffled,
    RandNonlinearIntensity,
    RandNonlinearIntensityd,
    RandOutPainting,
    RandOutPaintingd,
    RandPatchMasking,
    RandPatchMaskingd,
)

TWINS = [
    (RandGenesisDeform, RandGenesisDeformd),
    (RandInPainting, RandInPaintingd),
    (RandOutPainting, RandOutPaintingd),
    (RandPatchMasking, RandPatchMaskingd),
    (RandNonlinearIntensity, RandNonlinearIntensityd),
    (RandLocalPixelShuffle, RandLocalPixelShuffled),
]

OTHER_VALUES: dict[str, Any] = {
    "variant": "autoencoder",
    "flip_prob": 0.11,
    "max_flips": 2,
    "flip_axes": (1,),
    "shuffle_prob": 0.12,
    "nonlinear_prob": 0.13,
    "reverse_prob": 0.14,
    "paint_prob": 0.15,
    "out_paint_prob": 0.16,
    "num_blocks": 17,
    "max_block_fraction": 0.18,
    "intensity_range": (-19.0, 20.0),
    "output_range": (-21.0, 22.0),
    "backend": "numpy",
    "mask_prob": 0.23,
    "mask_patch": 24,
    "mask_ratio": 0.25,
    "mask_value": 0.26,
    "prob": 0.27,
    "patch": 28,
    "ratio": 0.29,
    "value": 0.3,
    "dtype": np.float64,
    "max_boxes": 3,
    "box_prob": 0.31,
}
"""A value for each argument that is neither its default nor another's."""


def arguments_of(transform: type) -> list[str]:
    return [name for name in inspect.signature(transform.__init__).parameters if name != "self"]  # type: ignore[misc]


@pytest.mark.parametrize(("array", "twin"), TWINS, ids=lambda each: each.__name__)
def test_twin_builds_its_array_transform_with_the_arguments_given(
    array: type, twin: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array transform is built as if by itself, for each argument alone and for all of them."""
    names = arguments_of(array)
    assert set(names) <= set(OTHER_VALUES)
    built: list[inspect.BoundArguments] = []
    original = array.__init__  # type: ignore[misc]

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        bound.apply_defaults()
        built.append(bound)
        original(self, *args, **kwargs)

    monkeypatch.setattr(array, "__init__", recorded)
    for given in [{}, *({name: OTHER_VALUES[name]} for name in names), {name: OTHER_VALUES[name] for name in names}]:
        for make in (lambda given: array(**given), lambda given: twin("image", **given)):
            make(given)
        alone, within = ({k: v for k, v in bound.arguments.items() if k != "self"} for bound in built[-2:])
        assert within == alone, given


@pytest.mark.parametrize(("array", "twin"), TWINS, ids=lambda each: each.__name__)
def test_twin_takes_no_argument_of_the_array_transform_by_position(array: type, twin: type) -> None:
    """A position could be mistaken for another argument's."""
    with pytest.raises(TypeError, match="positional argument"):
        twin("image", "label", 0.9) if twin is RandGenesisDeformd else twin("image", 0.9)


@pytest.mark.parametrize(("array", "twin"), TWINS, ids=lambda each: each.__name__)
def test_twin_refuses_an_argument_that_does_not_exist(array: type, twin: type) -> None:
    with pytest.raises(TypeError, match="probability"):
        twin("image", probability=0.5)
