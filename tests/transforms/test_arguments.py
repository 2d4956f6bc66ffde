# SPDX-License-Identifier: Apache-2.0
"""Arguments at their limits: what an error calls allowed is taken, and the next value beyond is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from models_genesis.transforms import (
    BatchGenesisDeform,
    ClassVoxelsd,
    RandCandidateCubed,
    RandGenesisDeform,
    RandInPainting,
    RandLocalPixelShuffle,
    RandOutPainting,
    RandTissueCube,
    RandVesselCubed,
    TissueWindows,
    bezier_curve,
)
from models_genesis.transforms.arguments import (
    check_image_shape,
    check_intensity_range,
    check_probability,
    check_whole_number,
)

ABOVE_0, BELOW_0 = float(np.nextafter(0, 1)), float(np.nextafter(0, -1))
BELOW_1, ABOVE_1 = float(np.nextafter(1, 0)), float(np.nextafter(1, 2))
NAN, INF = float("nan"), float("inf")

SHARE = ([ABOVE_0, 1.0, 1], [0.0, BELOW_0, ABOVE_1, NAN])
"""In (0, 1]: what is allowed, and what is not."""

LIMITS: dict[str, tuple[Callable[[Any], Any], str, list[Any], list[Any]]] = {
    "probability": (lambda v: check_probability("rate", v), "rate: .*probability", [0, 1.0], [BELOW_0, ABOVE_1, NAN]),
    "whole number": (lambda v: check_whole_number("n", v, 2), "n: .*at least 2", [2, 3.0], [1, 2.5, -2]),
    "intensity_range": (
        lambda v: check_intensity_range("span", v),
        r"span: expected two finite numbers",
        [(0, ABOVE_0), (BELOW_0, 0), (-1e300, 1e300)],
        [(0, 0), (ABOVE_0, 0), (-INF, 0), (0, INF), (NAN, 1), (0, NAN), (0,), (0, 1, 2)],
    ),
    "image's shape": (
        check_image_shape,
        "img: expected a channel-first image",
        [(1, 1), (9, 1, 1), (1, 1, 1, 1)],
        [(1,), (1, 1, 1, 1, 1), (1, 0), (0, 1), (1, 1, 0)],
    ),
    "num_nodes": (lambda v: bezier_curve([(0.2, 0.2), (0.7, 0.7)], v), "num_nodes: expected at least 8", [8], [7]),
    "control_points": (
        lambda v: bezier_curve([(v, 0.5), (0.5, v)]),
        "control_points: expected two points",
        [0.0, 1.0],
        [BELOW_0, ABOVE_1, NAN],
    ),
    "max_block_fraction": (lambda v: RandGenesisDeform(max_block_fraction=v), "max_block_fraction", *SHARE),
    "a shuffle's": (lambda v: RandLocalPixelShuffle(max_block_fraction=v), "max_block_fraction", *SHARE),
    "a batch's": (lambda v: BatchGenesisDeform(max_block_fraction=v), "max_block_fraction", *SHARE),
    "flip_axes": (
        lambda v: RandGenesisDeform(flip_axes=v, backend="numpy")(np.zeros((1, 20, 20))),
        "flip_axes: expected spatial axes in 0..1",
        [(0, 1), (1,)],
        [(2,), (0, 3), (-1,)],
    ),
    "a batch's flip_axes": (
        lambda v: BatchGenesisDeform(flip_axes=v)(torch.zeros(1, 1, 20, 20)),
        "flip_axes: expected spatial axes in 0..1",
        [(0, 1), (1,)],
        [(2,), (0, 3), (-1,)],
    ),
    "max_flips": (lambda v: RandGenesisDeform(max_flips=v), "max_flips: .*at least 0", [0], [-1, 0.5]),
    "num_blocks": (lambda v: RandGenesisDeform(num_blocks=v), "num_blocks: .*at least 0", [0], [-1, 0.5]),
    "a shuffle's num_blocks": (
        lambda v: RandLocalPixelShuffle(num_blocks=v),
        "num_blocks: .*at least 0",
        [0],
        [-1, 0.5],
    ),
    "a batch's num_blocks": (lambda v: BatchGenesisDeform(num_blocks=v), "num_blocks: .*at least 0", [0], [-1, 0.5]),
    "a batch's max_flips": (lambda v: BatchGenesisDeform(max_flips=v), "max_flips: .*at least 0", [0], [-1, 0.5]),
    "max_boxes inside": (lambda v: RandInPainting(max_boxes=v), "max_boxes: .*at least 1", [1], [0]),
    "max_boxes outside": (lambda v: RandOutPainting(max_boxes=v), "max_boxes: .*at least 1", [1], [0]),
    "mask_value": (
        lambda v: RandGenesisDeform("masking", mask_value=v),
        "mask_value: expected a number in",
        [0.0, 1.0, None],
        [BELOW_0, ABOVE_1, NAN],
    ),
    "mask_patch": (
        lambda v: RandGenesisDeform("masking", mask_patch=v),
        "mask_patch: expected",
        [1, (1,), (1, 1, 1)],
        [0, (), (1, 1, 1, 1), (1, 0)],
    ),
    "score_range": (
        lambda v: TissueWindows(2, score_range=v),
        "score_range must be",
        [(0, 0), (1, 1), (0, 1)],
        [(BELOW_0, 1), (0, ABOVE_1), (0.5, float(np.nextafter(0.5, 0))), (NAN, 1)],
    ),
    "lowest_share": (lambda v: TissueWindows(2, lowest_share=v), "lowest_share must lie in", *SHARE),
    "border": (
        lambda v: TissueWindows(2, border=v, threshold=None)(np.zeros((1, 4, 4, 4))),
        "border needs 3 pairs of voxels, none negative",
        [0, 1, ((0, 0), (0, 1), (1, 0))],
        [-1, ((0, 0), (0, 0), (0, -1)), ((0, 0), (0, 0))],
    ),
    "num_classes": (lambda v: ClassVoxelsd("label", v), "num_classes of at least 2", [2], [1]),
    "max_voxels": (lambda v: ClassVoxelsd("label", 2, v), "max_voxels of at least 1", [1], [0]),
    "cube_size": (RandTissueCube, "at least 1", [1, (1, 1, 1)], [0, (1, 1, 0)]),
    "a candidate's cube_size": (
        lambda v: RandCandidateCubed("image", v, max_shift=0),
        "cube_size must be three sides of at least 1",
        [1, (1, 1, 1)],
        [0, (1, 1, 0)],
    ),
    "max_shift of an even side": (
        lambda v: RandCandidateCubed("image", 8, max_shift=v),
        "max_shift must lie in",
        [0, 3],
        [-1, 4],
    ),
    "max_shift of an odd side": (
        lambda v: RandCandidateCubed("image", (7, 9, 9), max_shift=v),
        "max_shift must lie in",
        [3, (3, 4, 4)],
        [4, (3, 4, 5)],
    ),
    "voxel_mm": (lambda v: RandVesselCubed("image", voxel_mm=v), "must be above 0", [ABOVE_0], [0.0, (1, 1, 0)]),
    "radius_mm": (lambda v: RandVesselCubed("image", radius_mm=v), "must be above 0", [ABOVE_0], [0.0]),
    "reach_mm": (lambda v: RandVesselCubed("image", reach_mm=v), "must be above 0", [ABOVE_0], [0.0]),
    "max_shift_mm": (
        lambda v: RandVesselCubed("image", max_shift_mm=v),
        "max_shift_mm must be 0 or more",
        [0.0, ABOVE_0],
        [BELOW_0, (0, 0, BELOW_0), NAN],
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_allowed_and_what_lies_beyond_is_refused(name: str) -> None:
    make, words, allowed, refused = LIMITS[name]
    for value in allowed:
        make(value)
    for value in refused:
        with pytest.raises(ValueError, match=words):
            make(value)
            pytest.fail(f"{value} was allowed")


def test_checked_values_come_back_as_plain_numbers() -> None:
    assert check_probability("rate", np.float32(1)) == 1.0
    assert type(check_probability("rate", np.float32(1))) is float
    assert type(check_whole_number("n", np.float64(3), 0)) is int
    assert [type(end) for end in check_intensity_range("span", np.array([0, 1]))] == [float, float]
    assert [type(size) for size in check_image_shape(np.array([1, 4, 5]))] == [int, int]
