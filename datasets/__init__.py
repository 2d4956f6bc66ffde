# SPDX-License-Identifier: Apache-2.0
"""Raw layouts of public data sets to data lists, scans to cubes, and the built-in phantom."""

from __future__ import annotations

from .brats import survey_brats
from .cadpe import survey_cadpe
from .candidate_data import CandidateSet, load_candidates, scan_candidates
from .candidate_dataset import CandidateDataset
from .candidate_predictions import PredictionStore, merge_predictions, write_probabilities, write_submission
from .candidate_stream import CandidateStream
from .candidate_survey import survey_candidates
from .candidates import BadRow, BadRowError, CandidateTable, read_candidates
from .case_checks import check_cases
from .case_dataset import CaseDataset
from .case_names import OutputName, output_names
from .cube_dataset import CubeDataset
from .datalist import FoundScan, Survey, load_datalist, write_datalist
from .fumpe import survey_fumpe
from .image_folder import FolderRules, build_datalist, survey_folder
from .lidc import survey_lidc
from .lits import survey_lits
from .luna16 import survey_luna16
from .luna16_candidates import survey_luna16_candidates
from .msd import survey_msd
from .phantom import Phantom, make_phantom
from .phantom_brain import BrainPhantom, make_brain_phantom
from .phantom_brain_writing import write_brain_phantom
from .phantom_emboli_writing import write_embolism_phantom
from .phantom_labels import Label, Lesion, Nodule, VesselFinding
from .phantom_luna16 import write_luna16_phantom
from .phantom_writing import write_phantom
from .prefetch_loader import PrefetchDataLoader
from .rspect import survey_rspect
from .samplers import EpochSampler
from .scan_cache import LeftOut, ScanCache
from .scan_header import BadScanError, ScanHeader, open_scan, read_scan_header
from .scan_reader import ScanReader
from .scan_writer import ScanWriter
from .segmentation_data import MSD_TASKS, load_cases, load_labelled_cases, msd_task
from .splits import split_patients
