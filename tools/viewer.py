# SPDX-License-Identifier: Apache-2.0
"""Look at scans in a real viewer: an Orthanc archive, MONAI Label with the app in ``label/``, and its OHIF.

``make viewer``, or in MONAI Label's environment ``python tools/viewer.py``, stores a phantom CT and a phantom MR in a
fresh archive; ``--dicom FOLDER`` stores the DICOM files below a folder instead. Ctrl-C, ``kill`` or closing the
terminal ends both servers. The bundles are copies, so what is trained in the viewer does not change those of this
repository. ``docs/monai-label.md`` shows what to click.

MONAI Label listens on 127.0.0.1 alone. Debian's Orthanc cannot be told an address: it listens on all of them, and
refuses whatever does not come from this machine. Neither has a password.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import numpy as np

from models_genesis.datasets.io.file_walk import find_files

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MODALITIES = ("CT", "MR")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends this program: Ctrl-C, ``kill``, and the closed terminal, which the servers would not hear of."""

GRACE = 20.0
"""Seconds that a server has to end by itself."""

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine, whatever proxy the environment names."""

WITHOUT_STORAGE = "Without --storage FOLDER, archive, labels and trained weights are deleted"


class NotInstalledError(RuntimeError):
    """A program that the viewer needs is missing."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        url: its address.
        process: its first process.
        log: file of what it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Refuse a server that has ended.

        Raises:
            RuntimeError: with its status and the end of its log.
        """
        if self.process.poll() is not None:
            found = f"found that it has ended with status {self.process.returncode}"
            raise RuntimeError(f"{self.url}: expected a running server, {found}. The end of {_tail(self.log)}")


def find_orthanc() -> Path:
    """Find Orthanc and its DICOMweb plugin where Debian's packages put them.

    Returns:
        The program.

    Raises:
        NotInstalledError: when one is missing.
    """
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    missing = ([] if program else ["Orthanc on the PATH or in /usr/sbin"]) + ([] if PLUGIN.is_file() else [str(PLUGIN)])
    if program is None or missing:
        wanted = "apt-get install orthanc orthanc-dicomweb"
        raise NotInstalledError(f"expected {' and '.join(missing)}, found no such file: {wanted}")
    return Path(program)


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def archive_port(settings: Path) -> int:
    """Give the port that an archive had at its last start, for MONAI Label keeps scans and scores by its address.

    Args:
        settings: of its last start, a file that need not exist.

    Returns:
        That port, or a free one where there was no start, or, which is printed, another program has the port.

    Raises:
        ValueError: when the file has no port.
    """
    if not settings.is_file():
        return free_port()
    try:
        port = int(json.loads(settings.read_text(encoding="utf-8"))["HttpPort"])
    except (ValueError, KeyError, TypeError) as error:
        found = f"found {type(error).__name__}: {error}"
        raise ValueError(f"{settings}: expected the archive's settings with an HttpPort, {found}") from error
    with socket.socket() as wanted:
        # as Orthanc does, which ignores connections left from its last run
        wanted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            wanted.bind(("", port))
        except OSError:
            print(f"{settings}: expected its port {port} to be free, found that another program has it. With another")
            print("port MONAI Label downloads all scans again, and scores them again", flush=True)
            return free_port()
    return port


@contextmanager
def storage_lock(folder: Path) -> Iterator[int]:
    """Keep other viewers away from an archive until the block has ended, and whoever inherits the lock, too.

    Args:
        folder: of the archive, which is made if it does not exist.

    Yields:
        The lock, an open file.

    Raises:
        RuntimeError: when a viewer, or the Orthanc that a killed one left, has the archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "viewer.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = "found one, or the Orthanc that a killed one left"
            raise RuntimeError(f"{folder}: expected a storage that no viewer runs on, {found}") from error
        yield stream.fileno()


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` at the first of the signals that end this program, and ignore all after it.

    A second one would otherwise interrupt the end of the servers that the first has begun. Ctrl-C works in a shell's
    background job, too, which ignores it by itself; under ``nohup`` the closed terminal stays ignored.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    heard = [each for each in SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
    former = {each: signal.signal(each, interrupt) for each in heard}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """Keep back the signals that end this program until the block has ended."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    came: list[int] = []
    former = {each: signal.signal(each, lambda number, frame: came.append(number)) for each in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def end_server(process: subprocess.Popen[bytes]) -> None:
    """Ask a server to end, then end what is left of its process group, whatever signals come meanwhile.

    Args:
        process: the server, the first of a session of its own.
    """
    with signals_held():
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(GRACE)


@contextmanager
def run_server(
    line: Sequence[str | Path], url: str, log: Path, environment: Mapping[str, str], inherited: Sequence[int] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends, and then its children, too.

    Args:
        line: the command line.
        url: what is answered with 200 as soon as it is ready.
        log: file of what it prints.
        environment: variables besides those of this process.
        inherited: open files that it gets.

    Yields:
        Its first process.

    Raises:
        RuntimeError: when it ends before it is ready, or is not ready after five minutes.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(log.open("wb"))
        with signals_held():  # no server is started that would not be ended
            process = subprocess.Popen(
                [str(part) for part in line],
                cwd=log.parent, stdout=stream, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True, pass_fds=inherited,
            )  # fmt: skip
            stack.callback(end_server, process)
        deadline = time.monotonic() + 300
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{line[0]}: expected an answer from {url}, found none. The end of {_tail(log)}")
            time.sleep(0.5)
        yield process


def _tail(log: Path) -> str:
    """Name a log, and give its end."""
    return f"{log}:\n{log.read_text(errors='replace')[-3000:]}"


def _answers(url: str) -> bool:
    try:
        with DIRECT.open(url, timeout=60) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def run_orthanc(folder: Path) -> Iterator[Server]:
    """Run an archive until the block ends.

    Args:
        folder: of its database, which is made if it does not exist.

    Yields:
        The server; DICOMweb is below ``/dicom-web`` of its address.

    Raises:
        NotInstalledError: see :func:`find_orthanc`.
        RuntimeError: see :func:`storage_lock`, or when it does not start; the settings of its last start stay then.
    """
    program = find_orthanc()
    with storage_lock(folder) as lock:
        port = archive_port(folder / "orthanc.json")
        starting = folder / "orthanc.starting.json"
        starting.write_text(json.dumps(orthanc_settings(folder, port), indent=4) + "\n", encoding="utf-8")
        url, log = f"http://127.0.0.1:{port}", folder / "orthanc.log"
        # Orthanc has the lock, too, so that none is started next to one that a killed viewer left
        with run_server([program, starting], f"{url}/system", log, {}, [lock]) as process:
            starting.replace(folder / "orthanc.json")
            yield Server(url, process, log)


def orthanc_settings(folder: Path, port: int) -> dict[str, object]:
    """Give Orthanc's settings.

    Args:
        folder: of the archive.
        port: where it listens.
    """
    return {
        "Name": "Models Genesis",
        "StorageDirectory": str(folder / "database"),
        "IndexDirectory": str(folder / "database"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def count_instances(orthanc: str) -> int:
    """Count the files in an archive, given its address."""
    with DIRECT.open(f"{orthanc}/statistics", timeout=60) as answer:
        return int(json.load(answer)["CountInstances"])


def store_folder(orthanc: str, folder: Path) -> int:
    """Store all DICOM files below a folder; others, and the ``DICOMDIR`` of a disc, are left out and printed.

    Args:
        orthanc: address of the archive.
        folder: the folder.

    Returns:
        Their number.

    Raises:
        RuntimeError: when the archive cannot store a DICOM file, such as one that is cut off.
        ValueError: when there is none.
    """
    stored, url = 0, f"{orthanc}/instances"
    for file in find_files(folder):
        if file.name == "DICOMDIR":  # the standard's name; it lists files, which an archive has no use for
            print(f"{file}: left out, for it is the list of a disc", flush=True)
            continue
        content = file.read_bytes()
        expected = f"{file}: expected that {url} stores it"
        try:
            DIRECT.open(urllib.request.Request(url, content, method="POST"), timeout=60).close()
            stored += 1
        except urllib.error.HTTPError as error:
            found = error.read().decode(errors="replace")
            # without a slice that is damaged the scan would have a gap
            if error.code != 400 or content[128:132] == b"DICM":
                raise RuntimeError(f"{expected}, found {error}: {found}") from error
            print(f"{file}: left out, for it is not a DICOM file", flush=True)
        except OSError as error:
            raise RuntimeError(f"{expected}, found {error}") from error
    if not stored:
        raise ValueError(f"{folder}: expected DICOM files, found none")
    return stored


def write_phantoms(folder: Path) -> None:
    """Write, as DICOM, a CT around a nodule and a FLAIR image of a brain with a tumour, both made up.

    The CT ends where the nodule ends, as the enclosed weights for nodules want it.
    """
    from models_genesis.datasets import make_brain_phantom, make_phantom  # slow, and scans of one's own need neither

    write_series = runpy.run_path(str(ROOT / "tools" / "write_dicom.py"))["write_series"]
    chest, brain = make_phantom(0, "chest"), make_brain_phantom(0)
    nodule = chest.nodules[0]
    middle = np.linalg.solve(chest.affine, [*nodule.center_mm, 1])[:3]
    reach = np.array([25.0, 25.0, nodule.diameter_mm / 2 + 1]) / chest.spacing
    first, last = (np.rint(middle + sign * reach).astype(int) for sign in (-1, 1))
    affine = chest.affine @ [[1, 0, 0, first[0]], [0, 1, 0, first[1]], [0, 0, 1, first[2]], [0, 0, 0, 1]]
    crop = chest.image[tuple(slice(*ends) for ends in zip(first, last + 1, strict=True))]
    write_series(folder / "ct", crop, affine, "CT", "PHANTOM-CT", "Phantom CT, nodule")
    write_series(folder / "mr", brain.images["flair"], brain.affine, "MR", "PHANTOM-MR", "Phantom brain FLAIR")


def copy_bundles(folder: Path) -> None:
    """Copy this repository's bundles, with their weights and the labels of these, unless there are copies already."""
    copy_bundle = runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"]
    for metadata in sorted((ROOT / "bundles").glob("*/configs/metadata.json")):
        bundle = metadata.parents[1]
        if not (folder / bundle.name).exists():
            copy_bundle(bundle, folder / bundle.name, {})


def copy_app(folder: Path) -> None:
    """Copy the app, or what has changed of it, so that the server can write next to it wherever it is installed."""
    make_writable = runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["make_writable"]
    if folder.exists():
        make_writable(folder)  # of a copy that was interrupted
    left_out = shutil.ignore_patterns("bin", "logs", "model", "__pycache__")
    shutil.copytree(ROOT / "label", folder, ignore=left_out, dirs_exist_ok=True)
    make_writable(folder)


def dicomweb_environment(folder: Path, modalities: Sequence[str] = MODALITIES) -> dict[str, str]:
    """Give what MONAI Label must be told to work on an archive.

    Args:
        folder: of what it downloads.
        modalities: of the series that count as scans.

    Returns:
        Variables of the environment.
    """
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    no_proxy = "*" if others == "*" else f"127.0.0.1,localhost,{others}".rstrip(",")
    return {
        # the archive is on this machine
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
        # of `itkimage2segimage`, which the server downloads if it finds none
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        # CT alone by default; without any filter segmentations would count as scans. A comma is what Orthanc's
        # DICOMweb takes for an alternative; other archives may want a backslash
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": ",".join(modalities)}),
        # by default it asks the archive every two hours, and offers a scan again that has been labelled
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",
        # `itkimage2segimage` writes the local time, and OHIF UTC; the newest segmentation is learned from
        "TZ": "UTC",
    }


@contextmanager
def run_monailabel(
    folder: Path, orthanc: str, port: int, conf: Mapping[str, str], modalities: Sequence[str] = MODALITIES
) -> Iterator[Server]:
    """Run MONAI Label with the app in ``label/`` on an archive until the block ends.

    Args:
        folder: of the copies of app and bundles, of what is downloaded, and of the log.
        orthanc: address of the archive.
        port: of 127.0.0.1.
        conf: settings of the app.
        modalities: of the series that count as scans.

    Yields:
        The server.

    Raises:
        NotInstalledError: when MONAI Label is not in this environment.
        RuntimeError: when somebody listens on the port already, or the server does not start.
    """
    if find_spec("monailabel") is None:
        found = f"expected MONAI Label in the environment of {sys.executable}, found no such package"
        raise NotInstalledError(f"{found}: run `make viewer`, or see docs/monai-label.md")
    with socket.socket() as taken:
        if taken.connect_ex(("127.0.0.1", port)) == 0:
            raise RuntimeError(f"--port {port}: expected a free port, found that another program listens on it")
    copy_bundles(folder / "bundles")
    copy_app(folder / "app")
    settings = {"bundles": str(folder / "bundles"), **conf}
    options = [part for key, value in settings.items() for part in ("--conf", key, value)]
    # not by the launcher `monailabel`, which takes a path with a space for two arguments and drops an empty one
    program = [sys.executable, "-m", "monailabel.main"]
    line = [*program, "start_server", "--app", folder / "app", "--studies", f"{orthanc}/dicom-web", *options]
    url, log = f"http://127.0.0.1:{port}", folder / "monailabel.log"
    environment = dicomweb_environment(folder, modalities)
    at = ["--host", "127.0.0.1", "--port", str(port)]
    with run_server([*line, *at], f"{url}/info/", log, environment) as process:
        yield Server(url, process, log)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command line; None takes that of this process.

    Returns:
        0 when it was ended by a signal, 1 when a server does not start or ends by itself, or a file cannot be stored.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dicom", type=Path, action="append", default=[], metavar="FOLDER", help="what is stored")
    parser.add_argument("--storage", type=Path, metavar="FOLDER", help="keep archive and trained bundles here")
    parser.add_argument("--modality", choices=MODALITIES, help="what is offered as a scan; both by default")
    parser.add_argument("--port", type=int, default=8000, help="of MONAI Label; OHIF's panel asks for 8000 by default")
    parser.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="a setting of the app"
    )
    given = parser.parse_args(arguments)
    try:
        with interrupted_once(), ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="viewer-")))
            folder = (given.storage or scratch / "storage").resolve()
            orthanc = stack.enter_context(run_orthanc(folder / "orthanc"))
            sources = list(given.dicom)
            if count := count_instances(orthanc.url):
                print(f"{folder}: has {count} files already", flush=True)
            elif not sources:  # no phantoms among somebody's scans
                write_phantoms(scratch / "phantoms")
                sources = [scratch / "phantoms"]
            for source in sources:
                print(f"{source}: {store_folder(orthanc.url, source)} files stored", flush=True)
            modalities = [given.modality] if given.modality else MODALITIES
            server = stack.enter_context(run_monailabel(folder, orthanc.url, given.port, dict(given.conf), modalities))
            print(f"archive      {orthanc.url}/app/explorer.html\nMONAI Label  {server.url}", flush=True)
            print(f"OHIF         {server.url}/ohif/\nLogs and data: {folder}")
            print("" if given.storage else f"{WITHOUT_STORAGE} when it ends\n", end="")
            print("Ctrl-C ends all of it", flush=True)
            while True:
                orthanc.check()
                server.check()
                time.sleep(1)
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be closed
            print("ended" if given.storage else f"ended. {WITHOUT_STORAGE}", flush=True)
        return 0
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
