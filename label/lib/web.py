# SPDX-License-Identifier: Apache-2.0
"""Which web pages may read what the server answers and ask it for changes, and that a refusal has its reason."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing; what may read their answers is what :class:`CORSMiddleware` says."""


def read_origins(text: str) -> list[str]:
    """Read addresses with commas between them.

    Args:
        text: addresses as browsers send them in ``Origin``, such as ``http://localhost:3000``; empty for none.

    Raises:
        ValueError: when one is something else, such as ``*`` or the address of a page.

    Example:
        >>> read_origins("http://localhost:3000, https://viewer.example.org"), read_origins("")
        (['http://localhost:3000', 'https://viewer.example.org'], [])
    """
    return _read_list("origins", text, r"https?://[^/*\s]+", "addresses such as http://localhost:3000")


def read_hosts(text: str) -> list[str]:
    """Read names of a server with commas between them.

    Args:
        text: names without scheme and port, such as ``label.example.org``; empty for none.

    Raises:
        ValueError: when one is something else, such as ``*`` or an address with a port.

    Example:
        >>> read_hosts("label.example.org, scans"), read_hosts("")
        (['label.example.org', 'scans'], [])
    """
    return _read_list("hosts", text, r"[A-Za-z0-9_.-]+", "names such as label.example.org")


def _read_list(key: str, text: str, pattern: str, expected: str) -> list[str]:
    """Read a setting of texts with commas between them, each of which matches a pattern."""
    found = [each.strip() for each in text.split(",") if each.strip()]
    for each in found:
        if not re.fullmatch(pattern, each):
            raise ValueError(f"--conf {key} {text}: expected {expected}, found {each}")
    return found


class OwnPagesMiddleware:
    """Refuses, with status 403, what pages of other addresses ask for.

    A browser sends their requests although it keeps the answers from them, so that they could start a training or
    delete a label; it names the page's address in ``Origin``. And a page may let its own name point to this machine
    ("DNS rebinding"), so that the browser takes the server for the page's: the request's ``Host`` is that name then.
    Other programs than browsers send no ``Origin``.

    Args:
        app: what answers the other requests.
        origins: addresses of pages besides the server's own.
        hosts: names of the server besides ``localhost``, this machine's own name, and all addresses of numbers, which
            nobody can let point elsewhere.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str] = (), hosts: Collection[str] = ()) -> None:
        self.app = app
        self.origins = {origin.lower() for origin in origins}
        self.hosts = {name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else ""
        answer = JSONResponse({"detail": refusal}, status_code=403) if refusal else self.app
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        """Say why a request is refused; empty where it is not."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if not self._is_own(host):
            return f"Host: expected a number, or one of {sorted(self.hosts)}, found {host!r}; see --conf hosts"
        if origin is None or scope["method"] in READING or origin.lower() in self.origins:
            return ""
        if re.sub("^https?://", "", origin.lower()) == host:
            return ""
        return f"Origin: expected a page of this server or of --conf origins, found {origin}"

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.rstrip(".") in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def set_up(application: FastAPI, origins: Sequence[str], hosts: Sequence[str] = ()) -> None:
    """Let the server's own pages and those of some addresses use it, no others, and give refusals a reason.

    MONAI Label 0.8.5 lets pages of all addresses, so that any page in the browser of somebody who runs it can read the
    scans of its archive; and the variable for it, ``MONAI_LABEL_CORS_ORIGINS``, ends its start with a ``TypeError``.
    Its refusals are answered with "Internal Server Error" and nothing else.

    Args:
        application: MONAI Label's, also when it has started already.
        origins: addresses besides the server's own, which needs no permission.
        hosts: names of the server; see :class:`OwnPagesMiddleware`.
    """
    replaced = (CORSMiddleware, OwnPagesMiddleware)
    others = [each for each in application.user_middleware if each.cls not in replaced]
    readers = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    own = Middleware(OwnPagesMiddleware, origins=list(origins), hosts=list(hosts))
    application.user_middleware = [own, readers, *others]
    application.add_exception_handler(MONAILabelException, _answer_refusal)
    application.middleware_stack = application.build_middleware_stack()


def _answer_refusal(request: Any, error: MONAILabelException) -> JSONResponse:
    status = 400 if error.error is MONAILabelError.INVALID_INPUT else 500
    return JSONResponse({"detail": error.msg}, status_code=status)
