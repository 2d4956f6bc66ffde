# SPDX-License-Identifier: Apache-2.0
"""A scan of an archive has all its slices, whatever happened while it was downloaded; the archive is in memory."""

from __future__ import annotations

import importlib
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


def test_a_scan_that_is_converted_in_part_is_refused(datastore, archive, whole_scans, monkeypatch, tmp_path):
    from monailabel.interfaces.exception import MONAILabelException

    client, values = archive

    def convert(folder: str) -> str:
        nib.save(nib.Nifti1Image(values[:, :, :3], np.eye(4)), tmp_path / "made.nii.gz")
        return str(tmp_path / "made.nii.gz")

    monkeypatch.setattr(whole_scans, "dicom_to_nifti", convert)
    with pytest.raises(MONAILabelException) as error:
        datastore().get_image_uri(client.files[0].SeriesInstanceUID)
    assert "expected 4 slices in the file that it becomes, found 3" in error.value.msg


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
