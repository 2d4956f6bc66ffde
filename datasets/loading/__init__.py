# SPDX-License-Identifier: Apache-2.0
"""Scans to batches: the cache of prepared scans, data sets of cubes and of cases, samplers, the loader."""
