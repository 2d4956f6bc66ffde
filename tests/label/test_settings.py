# SPDX-License-Identifier: Apache-2.0
"""What ``--conf`` says is read before the server starts, and the pages that may read from it."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models_genesis.training import save_trained_weights

ROOT = Path(__file__).resolve().parents[2]
LITS, NODULES = "genesis_lits_liver_ct_segmentation", "genesis_luna16_nodule_ct_classification"
PRETRAINING, HIPPOCAMPUS = "genesis_chest_ct_pretraining", "genesis_msd_segmentation"


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
        ({"hosts": "a.org:80"}, r"hosts a.org:80: expected names such as label.example.org, found a.org:80"),
        ({"uncertainity": LITS}, r"--conf uncertainity: found no such setting, did you mean uncertainty\?"),
        ({"sam2": "false"}, r"--conf sam2: found no such setting, expected one of bundles, models, .*, preload"),
    ],
)
def test_invalid_settings_are_refused_at_the_start(app, bundles, tmp_path, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        app.GenesisApp(str(tmp_path), str(tmp_path / "studies"), {"bundles": str(bundles), **settings})
    assert not (tmp_path / "studies").exists()  # nothing was begun


@pytest.fixture
def hippocampus(tmp_path) -> Path:
    """Folder of a bundle whose labels are an anterior and a posterior part."""
    configs = tmp_path / "bundles" / HIPPOCAMPUS / "configs"
    configs.mkdir(parents=True)
    shutil.copy(ROOT / "bundles" / HIPPOCAMPUS / "configs" / "metadata.json", configs)
    return tmp_path / "bundles"


def rename_labels(bundles: Path, *names: str) -> None:
    metadata = bundles / HIPPOCAMPUS / "configs" / "metadata.json"
    content = json.loads(metadata.read_text())
    content["network_data_format"]["outputs"]["pred"]["channel_def"] = dict(enumerate(("background", *names)))
    metadata.write_text(json.dumps(content))


def test_flips_that_swap_labels_are_refused_at_the_start(app, hippocampus, tmp_path, monkeypatch):
    """As ``--tta_flips`` are; across slices nothing is mirrored, and the default leaves out what it must."""
    begun: list[dict[str, str]] = []
    monkeypatch.setattr(app.MONAILabelApp, "__init__", lambda self, conf, **others: begun.append(conf))

    def flips(**settings: str) -> list[int]:
        conf = {"bundles": str(hippocampus), "uncertainty": HIPPOCAMPUS, **settings}
        return app.GenesisApp(str(tmp_path), str(tmp_path / "studies"), conf).flips

    expected = (
        r"^--conf uncertainty_flips 0,1: expected axes along which no classes are told apart, found 1, which tells "
    )
    with pytest.raises(ValueError, match=f"{expected}Anterior and Posterior apart$"):
        flips(uncertainty_flips="0,1")
    assert begun == []
    assert flips() == [0] and flips(uncertainty_flips="0,2") == [0, 2] and flips(uncertainty_flips="none") == []
    models = hippocampus / HIPPOCAMPUS / "models"
    models.mkdir()
    save_trained_weights({"head.weight": torch.zeros(1)}, models / "model.pt", {"slice_axis": 1})
    assert flips(uncertainty_flips="0,1") == [0, 1]
    rename_labels(hippocampus, "left kidney", "right kidney")
    assert flips() == []
    with pytest.raises(ValueError, match=r"uncertainty_flips 0: .* found 0, which tells left kidney and right kidney"):
        flips(uncertainty_flips="0")


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
    client = TestClient(server, base_url="http://localhost")

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


def test_keys_of_monai_label_itself_are_known(environment, app):
    """All that its source reads from the settings that it is given."""
    import monailabel

    texts = [path.read_text(encoding="utf-8") for path in Path(monailabel.__file__).parent.rglob("*.py")]
    read = {key for text in texts for key in re.findall(r"\bconf(?:\.get\(|\[)[\"'](\w+)[\"']", text)}
    assert read == set(app.MONAILABEL_SETTINGS)
    app.check_keys([*app.SETTINGS, *app.MONAILABEL_SETTINGS])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_foreign_pages_change_nothing(environment, app, method):
    """A browser sends their requests, whatever it lets them read: a form needs nobody's permission."""
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    server, changes = FastAPI(), []
    server.api_route("/label", methods=["GET", method])(lambda: changes.append(method))
    app.set_up(server, ["http://viewer.example:3000"], ["label.example"])

    def ask(method: str, base: str, origin: str | None) -> int:
        headers = {} if origin is None else {"Origin": origin}
        return TestClient(server, base_url=base).request(method, "/label", headers=headers).status_code

    own = "http://127.0.0.1:8000"
    accepted = [None, own, "http://viewer.example:3000"]
    assert [ask(method, own, origin) for origin in accepted] == [200] * 3
    assert len(changes) == 3
    foreign = ["http://foreign.example", "http://127.0.0.1:9000", "http://127.0.0.1", "null", "", f"{own}.example"]
    assert [ask(method, own, origin) for origin in foreign] == [403] * len(foreign)
    assert len(changes) == 3
    assert ask("GET", own, "http://foreign.example") == 200  # which the browser does not show to it


def test_a_name_that_somebody_let_point_here_is_refused(environment, app):
    """Its pages would be the server's own for the browser: of one origin with it, reading included."""
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    server = FastAPI()
    server.get("/scan")(lambda: "slices")

    def ask(base: str) -> int:
        return TestClient(server, base_url=base).get("/scan", headers={"Origin": base}).status_code

    app.set_up(server, [])
    machine = f"http://{socket.gethostname()}:8000"
    own = ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000", "http://10.1.2.3", machine]
    assert [ask(base) for base in own] == [200] * len(own)
    for foreign in ("http://rebound.example:8000", "http://label.example", "http://127.0.0.1.example"):
        assert ask(foreign) == 403
    app.set_up(server, [], ["label.example"])
    assert ask("http://label.example:8000") == 200 and ask("http://rebound.example") == 403
    refusal = TestClient(server, base_url="http://rebound.example").get("/scan").json()["detail"]
    assert "found 'rebound.example'; see --conf hosts" in refusal


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
        answer = TestClient(server, "http://localhost", raise_server_exceptions=False).get(f"/{kind}")
        assert (answer.status_code, answer.json()) == (status, {"detail": "expected one, found two"})


def test_examples(app):
    assert doctest.testmod(app).failed == 0
    assert doctest.testmod(importlib.import_module("lib.web")).attempted == 2
