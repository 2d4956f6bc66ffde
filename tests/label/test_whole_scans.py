# SPDX-License-Identifier: Apache-2.0
"""A scan of an archive has all its slices, whatever happened while it was downloaded; the archive is in memory."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole_scans(environment) -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "label"))
    yield importlib.import_module("lib.whole_scans")
    sys.path.remove(str(ROOT / "label"))


class Client:
    """What MONAI Label's datastore asks of a DICOMweb client.

    Args:
        files: DICOM files of one series.
    """

    base_url = "http://archive"

    def __init__(self, files: list[Any]) -> None:
        self.files = files
        self.downloads = 0
        self.counts = True
        self.failing = -1
        """After how many files the connection breaks."""

    def search_for_series(self, search_filters: dict[str, str]) -> list[dict[str, Any]]:
        first = self.files[0]
        if search_filters["SeriesInstanceUID"] not in ("*", first.SeriesInstanceUID):
            return []
        answer = {"0020000D": {"vr": "UI", "Value": [first.StudyInstanceUID]}}
        answer["0020000E"] = {"vr": "UI", "Value": [first.SeriesInstanceUID]}
        answer["00080060"] = {"vr": "CS", "Value": [first.Modality]}
        return [{**answer, **({"00201209": {"vr": "IS", "Value": [len(self.files)]}} if self.counts else {})}]

    def search_for_instances(self, study: str, series: str, get_remaining: bool) -> list[dict[str, Any]]:
        assert get_remaining
        return [{}] * len(self.files)

    def retrieve_series(self, study: str, series: str) -> Iterator[Any]:
        self.downloads += 1
        for number, file in enumerate(self.files):
            if number == self.failing:
                raise ConnectionError("broken")
            yield file


@pytest.fixture
def archive(load_script, tmp_path) -> tuple[Client, np.ndarray]:
    """Four slices, and their values."""
    import pydicom

    values = np.arange(5 * 6 * 4, dtype=np.int16).reshape(5, 6, 4)
    write_series = load_script(ROOT / "tools" / "write_dicom.py").write_series
    write_series(tmp_path / "dicom", values, np.diag([1.0, 1.0, 2.0, 1.0]), "CT", "P", "test")
    return Client([pydicom.dcmread(path) for path in sorted((tmp_path / "dicom").iterdir())]), values


@pytest.fixture
def datastore(whole_scans, archive, tmp_path) -> Callable[[], Any]:
    """Make the datastore as another start of the server does."""
    from monailabel.datastore.dicom import DICOMWebDatastore

    made = []

    def make() -> Any:
        made.append(DICOMWebDatastore(archive[0], {"Modality": "CT"}, cache_path=str(tmp_path / "cache")))
        return whole_scans.WholeScanDatastore.of(made[-1])

    yield make
    for each in made:
        each._observer.stop()
        each._observer.join()


def voxels(path: str) -> np.ndarray:
    """The values of a scan, in the order of its slices' places."""
    scan = nib.as_closest_canonical(nib.load(path))
    return np.asarray(scan.dataobj)


def test_a_scan_is_downloaded_once(datastore, archive):
    client, values = archive
    series = str(client.files[0].SeriesInstanceUID)
    first = datastore()
    uri = first.get_image_uri(series)
    np.testing.assert_array_equal(voxels(uri), values)
    assert Path(uri).name == f"{series}.nii.gz"  # not a nameless copy
    assert first.get_image_info(series)["Modality"] == "CT"
    assert first.get_image_uri(series) == datastore().get_image_uri(series) == uri
    assert client.downloads == 1


@pytest.mark.parametrize("counts", [True, False])
def test_an_interrupted_download_is_begun_again(datastore, archive, counts):
    """Whatever the archive says of the number, for not all say it."""
    client, values = archive
    client.counts, client.failing = counts, 2
    series = str(client.files[0].SeriesInstanceUID)
    with pytest.raises(ConnectionError):
        datastore().get_image_uri(series)
    client.failing = -1
    np.testing.assert_array_equal(voxels(datastore().get_image_uri(series)), values)
    assert client.downloads == 2


@pytest.mark.parametrize("lost", ["a slice", "the end of the scan", "what MONAI Label alone had begun"])
def test_what_is_not_whole_is_downloaded_again(lost, datastore, archive):
    client, values = archive
    series = str(client.files[0].SeriesInstanceUID)
    uri = Path(datastore().get_image_uri(series))
    if lost == "a slice":
        next(uri.with_name(series).iterdir()).unlink()
    elif lost == "the end of the scan":
        uri.write_bytes(uri.read_bytes()[:-10])
    else:
        for path in (uri, uri.with_name(f"{series}.whole.json"), *list(uri.with_name(series).iterdir())[1:]):
            path.unlink()
    np.testing.assert_array_equal(voxels(datastore().get_image_uri(series)), values)
    assert client.downloads == 2


def test_slices_that_come_later_are_seen(datastore, archive):
    client, values = archive
    last = client.files.pop()  # the lowest, for they are numbered from the head down
    made = datastore()
    assert voxels(made.get_image_uri(last.SeriesInstanceUID)).shape[2] == 3
    client.files.append(last)
    np.testing.assert_array_equal(voxels(made.get_image_uri(last.SeriesInstanceUID)), values)


def test_an_archive_that_gives_less_than_it_has_is_refused(datastore, archive, monkeypatch):
    from monailabel.interfaces.exception import MONAILabelException

    client, values = archive
    series = str(client.files[0].SeriesInstanceUID)
    whole = client.retrieve_series
    monkeypatch.setattr(client, "retrieve_series", lambda *uids: list(whole(*uids))[:3])
    with pytest.raises(MONAILabelException) as error:
        datastore().get_image_uri(series)
    assert error.value.msg == f"{series}: expected 4 files of the archive, found 3"
    monkeypatch.undo()
    np.testing.assert_array_equal(voxels(datastore().get_image_uri(series)), values)


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("fault", ["a missing slice", "an uneven slice", "a tilted gantry"])
def test_slices_that_make_no_even_grid_are_refused_as_in_a_folder(fault, convert, datastore, archive, tmp_path):
    """MONAI Label would lay them on one, by the mean of their distances, so that everything lies elsewhere."""
    from monailabel.interfaces.exception import MONAILabelException

    from models_genesis.datasets import BadScanError, read_scan_header

    client, _ = archive
    series = str(client.files[0].SeriesInstanceUID)
    if fault == "a missing slice":
        del client.files[1]
    for number, each in enumerate(client.files):
        position = [float(value) for value in each.ImagePositionPatient]
        position[1] += 0.5 * number if fault == "a tilted gantry" else 0
        position[2] += 0.6 * (number == 1) if fault == "an uneven slice" else 0
        each.ImagePositionPatient = [f"{value:.10g}" for value in position]
    (tmp_path / "folder").mkdir()
    for number, each in enumerate(client.files):
        each.save_as(tmp_path / "folder" / f"{number}.dcm")
    with pytest.raises(BadScanError) as expected:
        read_scan_header(str(tmp_path / "folder"))
    made = datastore()
    made._convert_to_nifti = convert
    with pytest.raises(MONAILabelException) as error:
        made.get_image_uri(series)
    assert error.value.msg.endswith(f"{expected.value.reason}: {expected.value.detail}")
    assert not list(Path(made._datastore.image_path()).glob("*.nii.gz"))


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (0, 2, 1)], ids=["axial", "sagittal", "coronal"])
def test_a_scan_has_its_voxels_where_they_are_in_the_archive(axes, whole_scans, archive, load_script, tmp_path):
    """As the header of its folder says, and, for segmentations by MONAI Label and dcmqi, on the grid that ITK makes."""
    from monailabel.datastore.utils.convert import dicom_to_nifti

    from models_genesis.datasets import read_scan_header

    turn = np.eye(4)[:, [*axes, 3]]
    angle = np.radians(12)
    turn[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]] @ turn[:3, :3]
    affine = turn @ np.diag([-0.7, 0.9, 2.5, 1.0])
    affine[:3, 3] = (31.3, -12.7, 405.1)
    load_script(ROOT / "tools" / "write_dicom.py").write_series(tmp_path / "scan", archive[1], affine, "CT", "P", "t")
    whole_scans.convert(str(tmp_path / "scan"), tmp_path / "scan.nii.gz")
    header, found = read_scan_header(str(tmp_path / "scan")), nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(found.affine, header.affine, atol=1e-4)
    assert found.get_data_dtype() == np.int16
    by_itk = nib.load(dicom_to_nifti(str(tmp_path / "scan")))
    np.testing.assert_allclose(found.affine, by_itk.affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(by_itk.dataobj))


def test_what_was_not_scanned_is_air_as_in_a_folder(datastore, archive):
    client, values = archive
    for each in client.files:
        each.add_new(0x00280120, "SS", 7)  # PixelPaddingValue
    expected = np.where(values == 7, -1000, values)
    np.testing.assert_array_equal(voxels(datastore().get_image_uri(client.files[0].SeriesInstanceUID)), expected)


def test_a_file_that_tells_another_grid_is_refused(whole_scans, archive, monkeypatch, tmp_path):
    from models_genesis.datasets import BadScanError

    write = whole_scans.ScanWriter.set_metadata
    moved = {"affine": np.diag([1.0, 1.0, 3.0, 1.0])}
    monkeypatch.setattr(whole_scans.ScanWriter, "set_metadata", lambda self, meta, **other: write(self, moved, **other))
    with pytest.raises(BadScanError, match=r"converted: expected \(5, 6, 4\) voxels at .* in the file that it becomes"):
        whole_scans.convert(str(tmp_path / "dicom"), tmp_path / "scan.nii.gz")


def test_what_monai_label_has_converted_is_read_again(datastore, archive):
    """Its note lacks which conversion it was."""
    client, values = archive
    series = str(client.files[0].SeriesInstanceUID)
    uri = Path(datastore().get_image_uri(series))
    note = uri.with_name(f"{series}.whole.json")
    squeezed = nib.Nifti1Image(values[:, :, ::-1].copy(), np.diag([1.0, 1.0, 3.0, 1.0]))
    nib.save(squeezed, uri)
    state = {"instances": 4, "files": 4, "size": uri.stat().st_size}
    note.write_text(json.dumps(state))
    np.testing.assert_array_equal(voxels(datastore().get_image_uri(series)), values)


@pytest.mark.parametrize("series", ["1.2.3", "*", "../outside"])
def test_a_series_that_the_archive_has_not_is_named(series, datastore):
    from monailabel.interfaces.exception import MONAILabelException

    with pytest.raises(MONAILabelException) as error:
        datastore().get_image_uri(series)
    assert error.value.msg == f"{series}: expected the identifier of a series in http://archive, found no such series"


def test_two_at_a_time_download_one_after_the_other(datastore, archive):
    """As the server and its scoring do, each with a datastore; the second has nothing left to do."""
    client, values = archive
    makers = [datastore(), datastore()]
    with ThreadPoolExecutor(2) as pool:
        series = str(client.files[0].SeriesInstanceUID)
        uris = list(pool.map(lambda each: each.get_image_uri(series), makers))
    assert client.downloads == 1
    for uri in uris:
        np.testing.assert_array_equal(voxels(uri), values)
    for each in makers:
        assert each.get_image_info(series)["Modality"] == "CT"
        each.update_image_info(series, {"uncertainty": {"score": 0.5}})


@pytest.mark.parametrize("names", [["anterior", "posterior"], ["posterior"], []])
@pytest.mark.parametrize("values", [(2,), (), (1, 2)])
def test_names_that_would_go_to_other_segments_are_refused(names, values, datastore, archive, tmp_path, monkeypatch):
    """MONAI Label gives the first name to the lowest value that occurs, so a 2 alone would be called anterior."""
    from monailabel.datastore import dicom
    from monailabel.interfaces.exception import MONAILabelException

    stored = []

    def write(folder: str, label: str, info: list[dict[str, str]]) -> str:
        stored.append([each["name"] for each in info])
        (tmp_path / "segmentation").touch()
        return str(tmp_path / "segmentation")

    monkeypatch.setattr(dicom, "nifti_to_dicom_seg", write)
    monkeypatch.setattr(dicom, "dicom_web_upload_dcm", lambda file, client: "1.2.3")
    label = np.zeros((5, 6, 4), np.uint8)
    label.flat[: len(values)] = values
    nib.save(nib.Nifti1Image(label, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "label.nii.gz")
    label.tofile(tmp_path / "label.bin")
    series = str(archive[0].files[0].SeriesInstanceUID)
    info = {"label_info": [{"name": name} for name in names]}
    made = datastore()
    if values and len(names) in (0, len(values)):  # without names they are called unknown
        made.save_label(series, str(tmp_path / "label.nii.gz"), "final", info)
        assert stored == [names]
        return
    for name in ("label.nii.gz", "label.bin"):
        with pytest.raises(MONAILabelException) as error:
            made.save_label(series, str(tmp_path / name), "final", info)
        assert error.value.msg.endswith(f"the lowest first: {list(values)}, found {names}")
    assert stored == []
    made.save_label(series, str(tmp_path / "label.nii.gz"), "original", {})  # which stays here
