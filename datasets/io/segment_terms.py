# SPDX-License-Identifier: Apache-2.0
"""Names of labels to the coded terms that DICOM segmentations carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .json_file import read_json

_ABNORMAL = "SCT:MorphologicallyAbnormalStructure"
_STRUCTURE = "SCT:AnatomicalStructure"

SEGMENT_TERMS: dict[str, tuple[str, ...]] = {
    "liver": (_STRUCTURE, "SCT:Liver"),
    "spleen": (_STRUCTURE, "SCT:Spleen"),
    "pancreas": (_STRUCTURE, "SCT:Pancreas"),
    "left atrium": (_STRUCTURE, "SCT:LeftAtrium"),
    "vessel": (_STRUCTURE, "SCT:BloodVessel"),
    "pz": (_STRUCTURE, "SCT:PeripheralZoneOfTheProstate"),
    "tz": (_STRUCTURE, "SCT:TransitionZoneOfTheProstate"),
    "nodule": (_ABNORMAL, "SCT:Nodule", "SCT:Lung"),
    "tumour": (_ABNORMAL, "SCT:Neoplasm"),
    "cancer": (_ABNORMAL, "SCT:Neoplasm"),
    "colon cancer primaries": (_ABNORMAL, "SCT:Neoplasm", "SCT:Colon"),
    "necrosis": (_ABNORMAL, "SCT:Necrosis", "SCT:Brain"),
    "oedema": (_ABNORMAL, "SCT:Edema", "SCT:Brain"),
    "edema": (_ABNORMAL, "SCT:Edema", "SCT:Brain"),
    "enhancing tumour": (_ABNORMAL, "NCIt:EnhancingLesion", "SCT:Brain"),
    "non-enhancing tumour": (_ABNORMAL, "NCIt:NonEnhancingLesion", "SCT:Brain"),
    "necrosis or non-enhancing tumour": (_ABNORMAL, "SCT:Neoplasm", "SCT:Brain"),
}
"""Category, type and anatomic region of each name, as pydicom's code dictionaries call them: SNOMED CT and NCIt. The
categories are those of DICOM's context group 7150, and all types but the zones of the prostate are in 7151."""


@dataclass(frozen=True)
class SegmentTerm:
    """What a segment shows, in codes.

    Args:
        category: coded category of the property, such as anatomical structure.
        type: coded type of the property, such as liver.
        region: coded part of the body that it lies in, None where the type says it or it is open.
    """

    category: Any
    type: Any
    region: Any = None


def segment_term(name: str, terms: Mapping[str, SegmentTerm] | None = None) -> SegmentTerm:
    """Find the codes for a label's name.

    Args:
        name: the label's name; case does not matter, nor whether tumour is written tumor.
        terms: codes for further names, which count first.

    Returns:
        The codes.

    Raises:
        ValueError: no codes are known for the name.
    """
    key = name.strip().lower()
    for own, term in (terms or {}).items():
        if own.strip().lower() == key:
            return term
    key = key.replace("tumor", "tumour")
    if key not in SEGMENT_TERMS:
        raise ValueError(
            f"no DICOM codes are known for the label {name!r}, only for {', '.join(SEGMENT_TERMS)}: name them in a "
            f'file for --terms, such as {{"{name}": ["SCT:AnatomicalStructure", "SCT:Kidney"]}}'
        )
    return _term(name, SEGMENT_TERMS[key])


def read_terms(path: str | Path) -> dict[str, SegmentTerm]:
    """Read codes for further names.

    Args:
        path: JSON: each name with a list of category, type and, where it is to be told, anatomic region; each as
            ``"scheme:Keyword"`` of pydicom's dictionaries (``pydicom.sr.codedict``), or as ``[code, scheme, meaning]``.

    Returns:
        The codes by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a keyword that pydicom does not know.
    """
    content = read_json(path, "names with their codes")
    return {name: _term(name, entry) for name, entry in content.items()}


def _term(name: str, entry: Any) -> SegmentTerm:
    if not isinstance(entry, (list, tuple)) or len(entry) not in (2, 3):
        raise ValueError(f"{name}: expected category, type and perhaps region, found {entry!r}")
    return SegmentTerm(*(_code(name, each) for each in entry))


def _code(name: str, entry: Any) -> Any:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry):
        return Code(*entry)
    scheme, _, keyword = str(entry).partition(":")
    try:
        return getattr(getattr(codes, scheme), keyword)
    except AttributeError as error:
        raise ValueError(f"{name}: expected scheme:Keyword as in pydicom.sr.codedict, found {entry!r}") from error
