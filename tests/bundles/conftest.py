# SPDX-License-Identifier: Apache-2.0
"""Runs bundles as a user does: in a process of their own, from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from models_genesis.datasets import make_phantom

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"

RunBundle = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def bundles() -> Path:
    return BUNDLES


@pytest.fixture(scope="session")
def chest_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small phantom patients as a user keeps scans: a folder of NIfTI files."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(4):
        phantom = make_phantom(seed, region="chest", shape=(72, 56, 64))
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), folder / f"patient{seed}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def bundle_command(bundles: Path) -> Callable[..., list[str]]:
    """The command line of ``python -m monai.bundle run`` for configs of a bundle."""

    def command(bundle: str, configs: list[str], **overrides: Any) -> list[str]:
        files = [str(bundles / bundle / "configs" / f"{name}.json") for name in configs]
        line = [
            sys.executable,
            "-m",
            "monai.bundle",
            "run",
            "--config_file",
            str(files) if len(files) > 1 else files[0],
        ]
        overrides = {"bundle_root": bundles / bundle, **overrides}
        return line + [part for key, value in overrides.items() for part in (f"--{key}", str(value))]

    return command


@pytest.fixture(scope="session")
def run_bundle(bundle_command: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> RunBundle:
    """Run configs of a bundle in a fresh directory; ``status`` is what the process must exit with."""

    def run(bundle: str, configs: list[str], status: int = 0, **overrides: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            bundle_command(bundle, configs, **overrides),
            cwd=tmp_path_factory.mktemp("elsewhere"),
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return run
