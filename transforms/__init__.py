# SPDX-License-Identifier: Apache-2.0
"""Deformations, cube sampling and intensity clipping: numbers in, numbers out."""

from __future__ import annotations

from .backend import resolve_backend
from .batch_deform import BatchGenesisDeform
from .brats_regions import (
    BRATS_LABELS,
    BRATS_REGIONS,
    BratsLabelsd,
    BratsRegions,
    BratsRegionsd,
    brats_label_values,
    brats_labels,
    brats_regions,
)
from .candidate_cube import CandidateCubed, RandCandidateCubed, candidate_cube, may_turn
from .centre_slices import CentreSlices, CentreSlicesd
from .class_cubes import ClassVoxelsd, RandClassCubed
from .cube_sampling import RandTissueCube, RandTissueCubed, cut_cube, drop_axis, window_size
from .device_deform import RandDeformSeedd, RandGenesisDeformOnDeviced
from .flip_probability import flip_probabilities, flip_probability
from .genesis_deform import (
    GENESIS_VARIANTS,
    GenesisParameters,
    RandGenesisDeform,
    RandGenesisDeformd,
    genesis_deform,
    voxel_kind_map,
)
from .hounsfield import ClipHounsfield, ClipHounsfieldd, ScaleHounsfield, ScaleHounsfieldd
from .local_shuffle import RandLocalPixelShuffle, RandLocalPixelShuffled, local_pixel_shuffle
from .masking import RandPatchMasking, RandPatchMaskingd, draw_masked_patches
from .modality_check import CheckModalityd
from .nonlinear_intensity import RandNonlinearIntensity, RandNonlinearIntensityd, bezier_curve, bezier_map
from .painting import (
    RandInPainting,
    RandInPaintingd,
    RandOutPainting,
    RandOutPaintingd,
    draw_in_painting_boxes,
    draw_out_painting_boxes,
)
from .scan_normalisation import NormaliseScan, NormaliseScand, default_intensity_range, restored_dtype
from .segmentation_case import BadCaseError, CheckSegmentationCased, check_case
from .shuffle_share import PAPER_MOVED_SHARE, blocks_for_share, expected_moved_share
from .spacing import Spacingd
from .tile_deform import RandGenesisDeformTiles, RandGenesisDeformTilesd
from .tissue_windows import (
    TissueWindows,
    TissueWindowsd,
    admissible_starts,
    lowest_starts,
    tissue_window_scores,
    window_bounds,
)
from .vessel_cube import RandVesselCubed, VesselCubed, turn_to, turned_cube, vessel_axis
from .voxel_kinds import VOXEL_KINDS

__all__ = [
    "BRATS_LABELS",
    "BRATS_REGIONS",
    "GENESIS_VARIANTS",
    "PAPER_MOVED_SHARE",
    "VOXEL_KINDS",
    "BadCaseError",
    "BatchGenesisDeform",
    "BratsLabelsd",
    "BratsRegions",
    "BratsRegionsd",
    "CandidateCubed",
    "CentreSlices",
    "CentreSlicesd",
    "CheckModalityd",
    "CheckSegmentationCased",
    "ClassVoxelsd",
    "ClipHounsfield",
    "ClipHounsfieldd",
    "GenesisParameters",
    "NormaliseScan",
    "NormaliseScand",
    "RandCandidateCubed",
    "RandClassCubed",
    "RandDeformSeedd",
    "RandGenesisDeform",
    "RandGenesisDeformOnDeviced",
    "RandGenesisDeformTiles",
    "RandGenesisDeformTilesd",
    "RandGenesisDeformd",
    "RandInPainting",
    "RandInPaintingd",
    "RandLocalPixelShuffle",
    "RandLocalPixelShuffled",
    "RandNonlinearIntensity",
    "RandNonlinearIntensityd",
    "RandOutPainting",
    "RandOutPaintingd",
    "RandPatchMasking",
    "RandPatchMaskingd",
    "RandTissueCube",
    "RandTissueCubed",
    "RandVesselCubed",
    "ScaleHounsfield",
    "ScaleHounsfieldd",
    "Spacingd",
    "TissueWindows",
    "TissueWindowsd",
    "VesselCubed",
    "admissible_starts",
    "bezier_curve",
    "bezier_map",
    "blocks_for_share",
    "brats_label_values",
    "brats_labels",
    "brats_regions",
    "candidate_cube",
    "check_case",
    "cut_cube",
    "default_intensity_range",
    "draw_in_painting_boxes",
    "draw_masked_patches",
    "draw_out_painting_boxes",
    "drop_axis",
    "expected_moved_share",
    "flip_probabilities",
    "flip_probability",
    "genesis_deform",
    "local_pixel_shuffle",
    "lowest_starts",
    "may_turn",
    "resolve_backend",
    "restored_dtype",
    "tissue_window_scores",
    "turn_to",
    "turned_cube",
    "vessel_axis",
    "voxel_kind_map",
    "window_bounds",
    "window_size",
]
