# SPDX-License-Identifier: Apache-2.0
"""The viewer's command without MONAI Label, for which a small server stands; Orthanc is the real one, where it is."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pydicom
import pytest
from pydicom.fileset import FileSet

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "viewer.py"

STAND_IN = """
import http.server, os, signal, subprocess, sys, time
from pathlib import Path

line = sys.argv[1:]
Path("arguments.txt").write_text("\\n".join(line))
if "stubborn" in line:  # it hears that it should end, and goes on; so does its child
    signal.signal(signal.SIGTERM, lambda number, frame: Path("asked").touch())
    subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(line[line.index("--port") + 1])), Answer).serve_forever()
"""
"""Answers all requests with 200; it takes the arguments that MONAI Label's server takes."""


@pytest.fixture(scope="module")
def viewer(load_script) -> ModuleType:
    return load_script(TOOL)


@pytest.fixture(scope="module")
def series(load_script, tmp_path_factory) -> Path:
    """A scan of three slices, in DICOM files."""
    folder = tmp_path_factory.mktemp("series")
    write_series = load_script(TOOL.with_name("write_dicom.py")).write_series
    write_series(folder / "ct", np.zeros((4, 4, 3), np.int16), np.eye(4), "CT", "P", "test")
    return folder / "ct"


@pytest.fixture(scope="module")
def orthanc(viewer) -> None:
    """Skip where Orthanc is not installed."""
    try:
        viewer.find_orthanc()
    except viewer.NotInstalledError as error:
        pytest.skip(str(error))


def heed_signals() -> None:
    """Undo what nohup and a shell's background jobs hand down: signals that are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def start(tmp_path, viewer) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in a process of its own, with the stand-in; gives the process when both servers run."""
    package = tmp_path / "packages" / "monailabel"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(STAND_IN)
    code = f"""
import sys
sys.path[:0] = [{str(ROOT / "tools")!r}]
import viewer
viewer.GRACE = 3
viewer.copy_bundles = lambda folder: None
sys.exit(viewer.main())
"""
    started = []

    def begin(*arguments: object, **variables: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", code, "--port", str(viewer.free_port()), *map(str, arguments)]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=heed_signals,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{package.parent}", "OMP_NUM_THREADS": "1", **variables},
        )  # fmt: skip
        started.append(process)
        process.said = ""
        for text in process.stdout:
            process.said += text
            if text.startswith("Ctrl-C"):
                break
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        process.stdout.close()


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended; what was killed may take a moment."""
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_second_signal_does_not_leave_a_server_behind(number, orthanc, series, start, tmp_path):
    """While the first server that is ended still has time to do so; it does not, and it has a child."""
    process = start("--dicom", series, "--storage", tmp_path / "kept", "--conf", "stubborn", "yes")
    servers = psutil.Process(process.pid).children(recursive=True)
    names = [each.name() for each in servers]
    assert len(servers) == 3 and "Orthanc" in names, (names, process.said)
    process.send_signal(getattr(signal, number))
    wait_for((tmp_path / "kept" / "asked").exists)
    for each in ("SIGINT", "SIGTERM", "SIGHUP"):
        process.send_signal(getattr(signal, each))
    assert process.wait(60) == 0
    assert process.stdout.read() == "ended\n"
    wait_for(lambda: not running(servers))


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises in this process, which a shell may have started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_a_signal_during_the_end_is_heard_after_it(viewer, tmp_path, monkeypatch):
    """As when a server that does not start is ended, and then Ctrl-C comes."""
    monkeypatch.setattr(viewer, "GRACE", 2)
    (tmp_path / "main.py").write_text(STAND_IN)
    port = viewer.free_port()
    line = [sys.executable, tmp_path / "main.py", "--port", str(port), "stubborn"]
    others = {each.pid for each in psutil.Process().children(recursive=True)}  # of tests before this one
    servers = []
    with pytest.raises(KeyboardInterrupt):
        with viewer.run_server(line, f"http://127.0.0.1:{port}/", tmp_path / "log", {}):
            servers = [each for each in psutil.Process().children(recursive=True) if each.pid not in others]
            code = f"""
import os, signal, time
while not os.path.exists({str(tmp_path / "asked")!r}):
    time.sleep(0.05)
os.kill({psutil.Process().pid}, signal.SIGINT)
"""
            sender = subprocess.Popen([sys.executable, "-c", code])
    assert sender.wait(20) == 0
    servers = [each for each in servers if each.pid != sender.pid]
    assert len(servers) == 2
    wait_for(lambda: not running(servers))


def test_paths_with_spaces_and_empty_settings_reach_the_server(orthanc, series, start, tmp_path):
    start("--dicom", series, "--storage", tmp_path / "my scans", "--conf", "models", "")
    line = (tmp_path / "my scans" / "arguments.txt").read_text().split("\n")
    assert line[line.index("--app") + 1] == str(tmp_path / "my scans" / "app")
    assert line[line.index("models") - 1 : line.index("models") + 2] == ["--conf", "models", ""]


def test_phantoms_are_stored_in_an_empty_archive_alone(viewer, orthanc, series, start, tmp_path):
    """Real scans that were kept stay by themselves at the next start, which needs no --dicom."""
    first = start("--dicom", series, "--storage", tmp_path / "kept")
    assert f"{series}: 3 files stored" in first.said
    first.terminate()
    assert first.wait(60) == 0
    second = start("--storage", tmp_path / "kept")
    assert "has 3 files already" in second.said
    (address,) = re.findall(r"archive +(http://[0-9.:]+)/", second.said)
    assert viewer.count_instances(address) == 3
    assert address in first.said  # by which MONAI Label keeps scans and scores


def test_a_second_viewer_of_a_storage_is_refused_and_changes_nothing(viewer, orthanc, series, start, tmp_path):
    """Neither while the first one runs, nor while the Orthanc that it left does when it was killed."""
    kept = tmp_path / "kept"
    first = start("--dicom", series, "--storage", kept)
    watched = [kept / "orthanc" / name for name in ("orthanc.json", "orthanc.log")]
    before = [path.read_bytes() for path in watched]
    servers = psutil.Process(first.pid).children(recursive=True)
    refusal = f"{kept / 'orthanc'}: expected a storage that no viewer runs on, found one"
    assert refusal in start("--storage", kept).said
    assert [path.read_bytes()[: len(content)] for path, content in zip(watched, before, strict=True)] == before
    first.kill()
    first.wait(60)
    try:
        assert refusal in start("--storage", kept).said
    finally:
        for each in servers:
            each.kill()
    wait_for(lambda: not running(servers))
    assert "has 3 files already" in start("--storage", kept).said


def test_an_archive_that_does_not_start_keeps_its_settings(viewer, orthanc, tmp_path, monkeypatch):
    """By which the next start finds its port."""
    with viewer.run_orthanc(tmp_path / "orthanc"):
        pass
    before = (tmp_path / "orthanc" / "orthanc.json").read_bytes()
    monkeypatch.setattr(viewer, "archive_port", lambda settings: viewer.free_port())
    monkeypatch.setattr(viewer, "find_orthanc", lambda: Path("/bin/false"))
    with pytest.raises(RuntimeError, match="expected an answer from"):
        with viewer.run_orthanc(tmp_path / "orthanc"):
            pass
    assert (tmp_path / "orthanc" / "orthanc.json").read_bytes() == before


def test_a_proxy_of_the_environment_is_passed_by(viewer, orthanc, series, start, tmp_path, monkeypatch):
    """It would not find this machine's servers; what else the environment wants without it is kept."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "hospital.example"}
    process = start("--dicom", series, "--storage", tmp_path / "kept", **proxies)
    assert "3 files stored" in process.said and "MONAI Label  http" in process.said
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    environment = viewer.dicomweb_environment(tmp_path)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "127.0.0.1,localhost,hospital.example"


def test_another_program_on_the_port_of_the_archive_is_named(viewer, orthanc, tmp_path, capsys):
    with viewer.run_orthanc(tmp_path / "orthanc") as first:
        port = int(first.url.rsplit(":", 1)[1])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with viewer.run_orthanc(tmp_path / "orthanc") as second:
            assert viewer.count_instances(second.url) == 0
            assert second.url != first.url
    assert f"expected its port {port} to be free" in capsys.readouterr().out
    (tmp_path / "orthanc" / "orthanc.json").write_text("{}")
    with pytest.raises(ValueError, match=r"orthanc.json: expected the archive's settings with an HttpPort, found Key"):
        viewer.archive_port(tmp_path / "orthanc" / "orthanc.json")


@pytest.mark.parametrize("which", ["Orthanc", "monailabel.main"])
def test_a_server_that_ends_by_itself_is_noticed(which, orthanc, series, start):
    """The other one is ended; and without --storage it is said what is lost."""
    process = start("--dicom", series)
    assert "labels and trained weights are deleted when it ends" in process.said
    servers = psutil.Process(process.pid).children(recursive=True)
    (victim,) = (each for each in servers if which in {Path(part).name for part in each.cmdline()})
    victim.kill()
    assert process.wait(60) == 1
    assert "expected a running server, found that it has ended with status -9" in process.stdout.read()
    wait_for(lambda: not running(servers))


def test_what_is_lost_at_the_end_is_said(orthanc, series, start):
    process = start("--dicom", series)
    process.terminate()
    assert process.wait(60) == 0
    assert process.stdout.read() == "ended. Without --storage FOLDER, archive, labels and trained weights are deleted\n"


def test_files_that_are_not_dicom_are_left_out_and_named(viewer, orthanc, series, tmp_path, capsys):
    """Where DICOM files come after them, and where there are none."""
    shutil.copytree(series, tmp_path / "study" / "series")
    for name in ("README.txt", "empty", "series/0000.txt"):
        (tmp_path / "study" / name).write_text("" if name == "empty" else "no DICOM")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no DICOM")
    with viewer.run_orthanc(tmp_path / "orthanc") as server:
        assert viewer.store_folder(server.url, tmp_path / "study") == viewer.count_instances(server.url) == 3
        said = capsys.readouterr().out
        for name in ("README.txt", "empty", "series/0000.txt"):
            assert f"{tmp_path / 'study' / name}: left out" in said
        with pytest.raises(ValueError, match=r"notes: expected DICOM files, found none"):
            viewer.store_folder(server.url, tmp_path / "notes")


def test_linked_folders_are_stored(viewer, orthanc, series, tmp_path):
    """A part of a series that is passed over would leave a gap."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "series").symlink_to(series)
    with viewer.run_orthanc(tmp_path / "orthanc") as server:
        assert viewer.store_folder(server.url, tmp_path / "study") == 3


def test_a_slice_that_is_cut_off_is_refused(viewer, orthanc, series, tmp_path):
    """Without it the scan would have a gap."""
    shutil.copytree(series, tmp_path / "series")
    cut = sorted((tmp_path / "series").iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:300])
    with viewer.run_orthanc(tmp_path / "orthanc") as server:
        with pytest.raises(RuntimeError, match=rf"{cut}: expected that {server.url}/instances stores it, found HTTP"):
            viewer.store_folder(server.url, tmp_path / "series")


def test_the_list_of_a_disc_is_left_out(viewer, orthanc, series, tmp_path, capsys):
    discs = FileSet()
    for path in series.iterdir():
        discs.add(pydicom.dcmread(path))
    discs.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").read_bytes()[128:132] == b"DICM"
    with viewer.run_orthanc(tmp_path / "orthanc") as server:
        assert viewer.store_folder(server.url, tmp_path / "disc") == 3
    assert f"{tmp_path / 'disc' / 'DICOMDIR'}: left out" in capsys.readouterr().out


def test_an_archive_that_does_not_answer_is_named_with_the_file(viewer, series):
    url = f"http://127.0.0.1:{viewer.free_port()}"
    first = sorted(series.iterdir())[0]
    with pytest.raises(RuntimeError, match=rf"{first}: expected that {url}/instances stores it, found .*refused"):
        viewer.store_folder(url, series)


def test_missing_packages_are_named(viewer, monkeypatch, capsys):
    monkeypatch.setattr(viewer, "PLUGIN", Path("/no/such/plugin.so"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert viewer.main([]) == 1
    said = capsys.readouterr().err
    assert "/no/such/plugin.so" in said and "apt-get install orthanc orthanc-dicomweb" in said


def test_a_missing_monai_label_is_named(viewer, orthanc, series, monkeypatch, capsys):
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    assert viewer.main(["--dicom", str(series)]) == 1
    assert "found no such package: run `make viewer`" in capsys.readouterr().err


def test_a_storage_that_cannot_be_written_is_named(viewer, tmp_path, orthanc, capsys):
    (tmp_path / "file").touch()
    assert viewer.main(["--storage", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
