# SPDX-License-Identifier: Apache-2.0
"""Writes the data list of this bundle: ``python -m scripts.prepare_data --root RAW --out datalist.json``.

It is ``python -m models_genesis.datasets lidc``, with the same options.
"""

from __future__ import annotations

import sys

from models_genesis.datasets.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["lidc", *sys.argv[1:]]))
