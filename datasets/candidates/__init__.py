# SPDX-License-Identifier: Apache-2.0
"""Candidates of detection: their tables, the scans they lie in, training sets, streams and predictions."""
