# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of this machine prepares the same store as processes do, and its failures are named."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from models_genesis.datasets.__main__ import main
from models_genesis.datasets.prepare import Preparation, prepare_store
from models_genesis.datasets.store.ray_cluster import map_on_ray

SMALL = Preparation(cube_size=(8, 8, 4), border=None)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for_cluster(address: str, starting: subprocess.Popen, seconds: int = 60) -> None:
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    end = time.monotonic() + seconds
    while subprocess.run(ask, capture_output=True).returncode != 0:
        assert starting.poll() is None, "ray start ended"
        assert time.monotonic() < end, f"no Ray cluster after {seconds} s"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of two cores that only this machine reaches."""
    address = f"127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("RAY_TASK_MAX_RETRIES", "1")  # each start of a process takes seconds
        command = ["start", "--head", "--block", "--num-cpus", "2", "--include-dashboard", "false"]
        command += ["--node-ip-address", "127.0.0.1", "--port", address.rpartition(":")[2]]
        command += ["--object-store-memory", str(100 * 2**20), "--disable-usage-stats"]
        log = (tmp_path_factory.mktemp("ray") / "log").open("w")
        starting = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command], stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for_cluster(address, starting)
            yield address
        finally:
            starting.terminate()  # ends what it started, and what it leaves is killed
            try:
                starting.wait(30)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(starting.pid, signal.SIGKILL)
                log.close()


@pytest.fixture
def datalist(scan_folder: Path) -> Path:
    """Five scans, and one file that is no scan."""
    (scan_folder / "a" / "broken.nii.gz").write_bytes(b"no scan")
    names = sorted(str(path.relative_to(scan_folder)) for path in scan_folder.rglob("*.nii*"))
    path = scan_folder / "datalist.json"
    path.write_text(json.dumps({"training": [{"image": name} for name in names]}))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_gives_the_same_store_as_processes_do(cluster, datalist, tmp_path, capsys):
    by_processes = prepare_store(datalist, str(tmp_path / "a"), preparation=SMALL, progress=False)
    command = ["prepare", "--datalist", str(datalist), "--store", str(tmp_path / "b"), "--ray", cluster]
    assert main([*command, "--border", "none", "--cube_size", "8", "8", "4"]) == 1  # a file that is no scan, by name
    assert "broken.nii.gz" in capsys.readouterr().out
    assert [Path(row.source).name for row in by_processes if row.skipped] == ["broken.nii.gz"]
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second and len(first) > 20
    assert not ray.is_initialized()  # what the command began is ended by it


def test_failures_of_tasks(cluster, tmp_path):
    """In one connection, for each starts processes: one killed is replaced, an error keeps its type, a limit holds."""
    folder = str(tmp_path)

    def square_at_second_try(number: int) -> int:
        tried = Path(folder, str(number))
        if number == 1 and not tried.exists():
            tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    def refuse(number: int) -> None:
        raise PermissionError(f"cannot write scan {number}")

    def end(number: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def running_with_me(number: int) -> int:
        mine = Path(folder, f"running_{number}")
        mine.touch()
        time.sleep(0.1)
        running = len(list(Path(folder).glob("running_*")))
        mine.unlink()
        return running

    ray.init(address=cluster, log_to_driver=False)
    try:
        assert map_on_ray(square_at_second_try, range(6), progress=False) == [0, 1, 4, 9, 16, 25]
        assert (tmp_path / "1").exists()
        assert set(map_on_ray(running_with_me, range(4), tasks=1, progress=False)) == {1}
        with pytest.raises(PermissionError, match="cannot write scan 0"):
            map_on_ray(refuse, [0], progress=False)
        with pytest.raises(OSError, match="was killed again and again"):
            map_on_ray(end, [0], progress=False)
        assert ray.is_initialized()  # the caller's own connection stays
    finally:
        ray.shutdown()


def test_no_cluster_is_named(datalist, tmp_path, capsys, monkeypatch):
    command = ["prepare", "--datalist", str(datalist), "--store", str(tmp_path / "store"), "--ray"]
    address = f"127.0.0.1:{free_port()}"
    assert main([*command, address]) == 2
    assert f"expected a Ray cluster at '{address}', found none" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(command) == 2
    assert f"expected a Ray cluster at '{address}', found none" in capsys.readouterr().err
