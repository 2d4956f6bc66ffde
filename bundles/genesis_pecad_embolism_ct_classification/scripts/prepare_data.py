# SPDX-License-Identifier: Apache-2.0
"""Writes the data list of this bundle: ``python -m scripts.prepare_data --root CT --candidates CSV --out JSON``.

It is ``python -m models_genesis.datasets candidates``, with the same options; ``fumpe`` and ``cadpe`` read those two.
"""

from __future__ import annotations

import sys

from models_genesis.datasets.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["candidates", *sys.argv[1:]]))
