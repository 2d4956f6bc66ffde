# SPDX-License-Identifier: Apache-2.0
"""JSON files that people wrote or a transfer damaged: whatever is wrong with one, the error names it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def parse_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read a JSON file, whatever it holds.

    Args:
        path: the file, UTF-8.
        what: what was expected, for the error.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no JSON or no UTF-8, or is nested too deeply.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected {what}, found no such file.")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{file}: expected {what} in JSON, found lists or objects nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"{file}: expected {what} in JSON, found {error}.") from error


def read_json(path: str | os.PathLike[str], what: str = "an object") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file, UTF-8.
        what: what was expected, for the error.

    Returns:
        The object.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no JSON or no UTF-8, is nested too deeply, or holds something else than an object.
    """
    content = parse_json(path, what)
    if not isinstance(content, dict):
        raise ValueError(f"{Path(path)}: expected {what}, found {type(content).__name__}.")
    return content
