# SPDX-License-Identifier: Apache-2.0
"""Raw layouts of public data sets to data lists, scans to cubes, and the built-in phantom."""

from __future__ import annotations

from .candidates.predictions import PredictionStore, write_probabilities, write_submission
from .candidates.split import CandidateSet, load_candidates, scan_candidates, subsample_negatives
from .candidates.stream import CandidateStream
from .candidates.table import BadRow, BadRowError, CandidateTable, read_candidates
from .candidates.training_set import CandidateDataset
from .cases import MSD_TASKS, build_datalist, load_cases, load_datalist, load_labelled_cases, msd_task
from .datalist import DatasetSummary, ScanRecord, write_datalist
from .io.case_names import OutputName, PredictionLayout, output_names
from .io.scan_header import BadScanError, ScanHeader, open_scan, read_scan_header
from .io.scan_reader import ScanReader
from .io.scan_writer import ScanWriter
from .layouts.brats import list_brats
from .layouts.cadpe import list_cadpe
from .layouts.candidate_list import list_candidates
from .layouts.case_checks import check_cases
from .layouts.fumpe import list_fumpe
from .layouts.image_folder import FolderRules, list_folder
from .layouts.lidc import list_lidc
from .layouts.lits import list_lits
from .layouts.luna16 import list_luna16
from .layouts.luna16_candidates import list_luna16_candidates
from .layouts.msd import list_msd
from .layouts.nnunet_raw import list_nnunet
from .layouts.pairs import PairRules, list_pairs
from .layouts.rspect import list_rspect
from .loading.case_dataset import CaseDataset
from .loading.cube_dataset import CubeDataset
from .loading.prefetch_loader import PrefetchDataLoader
from .loading.prepare_scan import LeftOut
from .loading.samplers import EpochSampler
from .loading.scan_cache import ScanCache
from .phantom.brain_mr import BrainPhantom, make_brain_phantom
from .phantom.chest_abdomen_ct import Phantom, make_phantom
from .phantom.labels import Label, Lesion, Nodule, VesselFinding
from .phantom.write_brats import write_brain_phantom
from .phantom.write_decathlon import write_phantom
from .phantom.write_emboli import write_embolism_phantom
from .phantom.write_luna16 import write_luna16_phantom
from .prepare import Preparation, prepare_store
from .splits import split_patients

__all__ = [
    "MSD_TASKS",
    "BadRow",
    "BadRowError",
    "BadScanError",
    "BrainPhantom",
    "CandidateDataset",
    "CandidateSet",
    "CandidateStream",
    "CandidateTable",
    "CaseDataset",
    "CubeDataset",
    "DatasetSummary",
    "EpochSampler",
    "FolderRules",
    "Label",
    "LeftOut",
    "Lesion",
    "Nodule",
    "OutputName",
    "PairRules",
    "Phantom",
    "PredictionLayout",
    "PredictionStore",
    "PrefetchDataLoader",
    "Preparation",
    "ScanCache",
    "ScanHeader",
    "ScanReader",
    "ScanRecord",
    "ScanWriter",
    "VesselFinding",
    "build_datalist",
    "check_cases",
    "list_brats",
    "list_cadpe",
    "list_candidates",
    "list_folder",
    "list_fumpe",
    "list_lidc",
    "list_lits",
    "list_luna16",
    "list_luna16_candidates",
    "list_msd",
    "list_nnunet",
    "list_pairs",
    "list_rspect",
    "load_candidates",
    "load_cases",
    "load_datalist",
    "load_labelled_cases",
    "make_brain_phantom",
    "make_phantom",
    "msd_task",
    "open_scan",
    "output_names",
    "prepare_store",
    "read_candidates",
    "read_scan_header",
    "scan_candidates",
    "split_patients",
    "subsample_negatives",
    "write_brain_phantom",
    "write_datalist",
    "write_embolism_phantom",
    "write_luna16_phantom",
    "write_phantom",
    "write_probabilities",
    "write_submission",
]
