# SPDX-License-Identifier: Apache-2.0
"""The app on a DICOM archive: Orthanc, MONAI Label over DICOMweb, and OHIF in a browser without a screen.

A CT and an MR are real, and segmented with the weights that the bundles enclose. The tests run in this order.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
LIDC, MSD = "genesis_lidc_nodule_ct_segmentation", "genesis_msd_segmentation"
MODELS = {"ct": LIDC, "mr": MSD}
LABELS = {"ct": {"nodule": 1}, "mr": {"anterior": 1, "posterior": 2}}
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def viewer(viewer_tool) -> ModuleType:
    """The tool, where Orthanc is installed."""
    try:
        viewer_tool.find_orthanc()
    except viewer_tool.NotInstalledError as error:
        pytest.skip(str(error))
    return viewer_tool


@dataclass
class Archive:
    """A running Orthanc, and what was stored in it."""

    url: str
    scans: dict[str, nib.Nifti1Image] = field(default_factory=dict)
    series: dict[str, str] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        import requests

        answer = requests.get(f"{self.url}{path}", timeout=60)
        answer.raise_for_status()
        return answer

    def segmentations(self, name: str) -> dict[str, Any]:
        """DICOM segmentations of a scan, by the identifier of their series, read from Orthanc itself."""
        import pydicom

        found = {}
        for series in self.get("/series").json():
            if self.get(f"/series/{series}").json()["MainDicomTags"]["Modality"] == "SEG":
                (instance,) = self.get(f"/series/{series}").json()["Instances"]
                read = pydicom.dcmread(io.BytesIO(self.get(f"/instances/{instance}/file").content))
                if read.ReferencedSeriesSequence[0].SeriesInstanceUID == self.series[name]:
                    found[str(read.SeriesInstanceUID)] = read
        return found

    def label_map(self, name: str, segmentation: Any) -> np.ndarray:
        """Draw a segmentation into the scan that was stored, with the values of the labels' names.

        Slice by slice: each frame must lie in the plane of a slice, and its pixels be those of the slice.
        """
        scan = self.scans[name]
        label = np.zeros(scan.shape, np.uint8)
        names = {each.SegmentNumber: each.SegmentLabel for each in segmentation.SegmentSequence}
        shared = segmentation.SharedFunctionalGroupsSequence[0]
        frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
        for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
            first = np.array([*groups.PlanePositionSequence[0].ImagePositionPatient, 1], float)
            corner = np.linalg.solve(scan.affine, LPS_TO_RAS @ first)[:3]
            np.testing.assert_allclose(corner, [0, 0, round(corner[2])], atol=1e-3)
            orientation = (shared if "PlaneOrientationSequence" in shared else groups).PlaneOrientationSequence[0]
            axes = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3).T
            directions = (LPS_TO_RAS @ scan.affine)[:3, :2] / nib.affines.voxel_sizes(scan.affine)[:2]
            np.testing.assert_allclose(axes, directions, atol=1e-4)
            number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            label[:, :, round(corner[2])][frame.T > 0] = LABELS[name][names[number]]
        return label


def read_scans(shared: Path) -> dict[str, nib.Nifti1Image]:
    """A crop around a nodule, ending where it ends, as the enclosed weights want it; and a hippocampus."""
    nodule = nib.load(shared / "data" / "lidc" / "volume" / "lidc_idri_0314_image.nii.gz")
    hippocampus = nib.load(shared / "data" / "msd" / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")
    return {"ct": nodule.slicer[33:97, 33:97, 24:42], "mr": hippocampus}


@pytest.fixture(scope="module")
def archive(viewer, load_script, shared, tmp_path_factory) -> Iterator[Archive]:
    write_series = load_script(ROOT / "tools" / "write_dicom.py").write_series
    folder = tmp_path_factory.mktemp("archive")
    with viewer.run_orthanc(folder / "orthanc") as orthanc:
        found = Archive(orthanc.url, read_scans(shared))
        for name, scan in found.scans.items():
            given = np.asarray(scan.dataobj), scan.affine, name.upper(), f"PATIENT-{name}", f"Real {name.upper()}"
            found.series[name] = write_series(folder / "dicom" / name, *given)
        assert viewer.store_folder(orthanc.url, folder / "dicom") == sum(scan.shape[2] for scan in found.scans.values())
        yield found


@dataclass
class Study:
    """MONAI Label on the archive."""

    server: Any
    bundles: Path
    labels: dict[str, np.ndarray] = field(default_factory=dict)


@pytest.fixture(scope="module")
def study(viewer, archive, start_server, copy_app, load_script, tmp_path_factory) -> Iterator[Study]:
    """The bundles compute in float32, so that label maps can be compared voxel by voxel."""
    folder = tmp_path_factory.mktemp("study")
    copy_bundle = load_script(ROOT / "label" / "copy_bundle.py").copy_bundle
    for name in MODELS.values():
        copy_bundle(ROOT / "bundles" / name, folder / "bundles" / name, {"amp": False})
    app = copy_app(folder / "app")
    variables = viewer.dicomweb_environment(folder)
    with start_server(app, f"{archive.url}/dicom-web", variables=variables, bundles=str(folder / "bundles")) as server:
        yield Study(server, folder / "bundles")


def in_space_of(scan: nib.Nifti1Image, label: nib.Nifti1Image) -> np.ndarray:
    """Turn a label map to the axes of a scan, which must then have the same voxels in the same places."""
    change = nib.orientations.ornt_transform(*(nib.io_orientation(each.affine) for each in (label, scan)))
    turned = label.as_reoriented(change)
    assert turned.shape == scan.shape
    np.testing.assert_allclose(turned.affine, scan.affine, atol=1e-3)
    return np.asarray(turned.dataobj)


def test_series_are_listed(study, archive):
    assert study.server.get("/datastore/") == {"total": 2, "completed": 0, "label_tags": {}}
    assert study.server.post("/activelearning/first")["id"] in archive.series.values()
    info = study.server.get("/info/")
    assert {name: info["models"][MODELS[name]]["labels"] for name in MODELS} == LABELS


@pytest.mark.parametrize("name", MODELS)
def test_label_maps_are_those_of_the_bundle(name, study, archive, run_bundle, tmp_path):
    """From a series in the archive, against ``monai.bundle run`` on the scan that it was written from."""
    scan = archive.scans[name]
    nib.save(scan, tmp_path / "scan.nii.gz")
    (tmp_path / "datalist.json").write_text(json.dumps({"testing": [{"image": str(tmp_path / "scan.nii.gz")}]}))
    given = {"dataset_dir": tmp_path, "datalist": tmp_path / "datalist.json", "output_dir": tmp_path / "predicted"}
    run_bundle(study.bundles / MODELS[name], "inference", tmp_path, **given)
    expected = np.asarray(nib.load(tmp_path / "predicted" / "scan" / "scan_seg.nii.gz").dataobj)
    found = study.server.infer(MODELS[name], tmp_path / "found.nii.gz", image=archive.series[name])
    study.labels[name] = in_space_of(scan, found)
    np.testing.assert_array_equal(study.labels[name], expected)
    assert set(np.unique(expected)) == {0, *LABELS[name].values()}
    assert archive.series[name] in study.server.get("/datastore/", output="all")["objects"]


@pytest.mark.parametrize("name", MODELS)
def test_a_label_becomes_a_dicom_segmentation(name, study, archive, tmp_path):
    """Handed in as Slicer's module does, found in Orthanc, and each voxel where it was."""
    import requests

    target = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(study.labels[name], archive.scans[name].affine), target)
    params = {"label_info": [{"name": each, "model_name": MODELS[name]} for each in LABELS[name]]}
    answer = requests.put(
        f"{study.server.url}/datastore/label", params={"image": archive.series[name], "tag": "final"},
        data={"params": json.dumps(params)}, files={"label": (target.name, target.read_bytes())}, timeout=120,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text + study.server.tail()
    (segmentation,) = archive.segmentations(name).values()
    np.testing.assert_array_equal(archive.label_map(name, segmentation), study.labels[name])
    assert study.server.post("/activelearning/first").get("id") != archive.series[name]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    """Chromium of Debian without a screen, its WebGL drawn by the processor."""
    from selenium import webdriver

    programs = [Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")]
    if missing := [str(path) for path in programs if not path.is_file()]:
        pytest.skip(f"found no {' and no '.join(missing)}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "headless", "no-sandbox", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync",
        "disable-component-update", "disable-dev-shm-usage", "use-gl=angle", "use-angle=swiftshader",
        "enable-unsafe-swiftshader", "window-size=1400,900", f"user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(programs[1])))
    yield driver
    driver.quit()


class Ohif:
    """The page of a study in OHIF, in the mode of MONAI Label."""

    def __init__(self, browser: Any, server: str, study: str) -> None:
        self.browser = browser
        browser.get(f"{server}/info/")
        # where the panel keeps the address that is typed into it; it asks for port 8000 otherwise
        browser.add_cookie({"name": "MONAILABEL_SERVER_URL", "value": quote(f"{server}/"), "path": "/ohif"})
        browser.get(f"{server}/ohif/monai-label?StudyInstanceUIDs={study}")

    def wait(self, condition: str, *arguments: Any, timeout: float = 240) -> Any:
        """Wait until JavaScript gives something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        script = f"try {{ return {condition} }} catch {{ return null }}"
        return WebDriverWait(self.browser, timeout).until(lambda each: each.execute_script(script, *arguments))

    def click(self, path: str) -> None:
        """Click what an XPath finds first among what is shown; again where React has drawn it again meanwhile."""
        from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        def shown(driver: Any) -> bool:
            found = next((each for each in driver.find_elements("xpath", path) if each.is_displayed()), None)
            if found is not None:
                found.click()
            return found is not None

        redrawn = (ElementClickInterceptedException, StaleElementReferenceException)
        WebDriverWait(self.browser, 240, ignored_exceptions=redrawn).until(shown)

    def coloured(self) -> int:
        """Pixels of the first viewport's image that are not grey."""
        from PIL import Image

        canvas = next(each for each in self.browser.find_elements("tag name", "canvas") if each.size["width"] > 200)
        pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB")).astype(int)
        middle = pixels[pixels.shape[0] // 4 : -pixels.shape[0] // 4, 20:-20]
        return int(np.count_nonzero(np.ptp(middle, axis=-1) > 12))


@pytest.mark.parametrize("name", MODELS)
def test_ohif_segments_and_stores(name, study, archive, browser, tmp_path):
    """The mask of the panel's *Run* appears on the image, and what OHIF stores has its voxels, under its names."""
    before = archive.segmentations(name)
    ((instance, *_),) = (
        archive.get(f"/series/{series}").json()["Instances"]
        for series in archive.get("/series").json()
        if archive.get(f"/series/{series}").json()["MainDicomTags"]["SeriesInstanceUID"] == archive.series[name]
    )
    uid = archive.get(f"/instances/{instance}/tags?simplify").json()["StudyInstanceUID"]
    page = Ohif(browser, study.server.url, uid)
    page.wait("document.querySelectorAll('canvas').length >= 3 && document.body.innerText.includes('I:')")
    if browser.find_elements("xpath", "//*[text()='Confirm and Hide']"):
        page.click("//*[text()='Confirm and Hide']")
    assert browser.find_element("id", "monailabelServerURL").get_property("value") == f"{study.server.url}/"
    page.click("//table[@class='settingsTable']//button")
    page.click(f"//option[@value='{MODELS[name]}']")
    page.wait("window.services.segmentationService.getLabelmapVolume('1') !== undefined")
    clean = page.coloured()
    page.click("//button[@title='Run Segmentation']")
    drawn = "window.services.segmentationService.getLabelmapVolume('1').voxelManager.getCompleteScalarDataArray()"
    page.wait(f"{drawn}.some(each => each > 0)")
    page.wait("!document.body.innerText.includes('Running Segmentation - Successful')")
    assert page.coloured() > clean + 500
    browser.save_screenshot(str(tmp_path / f"{name}.png"))
    segments = browser.execute_script(
        "return Object.values(window.services.segmentationService.getSegmentation('1').segments)"
        ".map(each => [each.segmentIndex, each.label])"
    )
    counts = {
        label: browser.execute_script(f"return {drawn}.filter(e => e === {index}).length") for index, label in segments
    }
    expected = {label: int(np.count_nonzero(study.labels[name] == value)) for label, value in LABELS[name].items()}
    assert {label: count for label, count in counts.items() if count} == expected

    # the mode has no button for it
    browser.execute_script(
        "window.commandsManager.runCommand('storeSegmentation', {segmentationId: '1', dataSource: "
        "window.extensionManager.getActiveDataSource()[0]}).then(each => window.stored = each.SeriesInstanceUID)"
    )
    page.click("//input[@data-cy='input-undefined']")
    browser.switch_to.active_element.send_keys("by OHIF")
    page.click("//*[text()='Save']")
    stored = page.wait("window.stored")
    found = archive.segmentations(name)
    assert set(found) == {*before, stored}
    assert found[stored].SegmentationType == "BINARY"  # fine-tuning refuses others
    np.testing.assert_array_equal(archive.label_map(name, found[stored]), study.labels[name])


LITS, PRETRAINING = "genesis_lits_liver_ct_segmentation", "genesis_chest_ct_pretraining"


@dataclass
class Course:
    """The app on an archive of made-up abdomens, without weights at its start."""

    server: Any
    bundles: Path
    cache: Path
    scans: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Image, label and affine by series."""

    def hand_in(self, series: str, label: np.ndarray, names: list[str], target: Path) -> None:
        import requests

        nib.save(nib.Nifti1Image(label, self.scans[series][2]), target)
        answer = requests.put(
            f"{self.server.url}/datastore/label", params={"image": series, "tag": "final"},
            data={"params": json.dumps({"label_info": [{"name": name} for name in names]})},
            files={"label": (target.name, target.read_bytes())}, timeout=120,
        )  # fmt: skip
        assert answer.status_code == 200, answer.text + self.server.tail()


@pytest.fixture(scope="module")
def course(viewer, start_server, copy_bundle, copy_app, load_script, tmp_path_factory) -> Iterator[Course]:
    """Four abdomens, and an MR, which the filter keeps out."""
    from models_genesis.datasets import make_phantom

    write_series = load_script(ROOT / "tools" / "write_dicom.py").write_series
    folder = tmp_path_factory.mktemp("course")
    settings = {"amp": False, "learning_rate": 0.01}
    copy_bundle(LITS, folder / "bundles" / LITS, **settings, overlap=0.25, warmup_epochs=1)
    copy_bundle(PRETRAINING, folder / "bundles" / PRETRAINING, **settings)
    scans = {}
    for seed in range(4):
        made = make_phantom(seed, region="abdomen", shape=(72, 64, 48))
        given = (folder / f"dicom/{seed}", made.image, made.affine, "CT", f"P{seed}", f"abdomen {seed}")
        scans[write_series(*given)] = (made.image, made.label, made.affine)
    write_series(folder / "dicom/mr", made.image, made.affine, "MR", "P4", "no CT")
    with viewer.run_orthanc(folder / "orthanc") as orthanc:
        viewer.store_folder(orthanc.url, folder / "dicom")
        given = {"bundles": str(folder / "bundles"), "uncertainty": LITS}
        variables = viewer.dicomweb_environment(folder, ["CT"])
        with start_server(copy_app(folder / "app"), f"{orthanc.url}/dicom-web", variables=variables, **given) as server:
            yield Course(server, folder / "bundles", folder / "cache", scans)


def test_pretraining_learns_from_the_archive(course):
    course.server.post(f"/train/{PRETRAINING}", {"max_epochs": 1, "device": "cpu", "cubes_per_scan": 8})
    course.server.wait("train")
    assert (course.bundles / PRETRAINING / "models" / "model.pt").is_file()
    assert course.server.get("/datastore/")["total"] == 4
    kept = {path.name[: -len(".nii.gz")] for path in course.cache.glob("*/*.nii.gz")}
    assert kept == set(course.scans)


def test_fine_tuning_takes_labels_of_the_archive_by_name(course, tmp_path):
    """What is handed in has other values than the bundle's, and only the slices with a label are in the archive."""
    from models_genesis.datasets import Label

    labelled = list(course.scans)[:2]
    livers = {}
    for series in labelled:
        tissue = course.scans[series][1]
        livers[series] = np.isin(tissue, (Label.LIVER, Label.LESION)).astype(np.uint8)
        both = np.where(livers[series], 7, np.where(tissue == Label.SPLEEN, 3, 0)).astype(np.uint8)
        course.hand_in(series, both, ["spleen", "Liver"], tmp_path / "label.nii.gz")
    course.server.post(f"/train/{LITS}", {"max_epochs": 2, "val_split": 0.5, "device": "cpu"})
    course.server.wait("train")
    assert f"{PRETRAINING}/models/model.pt" in course.server.log.read_text(errors="replace")
    (folder,) = course.cache.glob(f"*/segmentations/{LITS}")
    assert {path.name for path in folder.iterdir()} == {f"{series}.nii.gz" for series in labelled}
    for series, liver in livers.items():
        assert livers[series].any(axis=(0, 1)).sum() < liver.shape[2]  # there are slices without
        scan = nib.Nifti1Image(liver, course.scans[series][2])
        np.testing.assert_array_equal(in_space_of(scan, nib.load(folder / f"{series}.nii.gz")), liver)
    assert course.server.get("/info/")["models"][LITS]["labels"] == {"liver": 1}


def test_the_next_scan_of_the_archive_is_the_least_certain(course, tmp_path):
    """A scan that has been labelled does not come again."""
    course.server.wait("scoring")
    answer = course.server.post("/scoring/uncertainty", {"device": "cpu"}, run_sync=True)
    waiting = set(list(course.scans)[2:])
    assert set(answer["scores"]) | set(answer["skipped"]) == waiting and not answer["failed"]
    chosen = course.server.post("/activelearning/uncertainty", {})
    infos = course.server.get("/datastore/", output="all")["objects"]
    scores = {series: infos[series]["image"]["info"]["uncertainty"]["score"] for series in waiting}
    assert chosen["id"] == max(waiting, key=lambda series: scores[series])
    everywhere = np.ones(course.scans[chosen["id"]][0].shape, np.uint8)
    course.hand_in(chosen["id"], everywhere, ["liver"], tmp_path / "label.nii.gz")
    assert {course.server.post("/activelearning/uncertainty", {})["id"]} == waiting - {chosen["id"]}


@pytest.fixture
def launched(viewer, tmp_path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command, and the port that it was told."""
    port = viewer.free_port()
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools" / "viewer.py", "--port", str(port), "--storage", tmp_path / "my storage"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    yield process, port
    if process.poll() is None:
        process.terminate()  # it ends its servers
        process.wait(180)


def hand_in_as_documented(url: str, folder: Path) -> None:
    """Run the block of the document that hands in a label, as it stands but for the port."""
    document = (ROOT / "docs" / "monai-label.md").read_text(encoding="utf-8")
    (block,) = (each for each in re.findall(r"```bash\n(.*?)```", document, re.DOTALL) if "SERIES=$(" in each)
    assert "http://127.0.0.1:8000" in block
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace("http://127.0.0.1:8000", url)],
        cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_command_starts_both_servers_and_ctrl_c_ends_them(launched, tmp_path):
    import requests

    process, port = launched
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            break
    assert any(f"http://127.0.0.1:{port}/ohif/" in line for line in lines), "".join(lines)
    url = f"http://127.0.0.1:{port}"
    assert "OHIF" in requests.get(f"{url}/ohif/", timeout=60).text
    assert requests.get(f"{url}/datastore/", timeout=60).json()["total"] == 2
    found = requests.get(f"{url}/proxy/dicom/qido/studies", timeout=60).json()
    assert {each["00100010"]["Value"][0]["Alphabetic"] for each in found} == {"PHANTOM-CT", "PHANTOM-MR"}
    names = {path.name for path in (tmp_path / "my storage" / "bundles").iterdir()}
    assert {LIDC, MSD} <= names
    page = {"Origin": "http://foreign.example"}
    foreign = requests.get(f"{url}/proxy/dicom/qido/studies", headers=page, timeout=60)
    assert foreign.ok and "access-control-allow-origin" not in foreign.headers
    answers = [requests.post(f"{url}/activelearning/first", headers=each, timeout=60) for each in ({}, page)]
    assert [answer.status_code for answer in answers] == [200, 403]
    rebound = requests.get(f"{url}/info/", headers={"Host": "foreign.example"}, timeout=60)
    assert rebound.status_code == 403
    hand_in_as_documented(url, tmp_path)
    series = requests.get(f"{url}/proxy/dicom/qido/series", timeout=60).json()
    assert sorted((each["00080060"]["Value"][0], each["00100020"]["Value"][0]) for each in series) == [
        ("CT", "PHANTOM-CT"), ("MR", "PHANTOM-MR"), ("SEG", "PHANTOM-CT"),
    ]  # fmt: skip
    servers = psutil.Process(process.pid).children(recursive=True)
    assert {"Orthanc", "monailabel.main"} <= {Path(part).name for each in servers for part in each.cmdline()}
    process.send_signal(signal.SIGINT)
    assert process.wait(180) == 0
    assert not [each for each in servers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
