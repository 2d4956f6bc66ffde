# SPDX-License-Identifier: Apache-2.0
"""Files in and out: scans of every format, their headers and geometry, tables, JSON, DICOM segmentations."""
