# SPDX-License-Identifier: Apache-2.0
"""The viewer's command without MONAI Label, for which a small server stands; Orthanc is the real one, where it is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest

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

    def begin(*arguments: object) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", code, "--port", str(viewer.free_port()), *map(str, arguments)]
        process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{package.parent}", "OMP_NUM_THREADS": "1"},
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
    assert running(servers) == []


def test_a_signal_during_the_end_is_heard_after_it(viewer, tmp_path, monkeypatch):
    """As when a server that does not start is ended, and then Ctrl-C comes."""
    monkeypatch.setattr(viewer, "GRACE", 2)
    (tmp_path / "main.py").write_text(STAND_IN)
    port = viewer.free_port()
    line = [sys.executable, tmp_path / "main.py", "--port", str(port), "stubborn"]
    servers = []
    with pytest.raises(KeyboardInterrupt):
        with viewer.run_server(line, f"http://127.0.0.1:{port}/", tmp_path / "log", {}):
            servers = psutil.Process().children(recursive=True)
            code = f"""
import os, signal, time
while not os.path.exists({str(tmp_path / "asked")!r}):
    time.sleep(0.05)
os.kill({psutil.Process().pid}, signal.SIGINT)
"""
            sender = subprocess.Popen([sys.executable, "-c", code])
    assert sender.wait(20) == 0
    servers = [each for each in servers if each.pid != sender.pid]
    assert len(servers) == 2 and running(servers) == []


def test_paths_with_spaces_and_empty_settings_reach_the_server(orthanc, series, start, tmp_path):
    start("--dicom", series, "--storage", tmp_path / "my scans", "--conf", "models", "")
    line = (tmp_path / "my scans" / "arguments.txt").read_text().split("\n")
    assert line[line.index("--app") + 1] == str(tmp_path / "my scans" / "app")
    assert line[line.index("models") - 1 : line.index("models") + 2] == ["--conf", "models", ""]
