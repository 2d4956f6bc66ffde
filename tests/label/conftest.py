# SPDX-License-Identifier: Apache-2.0
"""Starts real MONAI Label servers on the loopback address, with small bundles and real scans.

These tests need MONAI Label's environment, which is not the project's own: ``make test-label`` builds it and runs them
there. Elsewhere they are skipped.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"features": [4, 8, 16], "cube_size": [32, 32, 16]}
"""Settings of every copied bundle: a network that two processor cores can train while somebody waits."""

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def environment() -> None:
    """Skip where MONAI Label is not installed."""
    if find_spec("monailabel") is None:
        pytest.skip("MONAI Label is not in this environment: `make test-label` builds its own and runs these tests")


@dataclass
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, **query: Any) -> Any:
        """GET a path and read its JSON."""
        return self._json("GET", path, params=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **query: Any) -> Any:
        """POST JSON to a path and read the answer's."""
        return self._json("POST", path, params=query, json=body)

    def delete(self, path: str) -> Any:
        """DELETE a path and read its JSON."""
        return self._json("DELETE", path)

    def infer(
        self, model: str, target: Path, image: str = "", file: Path | None = None, **params: Any
    ) -> nib.Nifti1Image:
        """POST to ``/infer`` and load the label map that comes back."""
        import requests

        files = {"file": (file.name, file.read_bytes())} if file else None
        data = {"params": json.dumps(params)}
        query = {"image": image, "output": "image"}
        answer = requests.post(f"{self.url}/infer/{model}", params=query, data=data, files=files, timeout=300)
        assert answer.status_code == 200, answer.text + self.tail()
        target.write_bytes(answer.content)
        return nib.load(target)

    def wait(self, task: str, state: str = "DONE", timeout: float = 400) -> dict[str, Any]:
        """Wait for the background task (``train`` or ``scoring``) that was started last, to end as it should."""
        deadline = time.monotonic() + timeout
        while (status := self.get(f"/{task}/"))["status"] in ("SUBMITTED", "RUNNING"):
            assert time.monotonic() < deadline, f"{task} has not ended in {timeout} s\n" + "\n".join(
                status.get("details", [])
            )
            time.sleep(0.5)
        assert status["status"] == state, "\n".join(status["details"]) + self.tail()
        return status

    def tail(self) -> str:
        """The end of the server's log."""
        return "\n" + self.log.read_text(errors="replace")[-6000:]

    def _json(self, method: str, path: str, **given: Any) -> Any:
        import requests

        answer = requests.request(method, self.url + path, timeout=300, **given)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}{self.tail()}"
        return answer.json()


StartServer = Callable[..., Any]


@pytest.fixture(scope="session")
def viewer_tool(environment: None, load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """``tools/viewer.py``, which runs servers and stops them."""
    return load_script(ROOT / "tools" / "viewer.py")


@pytest.fixture(scope="session")
def start_server(viewer_tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    """Start the server of an app as a user does; it is stopped, with all its children, when the block ends."""

    @contextmanager
    def start(
        app: Path, studies: Path | str, variables: Mapping[str, str] | None = None, **conf: str
    ) -> Iterator[Server]:
        port = viewer_tool.free_port()
        binaries = Path(sys.executable).parent
        settings = [part for key, value in conf.items() for part in ("--conf", key, value)]
        folder = tmp_path_factory.mktemp("server")
        line = [binaries / "monailabel", "start_server", "--app", app, "--studies", studies, *settings]
        line += ["-i", "127.0.0.1", "-p", str(port)]
        # the launcher calls a bare `python`
        own = {"PATH": f"{binaries}:{os.environ['PATH']}", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
        url, log = f"http://127.0.0.1:{port}", folder / "server.log"
        with viewer_tool.run_server(line, f"{url}/info/", log, {**ENVIRONMENT, **own, **(variables or {})}) as process:
            yield Server(url, process, log)

    return start


@pytest.fixture(scope="session")
def run_python() -> Callable[..., str]:
    """Run this environment's Python to the end."""

    def run(*arguments: Any, cwd: Path, timeout: float = 500) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def run_bundle(run_python: Callable[..., str]) -> Callable[..., str]:
    """Run a config of a bundle by ``python -m monai.bundle run``."""

    def run(bundle: Path, stage: str, cwd: Path, **overrides: Any) -> str:
        config = bundle / "configs" / f"{stage}.json"
        options = [part for key, value in {"bundle_root": bundle, **overrides}.items() for part in (f"--{key}", value)]
        return run_python("-m", "monai.bundle", "run", "--config_file", config, *options, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def copy_bundle() -> Callable[..., Path]:
    """Copy a bundle as ``label/copy_bundle.py`` does, with the small network."""
    tool = runpy.run_path(str(ROOT / "label" / "copy_bundle.py"))["copy_bundle"]

    def copy(source: str, target: Path, weights: Path | None = None, **settings: Any) -> Path:
        tool(ROOT / "bundles" / source, target, {**SMALL, **settings}, weights)
        return target

    return copy


@pytest.fixture(scope="session")
def copy_app() -> Callable[[Path], Path]:
    """Copy this project's app, for a server writes its logs next to it."""

    def copy(target: Path) -> Path:
        shutil.copytree(ROOT / "label", target, ignore=shutil.ignore_patterns("logs", "bin", "model", "__pycache__"))
        return target

    return copy
