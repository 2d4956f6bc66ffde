# SPDX-License-Identifier: Apache-2.0
"""Runs unit tests as the model zoo's runner does, from its root: ``python run_unit_tests.py MODULE...``."""

from __future__ import annotations

import importlib
import sys
import unittest
from pathlib import Path


def main() -> int:
    sys.path += [str(Path("ci/unit_tests").resolve()), str(Path(__file__).resolve().parent)]
    suite = unittest.TestSuite()
    for name in sys.argv[1:]:
        loader = unittest.TestLoader()
        module = importlib.import_module(name)
        if hasattr(module, "test_order"):
            loader.sortTestMethodsUsing = module.test_order
        suite.addTests(loader.loadTestsFromModule(module))
    return int(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())


if __name__ == "__main__":
    sys.exit(main())
