# SPDX-License-Identifier: Apache-2.0
"""Raw layouts of public data sets to data lists, scans to cubes, and the built-in phantom."""

from __future__ import annotations

from .cube_dataset import CubeDataset
from .datalist import FoundScan, Survey, load_datalist, write_datalist
from .image_folder import FolderRules, build_datalist, survey_folder
from .luna16 import survey_luna16
from .samplers import EpochSampler
from .scan_cache import LeftOut, ScanCache
from .scan_header import BadScanError, ScanHeader, read_scan_header
from .scan_reader import ScanReader
from .splits import split_patients
