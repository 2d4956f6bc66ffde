# SPDX-License-Identifier: Apache-2.0
"""What the model zoo's ``ci/unit_tests/utils.py`` offers to the tests of bundles, written for our CI."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow


def check_workflow(workflow: ConfigWorkflow, check_properties: bool = False) -> None:
    """Run a workflow, whose properties must be complete."""
    workflow.initialize()
    if check_properties and (missing := workflow.check_properties()):
        raise ValueError(f"properties are missing: {missing}")
    workflow.run()
    workflow.finalize()


def export_config_and_run_mgpu_cmd(
    config_file: list[str],
    meta_file: str,
    override_dict: dict[str, Any],
    output_path: str,
    logging_file: str | None = None,
    ngpu: int = 2,
) -> None:
    """Write the merged configs with their overrides to one file, and run that by ``torchrun``."""
    parser = ConfigParser()
    parser.read_config(config_file)
    parser.update(pairs=override_dict)
    ConfigParser.export_config_file(parser.config, output_path, indent=4)
    # `torchrun`, by its module: an environment may lack the script
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nnodes=1",
        f"--nproc_per_node={ngpu}",
        "-m",
        "monai.bundle",
        "run",
    ]
    words += ["--config_file", output_path, "--meta_file", meta_file]
    words += ["--logging_file", logging_file] if logging_file else []
    subprocess.check_call(words, env={**os.environ, "PYTHONPATH": override_dict["bundle_root"]})
