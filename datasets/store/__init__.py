# SPDX-License-Identifier: Apache-2.0
"""Prepared scans of big corpora, on disk or in a bucket: Zarr v3 by TensorStore, and a manifest in Parquet."""
