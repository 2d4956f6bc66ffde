# SPDX-License-Identifier: Apache-2.0
"""Which web pages may read what the server answers, and that a refusal is answered with its reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException


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
    origins = [each.strip() for each in text.split(",") if each.strip()]
    for origin in origins:
        if not re.fullmatch(r"https?://[^/*\s]+", origin):
            raise ValueError(f"--conf origins {text}: expected addresses such as http://localhost:3000, found {origin}")
    return origins


def set_up(application: FastAPI, origins: Sequence[str]) -> None:
    """Let the server's own pages and those of some addresses read its answers, no others, and give refusals a reason.

    MONAI Label 0.8.5 lets pages of all addresses, so that any page in the browser of somebody who runs it can read the
    scans of its archive; and the variable for it, ``MONAI_LABEL_CORS_ORIGINS``, ends its start with a ``TypeError``.
    Its refusals are answered with "Internal Server Error" and nothing else.

    Args:
        application: MONAI Label's, also when it has started already.
        origins: addresses besides the server's own, which needs no permission.
    """
    others = [each for each in application.user_middleware if each.cls is not CORSMiddleware]
    own = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    application.user_middleware = [own, *others]
    application.add_exception_handler(MONAILabelException, _answer_refusal)
    application.middleware_stack = application.build_middleware_stack()


def _answer_refusal(request: Any, error: MONAILabelException) -> JSONResponse:
    status = 400 if error.error is MONAILabelError.INVALID_INPUT else 500
    return JSONResponse({"detail": error.msg}, status_code=status)
