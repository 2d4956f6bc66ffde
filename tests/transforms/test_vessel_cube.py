# SPDX-License-Identifier: Apache-2.0
"""Cubes along vessels: the axis of tubes at known angles, and what a turned cube shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from models_genesis.transforms import RandVesselCubed, VesselCubed, turn_to, turned_cube, vessel_axis

DIRECTIONS = [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1), (1, -2, 0.5), (-3, 1, 1), (0.2, -0.4, 1)]
SPACING = (0.8, 0.8, 1.25)
SHAPE = (72, 72, 48)


def tube(
    direction: tuple[float, ...], radius: float = 3.0, spacing: tuple[float, ...] = SPACING, clot: float = 0.0
) -> tuple[NDArray, NDArray, NDArray]:
    """A contrast-filled tube through the middle of air, with a clot of a length in mm; volume, centre and affine."""
    unit = np.array(direction) / np.linalg.norm(direction)
    center = np.array(SHAPE) / 2 - 0.3
    points = (np.stack(np.indices(SHAPE), -1) - center) * spacing
    along = points @ unit
    across = np.linalg.norm(points - along[..., None] * unit, axis=-1)
    inside = np.clip(radius + 0.5 - across, 0, 1)
    hu = np.where(np.abs(along) < clot / 2, 40, 320)
    volume = (-850 + inside * (hu + 850)).astype(np.int16)
    return volume, center, np.diag([*spacing, 1.0])


def degrees(a: NDArray, b: NDArray) -> float:
    """The angle between two lines."""
    cosine = abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(min(cosine, 1.0))))


@pytest.mark.parametrize("clot", [0.0, 8.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_axis_of_a_tube_at_a_known_angle(direction: tuple[float, ...], clot: float) -> None:
    volume, center, affine = tube(direction, clot=clot)
    axis = vessel_axis(volume, center, affine)
    assert axis is not None
    assert np.linalg.norm(axis) == pytest.approx(1)
    assert axis[2] >= 0
    # a ball of 12 mm holds thousands of voxels of the tube: their centres' rounding turns the axis by far less
    assert degrees(axis, np.array(direction)) < 2.0


def test_axis_goes_through_flips_and_oblique_directions() -> None:
    volume, center, affine = tube((1, 0.5, 0.7))
    mirrored = np.diag([-1.0, 1, 1, 1]) @ affine
    axis = vessel_axis(volume, center, mirrored)
    assert axis is not None
    assert degrees(axis, np.array([-1, 0.5, 0.7])) < 2.0


def test_axis_ignores_a_vessel_that_does_not_come_near() -> None:
    volume, center, affine = tube((0, 0, 1), radius=2.0)
    x = (np.arange(SHAPE[0]) - center[0]) * SPACING[0]
    y = (np.arange(SHAPE[1]) - center[1]) * SPACING[1]
    # a larger vessel that runs across, 10 mm beside: within the ball, but no part of this vessel
    volume[np.ix_(np.abs(x) < 40, (y > 8) & (y < 12), range(20, 26))] = 320
    axis = vessel_axis(volume, center, affine)
    assert axis is not None
    assert degrees(axis, np.array([0, 0, 1])) < 2.0


def axis_of_all_voxels(
    volume: NDArray, center: NDArray, affine: NDArray, radius: float, reach: float
) -> NDArray | None:
    """The same from every voxel of the scan, part by part, without a box around the ball."""
    offset = (np.stack(np.indices(volume.shape), -1) - center) @ affine[:3, :3].T
    distance = np.linalg.norm(offset, axis=-1)
    parts, count = ndimage.label((volume >= 150) & (distance <= radius), np.ones((3, 3, 3)))
    near = [part for part in range(1, count + 1) if distance[parts == part].min() <= reach]
    chosen = np.isin(parts, near)
    if chosen.sum() < 10:
        return None
    covariance = np.cov(offset[chosen].T, aweights=1 - (distance[chosen] / (1.001 * radius)) ** 2, ddof=0)
    return np.linalg.eigh(covariance)[1][:, -1]


@pytest.mark.parametrize("seed", range(60))
def test_axis_is_that_of_all_voxels_of_the_ball(seed: int) -> None:
    """Everywhere in the scan and beyond its border, for any voxels; a whole radius has voxels on the very surface."""
    R = np.random.RandomState(seed)
    volume = np.where(R.random_sample((14, 13, 12)) < R.choice([0.05, 0.3, 0.6]), 150, 149)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(R.choice([0.5, 1.0, 1.25], 3)) if seed % 2 else R.uniform(-0.4, 0.4, (3, 3)) + np.eye(3)
    center = R.uniform(-1, 12, 3).round(0 if seed % 4 < 2 else 2)  # with or without a fraction
    radius, reach = R.choice([2.5, 3.0, 4.0]), R.choice([0.5, 1.5, 2.0])
    found = vessel_axis(volume, center, affine, 150, radius, reach)
    expected = axis_of_all_voxels(volume, center, affine, radius, reach)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found[2] >= 0
        assert np.linalg.norm(np.cross(found, expected)) < 1e-6  # the sine of the angle between them


@pytest.mark.parametrize(("voxels", "found"), [(9, False), (10, True)])
def test_an_axis_needs_ten_voxels_of_contrast(voxels: int, found: bool) -> None:
    volume = np.full((20, 20, 20), 149)
    volume[10, 10, 5 : 5 + voxels] = 150
    assert (vessel_axis(volume, (10, 10, 10), np.eye(4)) is not None) == found
    assert vessel_axis(volume, (10, 10, 10), np.eye(4), min_hu=151) is None


def test_no_contrast_has_no_axis() -> None:
    volume = np.full(SHAPE, 40, np.int16)
    assert vessel_axis(volume, (30, 30, 20), np.eye(4)) is None
    assert np.array_equal(turn_to(None), np.eye(3))


@pytest.mark.parametrize("direction", [*DIRECTIONS, (0, 0, -1)])
def test_turn_is_the_smallest_rotation_onto_the_direction(direction: tuple[float, ...]) -> None:
    unit = np.array(direction) / np.linalg.norm(direction)
    turn = turn_to(unit)
    assert np.allclose(turn[:, 2], unit, atol=1e-12)
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)
    # trace = 1 + 2 cos(angle), and the angle is that between the last axis and the direction
    assert np.trace(turn) == pytest.approx(1 + 2 * unit[2])


def test_cube_without_a_turn_is_the_crop() -> None:
    rng = np.random.default_rng(0)
    scan = rng.integers(-1000, 1000, (2, 20, 18, 16)).astype(np.int16)
    cube = turned_cube(scan, (9, 8, 7), np.diag([2.0, 3, 4, 1]), np.eye(3), (6, 5, 4), (2.0, 3.0, 4.0))
    assert cube.dtype == np.float32
    assert np.allclose(cube, scan[:, 6:12, 6:11, 5:9], atol=1e-3)


def test_cube_turned_by_a_right_angle_is_the_turned_crop() -> None:
    scan = np.random.default_rng(1).integers(-1000, 1000, (1, 17, 17, 17)).astype(np.int16)
    turn = turn_to((1.0, 0.0, 0.0))  # the cube's z is the scan's x, its x the scan's -z
    cube = turned_cube(scan, (8, 8, 8), np.eye(4), turn, (7, 7, 7), (1.0, 1.0, 1.0))[0]
    crop = scan[0, 5:12, 5:12, 5:12]
    assert np.allclose(cube, crop.transpose(2, 1, 0)[::-1], atol=1e-2)


def test_cube_beyond_the_scan_is_air() -> None:
    scan = np.zeros((1, 8, 8, 8), np.int16)
    cube = turned_cube(scan, (0, 0, 0), np.eye(4), np.eye(3), (6, 6, 6), (1.0, 1.0, 1.0))[0]
    assert (cube[:3] == -1000).all()
    assert (cube[3:, 3:, 3:] == 0).all()
    far = turned_cube(scan, (99, 0, 0), np.eye(4), np.eye(3), (6, 6, 6), (1.0, 1.0, 1.0))
    assert (far == -1000).all()
    for make in (VesselCubed, RandVesselCubed):
        item = {"image": scan, "center": (0, 0, 0), "image_affine": np.eye(4)}
        assert make("image", 6, voxel_mm=1.0)(item)["image"].min() == -1000
        assert make("image", 6, voxel_mm=1.0, fill=7.0)(item)["image"].max() == 7


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_vessel_runs_along_the_last_axis(direction: tuple[float, ...]) -> None:
    volume, center, affine = tube(direction)
    item = {"image": volume[None], "center": center, "image_affine": affine, "label": 1}
    before = volume.copy()
    out = VesselCubed("image", 24, voxel_mm=1.0)(item)
    assert set(out) == {"image", "label"}
    assert set(item) == {"image", "center", "image_affine", "label"}
    assert np.array_equal(volume, before)
    cube = out["image"][0]
    assert cube.shape == (24, 24, 24)
    # every slice across shows a disc of 3 mm around the middle: contrast within 2 mm, air beyond 4.5 mm; 1 mm is left
    # for the axis, which may be off by 2 degrees over 12 mm, that is by 0.4 mm
    distance = np.hypot(*(np.indices((24, 24)) - 12))
    assert (cube[distance < 2] > 150).all()
    assert (cube[distance > 4.5] < -600).all()


def test_kinds_stay() -> None:
    volume, center, affine = tube((1, 1, 0))
    expected = turned_cube(volume[None], center, affine, np.eye(3), (8, 8, 8), (1.0,) * 3)
    found = turned_cube(torch.from_numpy(volume[None]), center, affine, np.eye(3), (8, 8, 8), (1.0,) * 3)
    assert isinstance(found, torch.Tensor)
    assert np.array_equal(found.numpy(), expected)


def test_random_turns_keep_the_vessel_in_place() -> None:
    """A marker beside the vessel goes round it over the draws; the vessel itself stays along the last axis."""
    volume, center, affine = tube((1, -2, 0.5))
    axis = np.array([1, -2, 0.5]) / np.linalg.norm([1, -2, 0.5])
    side = np.cross(axis, [0, 0, 1.0])
    marker = np.rint(center + 7 * side / np.linalg.norm(side) / SPACING).astype(int)
    volume[tuple(slice(place - 1, place + 2) for place in marker)] = 1000
    transform = RandVesselCubed("image", 24, voxel_mm=1.0)
    transform.set_random_state(0)
    angles, distance = [], np.hypot(*(np.indices((24, 24)) - 12))
    for _ in range(60):
        cube = transform({"image": volume[None], "center": center, "image_affine": affine})["image"][0]
        assert (cube[distance < 2] > 150).all()
        x, y, _ = np.argwhere(cube == cube.max())[0] - 12
        assert np.hypot(x, y) == pytest.approx(7, abs=2)
        angles.append(np.arctan2(y, x))
    # 60 uniform angles: the resultant is below sqrt(60 * ln(1e6)) = 29 but for one case in a million (Rayleigh)
    assert abs(np.exp(1j * np.array(angles)).sum()) < 29
    assert len(np.unique(np.floor(np.array(angles) / (np.pi / 4)) % 8)) == 8


def test_random_cubes_repeat_and_shift() -> None:
    volume, center, affine = tube((0, 0, 1))
    item = {"image": volume[None], "center": center, "image_affine": affine}
    transform = RandVesselCubed("image", 16, max_shift_mm=(3, 3, 0))
    first = transform.set_random_state(7)(item)["image"]
    again = transform.set_random_state(7)(item)["image"]
    assert np.array_equal(first, again)
    assert (np.abs(transform.shift_mm) <= (3, 3, 0)).all()
    still = RandVesselCubed("image", 16, prob=0.0)(item)["image"]
    assert np.array_equal(still, VesselCubed("image", 16)(item)["image"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cube_size": 0}, "cube_size"),
        ({"voxel_mm": 0.0}, "voxel_mm"),
        ({"radius_mm": -1.0}, "radius_mm"),
        ({"max_shift_mm": -1.0}, "max_shift_mm"),
    ],
)
def test_arguments_out_of_range(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandVesselCubed("image", **arguments)
