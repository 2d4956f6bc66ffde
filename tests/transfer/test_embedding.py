# SPDX-License-Identifier: Apache-2.0
"""Vectors of scans, regions and tiles: means of the encoder's maps, whose neighbours are what they should be."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from models_genesis.datasets import msd_task
from models_genesis.networks import GenesisUNet
from models_genesis.training import save_trained_weights
from models_genesis.transfer.__main__ import main
from models_genesis.transfer.embedding import embed_scans, preprocessing
from models_genesis.transforms import BadCaseError

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SETTINGS = {"features": [4, 8, 16], "cube_size": [16, 16, 8], "intensity_range": [-1000, 1000]}


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1]) if affine is None else affine), path)
    return path


def scan(seed: int, shape: tuple[int, ...] = (24, 16, 12)) -> np.ndarray:
    """A CT of random density, with air."""
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


@pytest.fixture(scope="module")
def network() -> GenesisUNet:
    torch.manual_seed(0)
    return GenesisUNet(features=(4, 8, 16)).eval()


@pytest.fixture
def weights(network: GenesisUNet, tmp_path: Path) -> Path:
    save_trained_weights(network.state_dict(), tmp_path / "models" / "model.pt", SETTINGS)
    return tmp_path / "models"


def test_a_scan_of_one_tile_is_the_mean_of_the_bottleneck(network: GenesisUNet, tmp_path: Path) -> None:
    values = scan(1, (16, 16, 8))
    entries = [{"image": str(write(tmp_path / "a.nii.gz", values))}]
    image = (torch.from_numpy(values).float()[None, None] + 1000) / 2000
    with torch.no_grad():
        expected = [level.mean(dim=(0, 2, 3, 4)) for level in network.encoder(image.clip(0, 1))]
    (last,) = embed_scans(network, entries, SETTINGS).features
    np.testing.assert_allclose(last, expected[-1], rtol=1e-4, atol=1e-6)
    (every,) = embed_scans(network, entries, SETTINGS, levels="all").features
    np.testing.assert_allclose(every, torch.cat(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_a_2d_network_a_scan_is_the_mean_of_its_slices(axis: int, tmp_path: Path) -> None:
    """Of slices that are one tile each; a region is the mean over the slices that it lies in, by its area in each."""
    torch.manual_seed(1)
    network = GenesisUNet(2, features=(4, 8, 16)).eval()
    values = np.moveaxis(scan(3, (16, 24, 5)), 2, axis)
    label = np.zeros_like(values)
    np.moveaxis(label, axis, 2)[:, :, 1] = 2  # one slice whole
    np.moveaxis(label, axis, 2)[:8, :, 3] = 2  # half of another one
    entry = {"image": str(write(tmp_path / "a.nii.gz", values)), "label": str(write(tmp_path / "l.nii.gz", label))}
    settings = {**SETTINGS, "cube_size": [16, 24], "slice_axis": axis}
    planes = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, axis, 0))).float()[:, None] + 1000) / 2000
    with torch.no_grad():
        maps = network.encoder(planes.clip(0, 1))
    expected = torch.cat([level.mean(dim=(0, 2, 3)) for level in maps])
    (found,) = embed_scans(network, [entry], settings, levels="all").features
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    tiles = embed_scans(network, [entry], settings, "tile")
    np.testing.assert_allclose(tiles.features, maps[-1].mean(dim=(2, 3)), rtol=1e-4, atol=1e-6)
    (region,) = embed_scans(network, [entry], settings, "region").features
    last = maps[-1]
    halves = (last[1].mean(dim=(1, 2)) * 2 + last[3][:, :2].mean(dim=(1, 2))) / 3
    np.testing.assert_allclose(region, halves, rtol=1e-4, atol=1e-6)


def test_weights_of_slices_are_embedded_by_their_settings(tmp_path: Path, capsys: Any) -> None:
    network = GenesisUNet(2, features=(4, 8, 16)).eval()
    settings = {**SETTINGS, "cube_size": [16, 24], "slice_axis": 1}
    save_trained_weights(network.state_dict(), tmp_path / "model.pt", settings)
    image = write(tmp_path / "scans" / "a.nii.gz", scan(0))
    words = ["embed", "--weights", str(tmp_path / "model.pt"), "--images", str(image.parent), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "f.npz")]) == 0
    found = np.load(tmp_path / "f.npz")
    expected = embed_scans(network, [{"image": str(image)}], settings)
    np.testing.assert_allclose(found["features"], expected.features, rtol=1e-4)
    assert main([*words, "--out", str(tmp_path / "g.npz"), "--slice_axis", "2"]) == 2
    assert "--slice_axis: trained with 1, given 2" in capsys.readouterr().err


def test_dimensions_that_do_not_fit_are_refused(network: GenesisUNet, tmp_path: Path) -> None:
    entry = {"image": str(write(tmp_path / "a.nii.gz", scan(0)))}
    for own, settings in ((GenesisUNet(2, features=(4, 8)), {}), (network, {"slice_axis": 2, "cube_size": [16, 16]})):
        with pytest.raises(ValueError, match=r"in 2D with the --slice_axis of its slices, or one in 3D, found"):
            embed_scans(own, [entry], SETTINGS | settings)
    with pytest.raises(ValueError, match="slices through candidates"):
        embed_scans(GenesisUNet(2, 3, features=(4, 8)), [entry], {**SETTINGS, "slice_axes": [2, 1, 0]})


def test_a_scan_is_the_mean_of_its_tiles_and_of_regions_that_share_it_out(network: GenesisUNet, tmp_path: Path) -> None:
    """By volume, though tiles at the end are padded and regions cut through cells."""
    values, label = scan(2), np.random.default_rng(3).integers(1, 4, (24, 16, 12)).astype(np.uint8)
    entry = {
        "image": str(write(tmp_path / "a.nii.gz", values)),
        "label": str(write(tmp_path / "l.nii.gz", label)),
    }
    found = {per: embed_scans(network, [entry], SETTINGS, per) for per in ("scan", "region", "tile")}
    assert len(found["tile"].features) == 4 and found["region"].labels == [1, 2, 3]
    tiles = np.average(found["tile"].features, axis=0, weights=[16 * 16 * 8, 16 * 16 * 4, 8 * 16 * 8, 8 * 16 * 4])
    np.testing.assert_allclose(found["scan"].features[0], tiles, rtol=1e-4, atol=1e-6)
    regions = np.average(found["region"].features, axis=0, weights=[(label == value).sum() for value in (1, 2, 3)])
    np.testing.assert_allclose(found["scan"].features[0], regions, rtol=1e-4, atol=1e-6)
    for value, centre in zip((1, 2, 3), found["region"].centres, strict=True):
        np.testing.assert_allclose(centre, np.argwhere(label == value).mean(axis=0) * (1, 1, 2), atol=1e-6)
    np.testing.assert_allclose(found["tile"].centres, [[7.5, 7.5, 7], [7.5, 7.5, 19], [19.5, 7.5, 7], [19.5, 7.5, 19]])


def test_how_a_scan_is_stored_does_not_matter(network: GenesisUNet, tmp_path: Path) -> None:
    """The same voxels at the same places in space, axes in another order and direction."""
    values, affine = scan(4), np.diag([1.0, 1, 2, 1])
    other = nib.Nifti1Image(values, affine).as_reoriented(nib.orientations.axcodes2ornt("PIL"))
    entries = [{"image": str(write(tmp_path / "a.nii.gz", values))}]
    nib.save(other, tmp_path / "b.nii.gz")
    entries.append({"image": str(tmp_path / "b.nii.gz")})
    result = embed_scans(network, entries, SETTINGS)
    np.testing.assert_allclose(result.features[0], result.features[1], rtol=1e-5)
    np.testing.assert_allclose(result.centres[0], result.centres[1])


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nodule": ("genesis_lidc_nodule_ct_segmentation", {"spacing": [1.5, 1, 1], "intensity_range": [-900, 300]}),
    "liver": ("genesis_lits_liver_ct_segmentation", {"spacing": None, "intensity_range": [-1000, 1000]}),
    "glioma": ("genesis_brats_mri_segmentation", {"normalise": "minmax", "channels": ["flair"], "spacing": None}),
    "spleen": (
        "genesis_msd_segmentation",
        {"task": "Task09_Spleen", "intensity_range": [-200, 300], "normalise": "zscore"},
    ),
    "hippocampus": (
        "genesis_msd_segmentation",
        {"task": "Task04_Hippocampus", "intensity_range": [-1000, 1000], "normalise": "zscore", "spacing": [1, 1, 1]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_preprocessing_is_that_of_the_bundle(case: str, network: GenesisUNet, tmp_path: Path) -> None:
    bundle, settings = CASES[case]
    settings = settings | {"features": [4, 8, 16]}
    if "task" in settings:
        settings["task_facts"] = msd_task(settings["task"])
    save_trained_weights(network.state_dict(), tmp_path / "model.pt", settings)
    parser = ConfigParser(ConfigParser.load_config_file(str(BUNDLES / bundle / "configs" / "inference.json")))
    parser.update({"ckpt_dir": str(tmp_path), "bundle_root": str(BUNDLES / bundle)})
    values = scan(5) if case not in ("glioma", "hippocampus") else np.abs(scan(5))
    entry = {"image": str(write(tmp_path / "a.nii.gz", values))}
    expected = parser.get_parsed_content("preprocessing")(entry)["image"]
    found = preprocessing(json.loads((tmp_path / "model.json").read_text())["settings"])(entry)["image"]
    assert found.shape == expected.shape
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), check_dtype=False)


# the command line


def test_the_command_writes_both_kinds_of_file(weights: Path, network: GenesisUNet, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "scans" / f"{number}.nii.gz", scan(number))
    for suffix in ("npz", "csv"):
        words = ["--weights", weights, "--images", tmp_path / "scans", "--out", tmp_path / f"f.{suffix}"]
        assert main(["embed", *map(str, words), "--device", "cpu"]) == 0
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        arrays = dict(file)
    entries = [{"image": str(tmp_path / "scans" / f"{number}.nii.gz")} for number in range(3)]
    order = [entries[int(Path(image).name[0])] for image in arrays["image"]]
    assert sorted(Path(image).name for image in arrays["image"]) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    np.testing.assert_array_equal(arrays["features"], embed_scans(network, order, SETTINGS).features)
    assert json.loads(str(arrays["settings"]))["intensity_range"] == [-1000, 1000] and len(arrays["skipped"]) == 0
    with open(tmp_path / "f.csv", newline="") as text:
        header, *rows = csv.reader(text)
    assert header == ["image", "label", "x", "y", "z", *(f"f{number}" for number in range(16))]
    assert [row[0] for row in rows] == list(arrays["image"])
    np.testing.assert_allclose(np.array([row[5:] for row in rows], float), arrays["features"], rtol=1e-6)


def test_bad_scans_are_refused_or_left_out_by_name(weights: Path, tmp_path: Path, capsys: Any) -> None:
    good, out = write(tmp_path / "scans" / "good.nii.gz", scan(0)), tmp_path / "f.npz"
    broken = {
        "cut.nii.gz": lambda path: path.write_bytes(good.read_bytes()[:500]),
        "four.nii.gz": lambda path: write(path, scan(1, (16, 16, 8, 4))),
        "no_air.nii.gz": lambda path: write(path, np.abs(scan(2))),
    }
    for name, make in broken.items():
        make(tmp_path / "scans" / name)
        words = ["embed", "--weights", weights, "--images", tmp_path / "scans", "--out", out, "--device", "cpu"]
        assert main([str(word) for word in words]) == 2
        assert name in capsys.readouterr().err and not out.exists()
        assert main([*(str(word) for word in words), "--skip_bad"]) == 0
        said = capsys.readouterr().out
        assert "left out:" in said and name in said
        with np.load(out) as file:
            assert list(file["image"]) == [str(good)] and name in str(file["skipped"][0])
        out.unlink()
        (tmp_path / "scans" / name).unlink()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--out", "f.parquet"], "expected a name that ends in .npz or .csv, found '.parquet'"),
        (["--intensity_range", "-500", "500"], "--intensity_range: trained with [-1000, 1000], given [-500.0, 500.0]"),
        (["--images", "nowhere"], "nowhere"),
        (["--weights", "nowhere.pt"], "nowhere.pt: expected a file of weights"),
    ],
)
def test_what_cannot_be_right_is_refused(
    extra: list[str], message: str, weights: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "scans" / "a.nii.gz", scan(0))
    words = ["embed", "--weights", str(weights), "--images", "scans", "--out", "f.npz", "--device", "cpu", *extra]
    assert main(words) == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.glob("f.*"))


def test_weights_without_settings_need_them_given(weights: Path, tmp_path: Path, capsys: Any) -> None:
    (weights / "model.json").unlink()
    write(tmp_path / "scans" / "a.nii.gz", scan(0))
    words = ["embed", "--weights", weights, "--images", tmp_path / "scans", "--out", tmp_path / "f.npz"]
    assert main([*map(str, words), "--device", "cpu"]) == 2
    assert "expected settings of the weights that tell intensities" in capsys.readouterr().err
    assert main([*map(str, words), "--device", "cpu", "--intensity_range", "-1000", "1000"]) == 0


def test_regions_need_a_label_map_and_networks_their_channels(network: GenesisUNet, tmp_path: Path) -> None:
    entry = {"image": str(write(tmp_path / "a.nii.gz", scan(0)))}
    with pytest.raises(BadCaseError, match=r"a\.nii\.gz: no label map"):
        embed_scans(network, [entry], SETTINGS, "region")
    entry["label"] = str(write(tmp_path / "l.nii.gz", np.ones((24, 16, 11), np.uint8)))
    with pytest.raises(BadCaseError, match=r"a\.nii\.gz: other label map: expected shape \(24, 16, 12\), found"):
        embed_scans(network, [entry], SETTINGS, "region")
    with pytest.raises(BadCaseError, match="expected 3 channels, found 1"):
        embed_scans(GenesisUNet(features=(4, 8, 16), in_channels=3).eval(), [entry], SETTINGS)


# neighbours


def neighbours(features: list[np.ndarray], number: int) -> list[int]:
    """For each vector after the first ``number``, the nearest of those, by cosine once each feature is standardised."""
    every = np.stack(features)
    every = (every - every[:number].mean(axis=0)) / (every[:number].std(axis=0) + 1e-9)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    return [int(index) for index in (every[number:] @ every[:number].T).argmax(axis=1)]


def test_the_nearest_neighbour_of_a_changed_copy_is_its_original(shared: Path, tmp_path: Path) -> None:
    """Noise, a mirror image and a shift of the window of 3 voxels: by chance one in 10 would be right."""
    folder = shared / "data" / "lidc" / "voi" / "image"
    if not folder.is_dir():
        pytest.skip(f"real scans are not on this machine (expected at {folder})")
    network = GenesisUNet.from_pretrained(BUNDLES / "genesis_chest_ct_pretraining" / "models" / "model.pt")
    settings = {"cube_size": [32, 32, 16], "intensity_range": [-1000, 1000]}
    originals = sorted(folder.glob("*.nii.gz"))[:10]
    R = np.random.default_rng(0)
    copies = []
    for path in originals:
        image = nib.load(path)
        values, name = np.asarray(image.dataobj).astype(np.float32), path.name.split(".")[0]
        noisy = values + R.normal(0, 20, values.shape).astype(np.float32)
        for kind, changed in (("noisy", noisy), ("mirrored", values[::-1]), ("shifted", values[3:])):
            copies.append(write(tmp_path / f"{name}_{kind}.nii.gz", np.ascontiguousarray(changed), image.affine))
    entries = [{"image": str(path)} for path in (*originals, *copies)]
    result = embed_scans(network, entries, settings, levels="all", modality="any")
    found = neighbours(result.features, len(originals))
    right = sum(found[3 * number + kind] == number for number in range(len(originals)) for kind in range(3))
    assert right >= 0.9 * len(found)  # 29 of 30 were found
