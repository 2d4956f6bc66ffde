# SPDX-License-Identifier: Apache-2.0
"""What ``--conf`` says is read before the server starts, and the pages that may read from it."""

from __future__ import annotations

import doctest
import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LITS, NODULES = "genesis_lits_liver_ct_segmentation", "genesis_luna16_nodule_ct_classification"
PRETRAINING = "genesis_chest_ct_pretraining"


@pytest.fixture(scope="module")
def app(environment, load_script) -> Iterator[ModuleType]:
    """The app's module, with its folder on the path as in MONAI Label."""
    sys.path.insert(0, str(ROOT / "label"))
    yield load_script(ROOT / "label" / "main.py")
    sys.path.remove(str(ROOT / "label"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """Three bundles, and a folder that only looks like one that the app offers."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in (LITS, NODULES, PRETRAINING):
        (folder / name / "configs").mkdir(parents=True)
        shutil.copy(ROOT / "bundles" / name / "configs" / "metadata.json", folder / name / "configs")
    shutil.copytree(folder / LITS, folder / "liver_registration")
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uncertainty": NODULES}, rf"uncertainty {NODULES}: expected a segmentation bundle of \['{LITS}'\]"),
        ({"uncertainty": "lost"}, rf"uncertainty lost: expected a segmentation bundle of \['{LITS}'\]"),
        ({"uncertainty_flips": "x"}, r"uncertainty_flips x: expected some of 0,1,2, or none, found \['x'\]"),
        ({"uncertainty_flips": "0,3"}, r"expected some of 0,1,2, or none, found \['0', '3'\]"),
        ({"uncertainty_flips": "0,0"}, r"expected some of 0,1,2, or none, found \['0', '0'\]"),
        (
            {"models": f"{LITS},liver_registration"},
            r"expected names that end in _segm.*, found \['liver_registration'\]",
        ),
        ({"models": "lost"}, r"models \['lost'\]: expected bundles in"),
        ({"origins": "*"}, r"origins \*: expected addresses such as http://localhost:3000, found \*"),
        ({"origins": "http://a.org/page"}, r"expected addresses such as .*, found http://a.org/page"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_at_the_start(app, bundles, tmp_path, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        app.GenesisApp(str(tmp_path), str(tmp_path / "studies"), {"bundles": str(bundles), **settings})
    assert not (tmp_path / "studies").exists()  # nothing was begun


def test_bundles_that_are_not_offered_are_named(app, bundles, caplog):
    assert set(app.find_bundles(bundles)) == {LITS, NODULES, PRETRAINING}
    assert "['liver_registration']" in caplog.text


def test_only_pages_of_the_given_addresses_may_read(environment, app):
    """What MONAI Label allows, what is left of it, and the answers themselves as they were; also after the start."""
    from fastapi import FastAPI
    from fastapi.middleware import Middleware
    from fastapi.middleware.cors import CORSMiddleware
    from starlette.testclient import TestClient

    everybody = {"allow_origins": ["*"], "allow_credentials": True, "allow_methods": ["*"], "allow_headers": ["*"]}
    server = FastAPI(middleware=[Middleware(CORSMiddleware, **everybody)])
    server.get("/scan")(lambda: "slices")
    client = TestClient(server)

    def allowed(origin: str) -> str | None:
        headers = {"Origin": origin}
        before = client.options("/scan", headers={**headers, "Access-Control-Request-Method": "GET"})
        answer = client.get("/scan", headers=headers)
        assert answer.json() == "slices"
        assert (before.status_code == 200) == ("access-control-allow-origin" in answer.headers)
        return answer.headers.get("access-control-allow-origin")

    assert allowed("http://foreign.example") in ("*", "http://foreign.example")
    app.set_up(server, ["http://viewer.example:3000"])
    assert allowed("http://foreign.example") is None
    assert allowed("http://viewer.example:3000") == "http://viewer.example:3000"
    app.set_up(server, [])
    assert allowed("http://viewer.example:3000") is None


def test_refusals_are_answered_with_their_reason(environment, app):
    from fastapi import FastAPI
    from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
    from starlette.testclient import TestClient

    server = FastAPI()

    @server.get("/{kind}")
    def refuse(kind: str) -> None:
        raise MONAILabelException(MONAILabelError[kind], "expected one, found two")

    app.set_up(server, [])
    for kind, status in (("INVALID_INPUT", 400), ("INFERENCE_ERROR", 500)):
        answer = TestClient(server, raise_server_exceptions=False).get(f"/{kind}")
        assert (answer.status_code, answer.json()) == (status, {"detail": "expected one, found two"})


def test_examples(app):
    assert doctest.testmod(app).failed == 0
    assert doctest.testmod(importlib.import_module("lib.web")).attempted == 1
