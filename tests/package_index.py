# SPDX-License-Identifier: Apache-2.0
"""Asks the package index by pip, and tells a machine without a network from an answer that something is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PIP = "pip==26.3"
"""Since 25 pip resolves in a dry run from the index's metadata alone; older ones download every wheel, PyTorch too."""

UNREACHABLE = re.compile(r"connection broken by|\(from versions: none\)|Name or service not known|timed out", re.I)


class IndexUnreachableError(Exception):
    """No package index can be reached from here."""


def pip(*arguments: str, site: Path | None = None) -> str:
    """Run pip.

    Args:
        arguments: of its command line.
        site: folder with another pip than the environment's own.

    Returns:
        What it said on stderr.

    Raises:
        IndexUnreachableError: when it failed because there is no network.
        AssertionError: when it failed otherwise.
    """
    environment = {**os.environ, **({"PYTHONPATH": str(site)} if site else {})}
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--retries", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    if done.returncode != 0 and UNREACHABLE.search(done.stderr):
        raise IndexUnreachableError(done.stderr[-300:])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def newer_pip(folder: Path) -> Path:
    """Install the pip of :data:`PIP` to a folder, for :func:`pip`."""
    pip("install", "--no-deps", "--no-compile", "--target", str(folder), PIP)
    return folder
