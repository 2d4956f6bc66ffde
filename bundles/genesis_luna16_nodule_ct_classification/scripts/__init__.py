# SPDX-License-Identifier: Apache-2.0
"""What this bundle alone needs."""
