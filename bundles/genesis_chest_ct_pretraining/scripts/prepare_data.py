# SPDX-License-Identifier: Apache-2.0
"""Writes the data list of this bundle: ``python -m scripts.prepare_data folder --root SCANS --out datalist.json``.

The commands are those of ``python -m models_genesis.datasets``: ``folder``, ``luna16``, ``phantom``.
"""

from __future__ import annotations

import sys

from models_genesis.datasets.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
