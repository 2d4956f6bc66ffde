# SPDX-License-Identifier: Apache-2.0
"""When this process began, for limits of time that count the import of MONAI too."""

from __future__ import annotations

import time

STARTED = time.monotonic()
"""Set when the package is imported, before anything that takes long."""
