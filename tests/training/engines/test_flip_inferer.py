# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer

from models_genesis.training import FlipInferer, window_inferer


def ramp(x):
    """A network that is not the same under flips: it adds a ramp along each axis."""
    grids = torch.meshgrid(*[torch.arange(side, dtype=x.dtype) for side in x.shape[2:]], indexing="ij")
    return x + sum(grids)


def test_the_mean_over_all_flips_is_the_symmetric_part():
    x = torch.rand(2, 1, 4, 6, 3)
    mean = FlipInferer(SimpleInferer(), (0, 1, 2))(x, ramp)
    # a ramp and its mirror image average to half the sum of their ends
    torch.testing.assert_close(mean, x + (3 + 5 + 2) / 2)


def test_each_combination_is_run_once_and_none_without_axes():
    calls = []

    def network(x):
        calls.append(x.flatten().tolist())
        return x.clone()

    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    torch.testing.assert_close(FlipInferer(SimpleInferer(), (0, 1, 2))(x, network), x)
    assert len({tuple(call) for call in calls}) == len(calls) == 8
    calls.clear()
    FlipInferer(SimpleInferer())(x, network)
    assert len(calls) == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_that_slices_stand_across_is_left_out_for_nothing_changes_along_it(axis):
    """Networks of slices answer to the same slices in another order."""
    shapes = []

    def network(x):
        shapes.append(tuple(x.shape))
        return ramp(x)

    x = torch.rand(1, 1, 4, 4, 4)
    inferer = window_inferer((4, 4), slice_axis=axis)
    every = FlipInferer(inferer, (0, 1, 2))(x, ramp)
    torch.testing.assert_close(FlipInferer(inferer, (0, 1, 2), slice_axis=axis)(x, network), every)
    assert len(shapes) == 4 * 4  # four flips of four slices, not eight


def test_slices_across_several_axes_are_not_flipped():
    with pytest.raises(ValueError, match=r"--tta_flips: expected \[\] .* --slice_axes \[2, 1, 0\], found \[0\]"):
        FlipInferer(SimpleInferer(), [0], slice_axes=[2, 1, 0])
    assert FlipInferer(SimpleInferer(), [], slice_axes=[2, 1, 0]).axes == ()
    assert FlipInferer(SimpleInferer(), [0, 1], slice_axes=[1]).axes == (0, 1)


def test_logits_of_classes_are_averaged_as_they_are():
    """A network that looks at one corner sees all eight of them."""
    image = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    found = FlipInferer(SimpleInferer(), axes=(0, 1, 2))(image, lambda cube: cube[:, :, 0, 0, 0])
    assert found.tolist() == [[3.5]]


@pytest.mark.parametrize("axes", [[1], [0, 1, 2]])
def test_an_axis_that_tells_classes_apart_is_refused(axes):
    names = {"Anterior": [1], "Posterior": [2]}
    with pytest.raises(ValueError, match="no classes are told apart, found 1, which tells Anterior and Posterior"):
        FlipInferer(SimpleInferer(), axes, class_names=names)
    assert FlipInferer(SimpleInferer(), [0, 2], class_names=names).axes == (0, 2)
    assert FlipInferer(SimpleInferer(), axes, class_names={"liver": [1, 2], "tumour": [2]}).axes == tuple(axes)
