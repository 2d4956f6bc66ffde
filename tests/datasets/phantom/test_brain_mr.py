# SPDX-License-Identifier: Apache-2.0
"""The brain phantom has the contrasts and the tumour of BraTS, differs by patient and repeats by seed."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from models_genesis.datasets import make_brain_phantom
from models_genesis.datasets.phantom.brain_anatomy import TISSUES
from models_genesis.datasets.phantom.brain_mr import SIGNAL
from models_genesis.datasets.phantom.brain_patient import draw_brain_patient

SMALL = {"shape": (56, 64, 52), "spacing": (3.4, 3.4, 3.4)}
CONTRASTS = ("flair", "t1", "t1ce", "t2")


@pytest.fixture(scope="module")
def phantoms():
    """Three patients at low resolution and two at that of the default, with and without enhancement."""
    small = [make_brain_phantom(seed, enhancing=seed < 2, **SMALL) for seed in range(3)]
    return [*small, make_brain_phantom(2, enhancing=True), make_brain_phantom(6, enhancing=False)]


def medians(phantom, contrast):
    """Median of each tissue where it fills most of a voxel."""
    image, share = phantom.images[contrast], phantom.mixture.share
    pure = {tissue: share[TISSUES.index(tissue)] > 0.85 for tissue in TISSUES}
    return {tissue: float(np.median(image[mask])) for tissue, mask in pure.items() if mask.sum() > 5}


def test_tissues_contrast_as_in_mr(phantoms):
    # at low resolution hardly a voxel is all rim
    for phantom in phantoms[3:]:
        flair, t1, t1ce, t2 = (medians(phantom, contrast) for contrast in CONTRASTS)
        assert flair["fluid"] < 0.4 * flair["white"] < 0.4 * flair["grey"]
        assert t1["fluid"] < 0.5 * t1["grey"] and t1["grey"] < 0.85 * t1["white"]
        assert t2["fluid"] > 2 * t2["grey"] and t2["grey"] > 1.2 * t2["white"]
        assert flair["oedema"] > 1.3 * flair["grey"] and t2["oedema"] > 1.2 * t2["grey"] and t1["oedema"] < t1["white"]
        if phantom.enhancing:
            # the rim is bright after contrast only; what it encloses is not
            assert t1ce["enhancing"] > 1.2 * t1ce["white"] and t1["enhancing"] < 0.8 * t1["white"]
            assert t1ce["necrosis"] < 0.6 * t1ce["white"]
        else:
            assert "enhancing" not in t1ce and t1ce["solid"] < 0.8 * t1ce["white"]


def test_real_tumours_contrast_the_same_way(shared, phantoms):
    def ratios(images, label):
        brain = images["t1"] > np.percentile(images["t1"][images["t1"] > 0], 20)
        healthy = {name: np.median(image[brain & (label == 0)]) for name, image in images.items()}
        return {name: np.median(image[label == 2]) / healthy[name] for name, image in images.items()}

    real = []
    for folder in sorted((shared / "data/brats").iterdir()):
        parts = {
            path.name.split("_")[-1].split(".")[0]: np.asarray(nib.load(path).dataobj) for path in folder.glob("*.gz")
        }
        real.append(ratios({name: parts[name] for name in CONTRASTS}, parts["seg"]))
    for found in [*real, *(ratios(phantom.images, phantom.label) for phantom in phantoms)]:
        assert 1.2 < found["flair"] < 2.2 and 1.1 < found["t2"] < 2.2 and 0.7 < found["t1"] < 1.2


@pytest.mark.parametrize("seed", range(8))
def test_the_tumour_has_its_parts(seed):
    phantom = make_brain_phantom(seed, enhancing=seed % 2 == 0, **SMALL)
    values = np.unique(phantom.label).tolist()
    assert values == ([0, 1, 2, 4] if seed % 2 == 0 else [0, 1, 2])
    brain = phantom.images["t1"] > 0
    assert brain[phantom.label > 0].all()
    millilitres = {value: (phantom.label == value).sum() * 3.4**3 / 1000 for value in values}
    # a core of 10 to 20 mm radius holds 4 to 34 ml, oedema of up to 20 mm around it at most a ball of 40 mm
    assert 1 < millilitres[1] + millilitres.get(4, 0) < 45 and 1 < millilitres[2] < 260
    # core and rim are one piece with hardly a crumb, and touch the oedema
    core = np.isin(phantom.label, (1, 4))
    pieces, number = ndimage.label(core, np.ones((3, 3, 3)))
    assert np.bincount(pieces.ravel())[1:].max() > 0.9 * core.sum() and number >= 1
    assert (phantom.label[ndimage.binary_dilation(core) & ~core] == 2).sum() > 0


def test_brains_are_of_human_size_and_make(phantoms):
    for phantom in phantoms:
        voxel = abs(np.linalg.det(phantom.affine[:3, :3])) / 1000
        share = phantom.mixture.share
        total = share.sum(0)
        # every voxel of the brain is full, every one outside is empty, but for those on the surface
        assert total.min() >= 0 and total.max() < 1 + 1e-4 and share.min() >= 0
        assert (np.abs(total - 0.5) < 0.499).sum() < 0.35 * (total > 0.5).sum()
        assert 1000 < total.sum() * voxel < 2100
        grey, white = phantom.mixture.of("grey", "nucleus").sum(), phantom.mixture.of("white").sum()
        assert 0.8 < grey / white < 2.2
        assert 0.05 < phantom.mixture.of("fluid").sum() / total.sum() < 0.25
        assert all((phantom.images[name] > 0).sum() == (total > 0.5).sum() for name in CONTRASTS)
        # all of it lies inside the field of view
        assert not any(total.take(end, axis).any() for axis in range(3) for end in (0, -1) if (axis, end) != (2, 0))


def test_noise_is_rician():
    # in white matter, far above the noise, Rice's distribution is nearly normal: sigma of n voxels is known to
    # sigma / sqrt(2 n), so 5 % is more than five of its deviations for n > 5,000; the mean rises by
    # sigma^2 / (2 signal), and rounding both images adds 1/12 each to the variance
    noisy, clean = (make_brain_phantom(5, noise=noise) for noise in (1.0, 0.0))
    patient = draw_brain_patient(5)
    white = clean.mixture.of("white") > 0.95
    assert white.sum() > 5000
    for contrast in CONTRASTS:
        difference = noisy.images[contrast][white] - clean.images[contrast][white].astype(float)
        sigma = patient.noise * patient.gain[contrast]
        assert np.hypot(sigma, np.sqrt(2 / 12)) == pytest.approx(difference.std(), rel=0.05)
        assert abs(difference.mean()) < 0.1 * sigma
    # at the signal 0 outside nothing is left, as after skull stripping
    assert not noisy.images["t2"][clean.mixture.share.sum(0) < 0.5].any()
    np.testing.assert_array_equal(noisy.label, clean.label)


def test_seeds_repeat_and_differ(phantoms):
    again = make_brain_phantom(0, enhancing=True, **SMALL)
    for contrast in CONTRASTS:
        np.testing.assert_array_equal(again.images[contrast], phantoms[0].images[contrast])
    np.testing.assert_array_equal(again.label, phantoms[0].label)
    # the choice of enhancement changes the core alone
    plain = make_brain_phantom(0, enhancing=False, **SMALL)
    np.testing.assert_array_equal(plain.label > 0, again.label > 0)
    np.testing.assert_array_equal(plain.label == 2, again.label == 2)
    folds = [phantom.mixture.of("white") > 0.5 for phantom in phantoms[:3]]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # the gyri of two people overlap little better than by chance
        overlap = (folds[one] & folds[other]).sum() / (folds[one] | folds[other]).sum()
        assert overlap < 0.7
    sides = [np.sign(draw_brain_patient(seed).tumour.center[0]) for seed in range(100)]
    # 100 fair coins: 50 +- 5 * 5
    assert 25 < sides.count(1.0) < 75
    # four of five enhance: 80 +- 5 * 4
    assert 60 < sum(draw_brain_patient(seed).tumour.rim_mm > 0 for seed in range(100)) < 100


def test_geometry_is_as_asked():
    phantom = make_brain_phantom(1, (40, 48, 44), (4, 4, 3))
    assert phantom.label.shape == (40, 48, 44) and nib.aff2axcodes(phantom.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.diag(phantom.affine)[:3], (4, 4, 3))
    # a finer grid shows the same brain: its mask, looked up at the coarse voxels' places, agrees
    fine = make_brain_phantom(1, (80, 96, 66), (2, 2, 2))
    index = np.indices(phantom.label.shape).reshape(3, -1)
    world = phantom.affine @ np.vstack([index, np.ones(index.shape[1])])
    places = np.rint((np.linalg.inv(fine.affine) @ world)[:3]).astype(int)
    places = np.clip(places, 0, np.array(fine.label.shape)[:, None] - 1)
    masks = [phantom.images["t1"].ravel() > 0, fine.images["t1"][tuple(places)] > 0]
    assert 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum()) > 0.94


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed and noise must not be negative"),
        ({"seed": 0, "noise": -1}, "seed and noise must not be negative"),
        ({"seed": 0, "shape": (96, 96)}, "shape must be three sides"),
        ({"seed": 0, "shape": (96, 96, 20)}, "shape must be three sides of at least 32"),
        ({"seed": 0, "spacing": (2, 2, 0)}, "spacing must be three positive"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_brain_phantom(**arguments)


def test_every_tissue_has_a_signal():
    assert set(SIGNAL) == set(CONTRASTS) and all(set(values) == set(TISSUES) for values in SIGNAL.values())
