# SPDX-License-Identifier: Apache-2.0
"""The label table of the phantom, and what it knows of its nodules and lesions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Label(IntEnum):
    """Voxel labels of the phantom, one a voxel; where structures touch, the one that fills most of the voxel counts."""

    BACKGROUND = 0
    """Everything outside the skin, the patient table included."""
    BODY = 1
    """Skin, fat, muscle, cartilage, discs, mediastinum, pancreas: everything without its own label."""
    LUNG = 2
    """Lung parenchyma without its vessels, airways and nodules."""
    AIRWAY = 3
    """Lumen of trachea and bronchi."""
    NODULE = 4
    """Lung nodules of every kind."""
    VESSEL = 5
    """Pulmonary arteries and veins, caval, portal, hepatic, renal and neck vessels."""
    HEART = 6
    """Heart muscle and blood pools."""
    AORTA = 7
    """Ascending aorta, arch, thoracic and abdominal aorta."""
    BONE = 8
    """Ribs, sternum, spine, scapulae and clavicles."""
    LIVER = 9
    """Liver with the vessels inside it (as LiTS draws it), without lesions."""
    LESION = 10
    """Focal liver lesions."""
    SPLEEN = 11
    """Spleen."""
    KIDNEY = 12
    """Both kidneys, without the fat of the sinus."""
    GUT = 13
    """Oesophagus, stomach, small bowel and colon: wall, content and gas."""


@dataclass(frozen=True)
class Nodule:
    """A lung nodule.

    Args:
        center_mm: centre in world coordinates, RAS, mm; the voxel there carries ``Label.NODULE``.
        diameter_mm: diameter of the ball that has the volume of the labelled voxels.
        kind: ``"solid"``, ``"part_solid"`` or ``"calcified"``.
        attachment: ``"isolated"``, ``"pleura"`` or ``"vessel"``.
    """

    center_mm: tuple[float, float, float]
    diameter_mm: float
    kind: str
    attachment: str


@dataclass(frozen=True)
class VesselFinding:
    """An embolus in a pulmonary artery, or what looks like one.

    Args:
        center_mm: centre in world coordinates, RAS, mm; that of an embolus lies in it.
        diameter_mm: of an embolus that of the ball of its volume, else that of the artery or the node.
        kind: ``"central"`` or ``"occlusive"`` for emboli, ``"branching"``, ``"node"``, ``"mixing"`` or ``"vessel"``.
    """

    center_mm: tuple[float, float, float]
    diameter_mm: float
    kind: str


@dataclass(frozen=True)
class Lesion:
    """A focal liver lesion.

    Args:
        center_mm: centre in world coordinates, RAS, mm; the voxel there carries ``Label.LESION``.
        diameter_mm: diameter of the ball that has the volume of the labelled voxels.
        kind: ``"metastasis"``, ``"cyst"`` or ``"hypervascular"``.
    """

    center_mm: tuple[float, float, float]
    diameter_mm: float
    kind: str
