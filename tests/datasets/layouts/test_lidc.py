# SPDX-License-Identifier: Apache-2.0
"""Readers' outlines become the masks they were drawn from, nodules, and cubes that lie where the nodules lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import contourpy
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage
from scipy import ndimage

from models_genesis.datasets import ScanReader, list_lidc, load_datalist
from models_genesis.datasets.__main__ import main
from models_genesis.datasets.layouts.lidc import find_readings
from models_genesis.datasets.layouts.lidc_cubes import CubeRules, cube_bounds, share_in_cube
from models_genesis.datasets.layouts.lidc_nodules import Outline, consensus, fill_contour, match_outlines, outline
from models_genesis.datasets.layouts.lidc_xml import Contour, Reading, read_lidc_xml

SIZE = (32, 28, 12)


def trace(mask):
    """Trace the pixels just outside of a region, as LIDC's readers did; yields ``(inclusion, points)``.

    An isoline just above 0 runs through the pixels next to the region; around holes it runs the other way.
    """
    lines = contourpy.contour_generator(z=np.pad(mask, 1).T.astype(float)).lines(1e-9)
    for line in lines:
        points = np.rint(line).astype(int) - 1
        moves = np.any(points != np.roll(points, 1, axis=0), axis=1)
        points = points[moves] if moves.any() else points[:1]
        x, y = points.T
        yield bool((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0), points


def ellipse(shape, middle, radii):
    """Fill an ellipsoid."""
    grid = np.indices(shape).reshape(3, -1).T
    return (((grid - middle) / radii) ** 2).sum(1).reshape(shape) <= 1


def rois(mask):
    """Outline a mask slice by slice: ``(slice, inclusion, points)``."""
    return [(z, *each) for z in range(mask.shape[2]) if mask[..., z].any() for each in trace(mask[..., z])]


@dataclass
class Series:
    """A series of a real scan's crop, and an XML file with readings of it."""

    folder: object
    volume: np.ndarray
    uids: list = field(default_factory=list)
    series: str = ""

    def write_xml(self, sessions, name="readings.xml", namespace="http://www.nih.gov", series=None):
        """Write reading sessions, each a list of nodules, each a list of rois or one point."""
        parts = [f'<LidcReadMessage xmlns="{namespace}"><ResponseHeader>']
        parts.append(f"<SeriesInstanceUid>{series or self.series}</SeriesInstanceUid></ResponseHeader>")
        for reader, nodules in enumerate(sessions):
            parts.append("<readingSession>")
            for number, nodule in enumerate(nodules):
                parts.append(f"<unblindedReadNodule><noduleID>{number}</noduleID><characteristics>")
                parts.append(f"<malignancy>{reader + 1}</malignancy><texture>5</texture></characteristics>")
                for z, inclusion, points in nodule:
                    parts.append(
                        f"<roi><imageZposition>{z}</imageZposition><imageSOP_UID>{self.uids[z]}</imageSOP_UID>"
                    )
                    parts.append(f"<inclusion>{str(inclusion).upper()}</inclusion>")
                    for x, y in points:
                        parts.append(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>")
                    parts.append("</roi>")
                parts.append("</unblindedReadNodule>")
            parts.append("<nonNodule><nonNoduleID>9</nonNoduleID></nonNodule></readingSession>")
        parts.append("</LidcReadMessage>")
        path = self.folder / name
        path.write_text("".join(parts))
        return path


@pytest.fixture
def series(shared, tmp_path, tools):
    """A series of a crop of a real chest CT, 48 x 44 x 20 voxels."""
    pydicom = pytest.importorskip("pydicom")
    volume = np.asarray(nib.load(shared / "data/ct/lidc_idri_0314.nii.gz").dataobj)[60:108, 50:94, 40:60]
    tools.write_series(tmp_path / "raw/dicom", volume, patient="LIDC-IDRI-0314")
    made = Series(tmp_path / "raw", volume)
    files = sorted((tmp_path / "raw/dicom").iterdir(), key=lambda path: int(path.stem[-3:]))
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    made.uids, made.series = [str(each.SOPInstanceUID) for each in headers], str(headers[0].SeriesInstanceUID)
    return made


def cubes(series, out, **rules):
    rules = {"cube": CubeRules(SIZE), "validation_fraction": 0.0, "test_fraction": 0.0, **rules}
    return list_lidc(series.folder, out, **rules)


def in_scan(series, out, scan):
    """Put a cube's image and label back into the series by their affines."""
    whole = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(series.folder / "dicom")
    label = nib.load(out / scan.label)
    to_scan = np.linalg.inv(np.asarray(whole.affine)) @ label.affine
    start = to_scan[:3, 3].round(3)
    np.testing.assert_allclose(to_scan[:3, :3], np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(start, start.astype(int))
    mask, image = np.zeros(series.volume.shape, np.uint8), np.asarray(nib.load(out / scan.image).dataobj)
    box = tuple(slice(int(a), int(a) + side) for a, side in zip(start, label.shape, strict=True))
    mask[box] = np.asarray(label.dataobj)
    np.testing.assert_array_equal(image, series.volume[box])
    assert image.dtype == np.int16 and np.array_equal(nib.load(out / scan.image).affine, label.affine)
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_filling_inverts_tracing(seed):
    # what was traced just outside comes back exactly, whatever its shape and in several parts
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((40, 36)), 1.0 + seed / 10)
    mask = np.pad(ndimage.binary_fill_holes(noise > np.quantile(noise, 0.7)), 2)
    filled = np.zeros_like(mask)
    for inclusion, points in trace(mask):
        assert inclusion
        filled[tuple(fill_contour(points).T)] = True
    np.testing.assert_array_equal(filled, mask)


def test_a_disc_drawn_by_hand_is_filled():
    # An outline of radius r + 0.5 rounded to pixels differs from the circle by at most sqrt(1/2) pixels, so the areas
    # differ by less than 2 pi r sqrt(1/2), and Dice >= 1 - sqrt(1/2) / r = 0.96 at r = 20
    angle = np.linspace(0, 2 * np.pi, 150, endpoint=False)
    points = np.rint(np.stack([30 + 20.5 * np.cos(angle), 28 + 20.5 * np.sin(angle)], axis=1)).astype(int)
    mask = np.zeros((60, 56), bool)
    mask[tuple(fill_contour(points).T)] = True
    disc = ((np.indices(mask.shape) - np.array([30, 28])[:, None, None]) ** 2).sum(0) <= 400
    assert 2 * (mask & disc).sum() / (mask.sum() + disc.sum()) >= 0.96
    assert not mask[tuple(points.T)].any()


@pytest.mark.parametrize(
    ("points", "inside"),
    [
        ([[0, 0]], []),
        ([[0, 0], [5, 0]], []),
        ([[0, 1], [1, 0], [2, 1], [1, 2]], [[1, 1]]),
        # points apart: what lies on the line between them is outline too
        ([[0, 0], [4, 0], [4, 4], [0, 4]], [[x, y] for x in (1, 2, 3) for y in (1, 2, 3)]),
        ([[0, 0], [4, 4], [0, 4]], [[1, 2], [1, 3], [2, 3]]),
    ],
)
def test_the_outline_itself_is_outside(points, inside):
    for way in (1, -1):
        assert sorted(fill_contour(np.array(points)[::way]).tolist()) == inside


def test_masks_lie_where_the_readers_drew(series, tmp_path):
    mask = ellipse(series.volume.shape, (20, 25, 9), (9, 7, 4))
    series.write_xml([[rois(mask)]] * 4)
    summary = cubes(series, tmp_path / "out")
    (scan,) = summary.scans
    assert (scan.patient, scan.split, scan.reason) == ("LIDC-IDRI-0314", "training", "")
    np.testing.assert_array_equal(in_scan(series, tmp_path / "out", scan), mask)
    assert scan.facts["readers"] == 4 and scan.facts["malignancy"] == 2.5 and scan.facts["texture"] == 5
    assert scan.facts["share_in_cube"] == 1
    # 12 mm^3 a voxel; an ellipsoid of 18 x 14 x 12 mm half axes, give or take half a voxel layer
    assert scan.facts["volume_mm3"] == mask.sum() * 12
    assert scan.facts["diameter_mm"] == pytest.approx(2 * (18 * 14 * 12) ** (1 / 3), rel=0.05)


def test_excluded_parts_are_left_out(series, tmp_path):
    mask = ellipse(series.volume.shape, (20, 25, 9), (9, 7, 4))
    hole = ellipse(series.volume.shape, (21, 25, 9), (4, 3, 2))
    series.write_xml([[rois(mask) + hole_rois(hole)]] * 2)
    summary = cubes(series, tmp_path / "out")
    np.testing.assert_array_equal(in_scan(series, tmp_path / "out", summary.scans[0]), mask & ~hole)


def test_an_exclusion_takes_the_pixels_between_its_points_too():
    """Readers' outlines may have points that are apart; a diamond by its corners encloses 25 pixels, 8 on its edges."""
    square = Contour("1", True, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]))
    diamond = Contour("1", False, np.array([[10, 7], [13, 10], [10, 13], [7, 10]]))
    inside = {tuple(each) for each in outline(Reading(0, (square, diamond), {}), {"1": 0}).inside[:, :2].tolist()}
    expected = {(x, y) for x in range(1, 20) for y in range(1, 20) if abs(x - 10) + abs(y - 10) > 3}
    assert inside == expected


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("backwards", [False, True])
def test_an_outline_that_is_traced_several_times_encloses_the_same(turns, backwards):
    points = np.array([[0, 0], [6, 0], [6, 5], [0, 5]])[:: -1 if backwards else 1]
    found = fill_contour(np.tile(points, (turns, 1)))
    assert {tuple(each) for each in found.tolist()} == {(x, y) for x in range(1, 6) for y in range(1, 5)}


@pytest.mark.parametrize("points", [[[10, 10]], [[10, 10], [13, 10]]])
def test_exclusions_without_an_inside_take_their_own_pixels(points):
    square = Contour("1", True, np.array([[0, 0], [20, 0], [20, 20], [0, 20]]))
    small = Contour("1", False, np.array(points))
    inside = {tuple(each) for each in outline(Reading(0, (square, small), {}), {"1": 0}).inside[:, :2].tolist()}
    gone = {(x, 10) for x in range(10, points[-1][0] + 1)}
    assert inside == {(x, y) for x in range(1, 20) for y in range(1, 20)} - gone


def hole_rois(hole):
    """Outline an excluded part: the outline is excluded too, so it is drawn on the part's own outermost pixels."""
    found = []
    for z in range(hole.shape[2]):
        if hole[..., z].any():
            # the border of the complement, traced from outside, lies on the hole's pixels
            lines = [points for sign, points in trace(~np.pad(hole[..., z], 1)) if not sign]
            found += [(z, False, points - 1) for points in lines]
    return found


def test_readers_who_disagree(series, tmp_path):
    # four readers outline nested parts of one nodule: at 0.5 what two of them share counts, at 0.75 three, ...
    masks = [ellipse(series.volume.shape, (20, 25, 9), np.array([4, 3, 1.5]) + k) for k in (1, 2, 3, 4)]
    series.write_xml([[rois(mask)] for mask in masks])
    for level, expected in [(0.25, masks[3]), (0.5, masks[2]), (0.75, masks[1]), (1.0, masks[0])]:
        summary = cubes(series, tmp_path / f"out{level}", consensus=level)
        np.testing.assert_array_equal(in_scan(series, tmp_path / f"out{level}", summary.scans[0]), expected)


def test_real_votes_come_back(shared):
    # reader k of 4 outlines the voxels that at least k real readers hold for nodule, so the votes are the real ones
    votes = np.asarray(nib.load(shared / "data/lidc/volume/lidc_idri_0314_reader_votes.nii.gz").dataobj)
    slices = {str(z): z for z in range(votes.shape[2])}
    outlines = []
    for reader in range(4):
        contours = [Contour(str(z), inclusion, points) for z, inclusion, points in rois(votes > reader)]
        outlines.append(outline(Reading(reader, tuple(contours), {}), slices))
        assert len(outlines[-1].inside) == (votes > reader).sum()
    assert match_outlines(outlines, (0.78, 0.78, 1.0)) == [[0, 1, 2, 3]]
    for level, least in [(0.5, 2), (0.75, 3), (1.0, 4)]:
        mask = np.zeros(votes.shape, bool)
        mask[tuple(consensus(outlines, level).voxels.T)] = True
        np.testing.assert_array_equal(mask, votes >= least)


def test_two_nodules_and_too_few_readers(series, tmp_path):
    masks = [
        ellipse(series.volume.shape, (12, 12, 6), (5, 5, 3)),
        ellipse(series.volume.shape, (33, 30, 13), (6, 5, 3)),
    ]
    small = [(4, True, np.array([[40, 40]]))]
    lone = ellipse(series.volume.shape, (40, 8, 15), (3, 3, 2))
    # the second reader names the nodules in another order, and marks a small one by a point
    series.write_xml([[rois(masks[0]), rois(masks[1])], [rois(masks[1]), small, rois(masks[0])], [rois(lone)]])
    summary = cubes(series, tmp_path / "out")
    good = [scan for scan in summary.scans if scan.split]
    assert len(good) == 2 and len({scan.image for scan in good}) == 2
    for scan, mask in zip(good, masks, strict=True):
        np.testing.assert_array_equal(in_scan(series, tmp_path / "out", scan), mask)
        assert scan.facts["readers"] == 2 and scan.facts["malignancy"] == 1.5
    (left_out,) = [scan for scan in summary.scans if not scan.split]
    assert left_out.reason == "too few readers" and left_out.detail == "expected at least 2, found 1"
    assert len([scan for scan in cubes(series, tmp_path / "all", min_readers=1).scans if scan.split]) == 3


def box_outline(reader, low, high, spacing=1):
    grid = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    border = np.array([low, high]) - [[1, 1, 0], [0, 0, 1]]
    return Outline(reader, grid.reshape(-1, 3), border, {})


@pytest.mark.parametrize(
    ("outlines", "groups"),
    [
        # apart by more than the slice distance of 2 mm, and by less
        ([(0, (0, 0, 0), (5, 5, 5)), (1, (9, 0, 0), (14, 5, 5))], [[0], [1]]),
        ([(0, (0, 0, 0), (5, 5, 5)), (1, (6, 0, 0), (11, 5, 5))], [[0, 1]]),
        # two nodules 1 mm apart that both readers see: the reach shrinks until each reader is there once
        (
            [
                (0, (0, 0, 0), (5, 5, 5)),
                (0, (6, 0, 0), (11, 5, 5)),
                (1, (0, 0, 0), (5, 5, 5)),
                (1, (6, 0, 0), (11, 5, 5)),
            ],
            [[0, 2], [1, 3]],
        ),
        # one inside the other, and one nodule that a reader outlined in two parts
        ([(0, (0, 0, 0), (20, 20, 20)), (1, (8, 8, 8), (11, 11, 11))], [[0, 1]]),
        ([(0, (0, 0, 0), (20, 5, 5)), (1, (0, 0, 0), (5, 5, 5)), (1, (12, 0, 0), (20, 5, 5))], [[0, 1, 2]]),
    ],
)
def test_outlines_are_matched(outlines, groups):
    assert match_outlines([box_outline(*each) for each in outlines], (1, 1, 2)) == groups


def test_one_reader_is_one_vote():
    parts = [
        box_outline(0, (0, 0, 0), (8, 4, 4)),
        box_outline(1, (0, 0, 0), (4, 4, 4)),
        box_outline(1, (4, 0, 0), (6, 4, 4)),
    ]
    nodule = consensus(parts, 1.0)
    assert nodule.readers == 2 and len(nodule.voxels) == 6 * 4 * 4


def test_readers_without_common_voxels(series, tmp_path):
    masks = [ellipse(series.volume.shape, (15 + 9 * k, 25, 9), (4, 4, 2)) for k in range(2)]
    series.write_xml([[rois(mask)] for mask in masks])
    summary = cubes(series, tmp_path / "out", consensus=0.6)
    assert [scan.reason for scan in summary.scans] == ["no consensus"]
    with pytest.raises(ValueError, match="expected scans to train on, found 1 no consensus"):
        summary.datalist()


@pytest.mark.parametrize("middle", [(3, 40, 2), (45, 3, 17), (24, 22, 10)])
def test_cubes_stay_inside_the_scan(series, tmp_path, middle):
    mask = ellipse(series.volume.shape, middle, (4, 4, 2)) & (
        np.pad(np.ones((46, 42, 20)), ((1, 1), (1, 1), (0, 0))) > 0
    )
    series.write_xml([[rois(mask)]] * 2)
    (scan,) = cubes(series, tmp_path / "out").scans
    np.testing.assert_array_equal(in_scan(series, tmp_path / "out", scan), mask)


def test_a_cube_larger_than_the_scan_is_padded(series, tmp_path):
    mask = ellipse(series.volume.shape, (20, 25, 9), (5, 5, 3))
    series.write_xml([[rois(mask)]] * 2)
    (scan,) = cubes(series, tmp_path / "out", cube=CubeRules((64, 44, 32))).scans
    image, label = (np.asarray(nib.load(tmp_path / "out" / path).dataobj) for path in (scan.image, scan.label))
    assert image.shape == (64, 44, 32) and label.sum() == mask.sum()
    np.testing.assert_array_equal(image[8:56, :, 6:26], series.volume)
    np.testing.assert_array_equal(label[8:56, :, 6:26], mask)
    np.testing.assert_array_equal(image[:8, :, 6:26], np.repeat(series.volume[:1], 8, axis=0))


def test_a_nodule_larger_than_the_cube_says_so():
    voxels = np.argwhere(np.ones((40, 10, 10)))
    bounds = cube_bounds(voxels, (100, 100, 100), (1, 1, 1), CubeRules((20, 20, 20)))
    assert share_in_cube(voxels, bounds) == 0.5


def test_cubes_at_another_spacing(series, tmp_path):
    mask = ellipse(series.volume.shape, (20, 25, 9), (9, 7, 4))
    series.write_xml([[rois(mask)]] * 2)
    rules = CubeRules((49, 41, 41), (1.0, 1.0, 1.0))
    (scan,) = cubes(series, tmp_path / "out", cube=rules).scans
    label = nib.load(tmp_path / "out" / scan.label)
    np.testing.assert_allclose(label.header.get_zooms(), 1, atol=1e-5)
    # the ellipsoid of the same half axes in mm around the same point of the world
    whole = LoadImage(reader=ScanReader, dtype=None, ensure_channel_first=True)(series.folder / "dicom")
    points = np.indices(label.shape).reshape(3, -1)
    world = label.affine @ np.vstack([points, np.ones(points.shape[1])])
    voxels = (np.linalg.inv(np.asarray(whole.affine)) @ world)[:3].T
    expected = (((voxels - (20, 25, 9)) / (9, 7, 4)) ** 2).sum(1).reshape(label.shape) <= 1
    mine = np.asarray(label.dataobj) > 0
    # voxels of 2 x 2 x 3 mm round the surface by about a quarter of a voxel, 0.6 mm of 9 to 18 mm: under 5 % of Dice
    assert 2 * (mine & expected).sum() / (mine.sum() + expected.sum()) > 0.95
    # the image is the linear interpolation: where cube and scan share a voxel centre it is the scan's own value
    image = np.asarray(nib.load(tmp_path / "out" / scan.image).dataobj).reshape(-1)
    same = np.abs(voxels - np.rint(voxels)).max(1) < 1e-4
    assert same.sum() > 500
    np.testing.assert_allclose(image[same], series.volume[tuple(np.rint(voxels[same]).astype(int).T)], atol=1)


def test_the_command_goes_on_where_it_stopped(series, tmp_path, capsys):
    mask = ellipse(series.volume.shape, (20, 25, 9), (9, 7, 4))
    series.write_xml([[rois(mask)]] * 2)
    (series.folder / "other.xml").write_text("<IdriReadMessage/>")
    (series.folder / "broken.xml").write_text("<LidcReadMessage>")
    out = tmp_path / "out/list.json"
    arguments = ["lidc", "--root", str(series.folder), "--out", str(out), "--size", "32,28,12"]
    assert main(arguments) == 0
    assert "not read:" in capsys.readouterr().out
    (entry,) = load_datalist(out, with_label=True)
    assert entry["patient"] == "LIDC-IDRI-0314" and entry["label"].startswith(str(tmp_path / "out/labels"))
    datalist = json.loads(out.read_text())
    assert datalist["labels"] == {"0": "background", "1": "nodule"} and datalist["nodules"]["consensus"] == 0.5
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}
    assert len(before) == 2
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # other rules, or a file that is gone, are made again
    assert main([*arguments, "--consensus", "1", "--spacing", "2,2,2"]) == 0
    assert all(path.stat().st_mtime_ns != stamp for path, stamp in before.items())
    assert not [path for path in (tmp_path / "out").rglob(".*")]


def test_series_that_give_nothing_are_named(series, tmp_path, tools):
    mask = ellipse(series.volume.shape, (20, 25, 9), (9, 7, 4))
    path = series.write_xml([[rois(mask)]] * 2, series="1.2.3")
    with pytest.raises(ValueError, match="found 1 no readings"):
        cubes(series, tmp_path / "out").datalist()
    series.write_xml([[], []], path.name)
    with pytest.raises(ValueError, match="found 1 no nodule"):
        cubes(series, tmp_path / "out").datalist()
    series.uids[9] = "1.2.3"
    series.write_xml([[rois(mask)]] * 2, path.name)
    (scan,) = cubes(series, tmp_path / "out").scans
    assert (scan.reason, scan.detail[:40]) == ("readings do not fit", "expected the slice 1.2.3 of a reading in")
    path.unlink()
    with pytest.raises(ValueError, match="found 1 series and 0 files with readings"):
        cubes(series, tmp_path / "out")


def test_two_files_of_one_series_count_where_they_say_the_same(series, tmp_path):
    mask = ellipse(series.volume.shape, (20, 25, 9), (9, 7, 4))
    series.write_xml([[rois(mask)]] * 2, "a.xml")
    series.write_xml([[rois(mask)]] * 2, "b.xml", namespace="http://other")
    summary = cubes(series, tmp_path / "out")
    assert [scan.reason for scan in summary.scans] == [""]
    assert any("b.xml: the same readings as" in note and "a.xml" in note for note in summary.notes)
    series.write_xml([[rois(mask)]] * 3, "c.xml")
    with pytest.raises(ValueError, match=r"(?s)0 files with readings.*c\.xml: other readings of the series"):
        cubes(series, tmp_path / "out").datalist()
    _, notes = find_readings(series.folder)
    assert any("c.xml: other readings of the series" in note and "a.xml" in note for note in notes)


def xml(points="", ratings=""):
    """An XML file with one outline of four points, of which the first is given."""
    corners = points + "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in ((9, 4), (9, 9), (4, 9))
    )
    return (
        "<LidcReadMessage><ResponseHeader><SeriesInstanceUid>1.2</SeriesInstanceUid></ResponseHeader><readingSession>"
        f"<unblindedReadNodule><characteristics>{ratings}</characteristics><roi><imageSOP_UID>1</imageSOP_UID>"
        f"<inclusion>TRUE</inclusion>{corners}</roi></unblindedReadNodule></readingSession></LidcReadMessage>"
    )


def edge(x, y="4"):
    return f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>"


@pytest.mark.parametrize("x", ["44", "44.0", " 44.00\n", "4.4e1"])
def test_whole_numbers_may_have_a_decimal_point(x, tmp_path):
    (tmp_path / "a.xml").write_text(xml(edge(x)))
    assert read_lidc_xml(tmp_path / "a.xml").nodules[0].contours[0].points[0].tolist() == [44, 4]


@pytest.mark.parametrize("x", ["44.5", "-1", "1" * 30, "1" * 5000, "nan", "inf", "", "x", "70000", "1e400"])
def test_coordinates_that_no_image_has_are_named(x, tmp_path):
    (tmp_path / "a.xml").write_text(xml(edge(x)))
    with pytest.raises(ValueError, match=r"a\.xml: expected xCoord as a whole number from 0 to 65535, found"):
        read_lidc_xml(tmp_path / "a.xml")


def test_ratings_that_their_scale_does_not_have_are_left_out_and_named(tmp_path):
    ratings = {"malignancy": "6", "calcification": "6", "internalStructure": "5", "texture": "-1", "margin": "3.0"}
    text = "".join(f"<{name}>{value}</{name}>" for name, value in ratings.items())
    (tmp_path / "a.xml").write_text(xml(edge(4), text))
    readings = read_lidc_xml(tmp_path / "a.xml")
    assert readings.nodules[0].ratings == {"calcification": 6, "margin": 3}
    assert [note.split("expected ")[1] for note in readings.notes] == [
        "malignancy from 1 to 5, found '6': left out",
        "internalStructure from 1 to 4, found '5': left out",
        "texture from 1 to 5, found '-1': left out",
    ]
    assert find_readings(tmp_path)[1] == list(readings.notes)


@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0" encoding="klingon"?><a/>',
        b'<?xml version="1.0" encoding="utf-7"?><a/>',
        b'<?xml version="1.0" encoding="shift_jis"?><a/>',
        b'<?xml version="1.0" encoding="rot13"?><a/>',
        b"<a>\xff</a>",
        b"<a>" * 100_000,
        b"",
        (
            xml(edge(4)).replace("</readingSession>", "</readingSession>" + "<readingSession></readingSession>" * 4)
        ).encode(),
    ],
    ids=["unknown", "utf-7", "multi-byte", "no text encoding", "no UTF-8", "deep", "empty", "five readers"],
)
def test_one_broken_file_is_noted_and_the_others_are_read(content, tmp_path):
    (tmp_path / "a.xml").write_bytes(content)
    (tmp_path / "b.xml").write_text(xml(edge(4)))
    readings, notes = find_readings(tmp_path)
    assert list(readings) == ["1.2"] and len(notes) == 1 and "a.xml: expected" in notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<LidcReadMessage/>", "expected ResponseHeader in LidcReadMessage"),
        ("no xml", "expected XML, found"),
        ("<LidcReadMessage><ResponseHeader/></LidcReadMessage>", "expected SeriesInstanceUid in ResponseHeader"),
    ],
)
def test_broken_xml_is_named(text, message, tmp_path):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match=f"a.xml: {message}"):
        read_lidc_xml(tmp_path / "a.xml")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"consensus": 0.0}, "consensus: expected a share"),
        ({"min_readers": 5}, "min_readers: expected 1 to 4"),
    ],
)
def test_rules_out_of_range(rules, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list_lidc(tmp_path, tmp_path / "out", **rules)
    with pytest.raises(ValueError, match="size: expected"):
        CubeRules((1, 2, 3))
    with pytest.raises(ValueError, match="spacing: expected"):
        CubeRules(spacing=(0.0, 1, 1))


def test_ready_cubes(shared, tmp_path):
    root = shared / "data/lidc/cubes"
    assert main(["lidc", "--root", str(root), "--out", str(tmp_path / "list.json")]) == 0
    datalist = json.loads((tmp_path / "list.json").read_text())
    patients = [{entry["patient"] for entry in datalist[split]} for split in ("training", "validation", "testing")]
    names = {path.stem.split("_")[0] for path in root.glob("*.npz")}
    assert set.union(*patients) == names and sum(map(len, patients)) == len(names)
    entries = [
        entry
        for split in ("training", "validation", "testing")
        for entry in load_datalist(tmp_path / "list.json", key=split)
    ]
    assert len(entries) == 32
    for entry in entries[:4]:
        with np.load(root / f"{entry['image'].split('/')[-1].removesuffix('.nii.gz')}.npz") as content:
            for key, name in (("image", "image"), ("label", "mask")):
                picture = nib.load(entry[key])
                np.testing.assert_array_equal(np.asarray(picture.dataobj), content[name])
                assert nib.aff2axcodes(picture.affine) == ("P", "L", "I") and picture.header.get_zooms() == (1, 1, 1)
        assert entry["mask_voxels_mm3"] == np.asarray(picture.dataobj).sum()


def test_bad_ready_cubes_are_named(tmp_path):
    cube, mask = np.zeros((51, 51, 51), np.int16), np.zeros((51, 51, 51), np.uint8)
    mask[20:30, 20:30, 20:30] = 1
    raw = tmp_path / "raw"
    raw.mkdir()
    np.savez(raw / "1_good.npz", image=cube, mask=mask)
    np.savez(raw / "2_small.npz", image=cube[1:], mask=mask)
    np.savez(raw / "3_empty.npz", image=cube, mask=0 * mask)
    np.savez(raw / "4_lone.npz", image=cube)
    np.savez(raw / "x_name.npz", image=cube, mask=mask)
    (raw / "5_text.npz").write_text("no archive")
    whole = bytearray((raw / "1_good.npz").read_bytes())
    whole[len(whole) // 3] ^= 16
    (raw / "6_bit.npz").write_bytes(whole)
    (raw / "7_cut.npz").write_bytes(whole[:3000])
    (raw / "labels.csv").write_text("name,malignancy,texture\n1_good,\u00b2\n1_other,1,2,3\n", encoding="utf-8")
    reasons = {scan.name: scan.reason for scan in list_lidc(raw, tmp_path / "out").scans}
    assert reasons == {
        "images/1_good.nii.gz": "",
        "2_small.npz": "other shape",
        "3_empty.npz": "no nodule",
        "4_lone.npz": "unreadable",
        "5_text.npz": "unreadable",
        "6_bit.npz": "unreadable",
        "7_cut.npz": "unreadable",
        "x_name.npz": "no patient",
    }
