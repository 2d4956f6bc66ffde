# SPDX-License-Identifier: Apache-2.0
"""The runnable cases next to the checkout: inputs that once gave a wrong result with exit code 0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
SCRIPTS = sorted(path.name for path in CASES.glob("*.sh"))


@pytest.mark.skipif(not SCRIPTS, reason=f"the cases are not on this machine (expected at {CASES})")
@pytest.mark.parametrize("script", SCRIPTS or ["none"])
def test_the_true_value_or_a_refusal(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PY": sys.executable, "R": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", str(CASES / script)], capture_output=True, text=True, timeout=550, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
