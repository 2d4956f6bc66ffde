# SPDX-License-Identifier: Apache-2.0
"""A server on this machine that speaks as much of the Hugging Face hub's protocol as reading and pushing need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

IGNORED = {"shouldIgnore": False}


class LoopbackHub:
    """Repositories of files by name, each with one commit; requests are noted."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.address = ""

    def commit(self, repository: str) -> str:
        """Give the commit of a repository, which follows from its content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in sorted(self.repositories[repository].items()):
            digest.update(name.encode() + content)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        repository = match[1] if match else ""
        if match is None or repository not in self.hub.repositories:
            return self._answer(404, X_Error_Code="RepoNotFound")
        commit = self.hub.commit(repository)
        if match[2] not in ("main", commit):
            return self._answer(404, X_Error_Code="RevisionNotFound")
        content = self.hub.repositories[repository].get(match[3])
        if content is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._answer(200, content, X_Repo_Commit=commit, ETag=etag, Accept_Ranges="none")

    do_GET = do_HEAD

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.hub.repositories.setdefault(name, {})
            return self._json({"url": f"{self.hub.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path.partition("?")[0]):
            files = [each["path"] for each in json.loads(body)["files"]]
            return self._json({"files": [{"path": path, "uploadMode": "regular"} | IGNORED for path in files]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path.partition("?")[0]):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.repositories[match[1]][line["value"]["path"]] = content
            commit = self.hub.commit(match[1])
            return self._json({"commitOid": commit, "commitUrl": f"{self.hub.address}/{match[1]}/commit/{commit}"})
        return self._answer(404)

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """Run the server for the length of a block."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
