# SPDX-License-Identifier: Apache-2.0
"""The codes of segments are those of DICOM's own lists."""

from __future__ import annotations

import pytest

from models_genesis.datasets.io.segment_terms import SEGMENT_TERMS, segment_term

pytest.importorskip("pydicom")
from pydicom.sr.codedict import codes

# SNOMED CT, and the NCI Thesaurus for the two with a C; written out, so that no keyword can come to mean another code.
KNOWN = {
    "liver": "10200004",
    "spleen": "78961009",
    "pancreas": "15776009",
    "left atrium": "82471001",
    "nodule": "27925004",
    "tumour": "108369006",
    "necrosis": "6574001",
    "oedema": "79654002",
    "enhancing tumour": "C113842",
    "non-enhancing tumour": "C81175",
}


@pytest.mark.parametrize("name", SEGMENT_TERMS)
def test_every_term_is_of_the_lists_that_dicom_gives(name: str) -> None:
    term = segment_term(name)
    assert term.category in codes.cid7150.concepts.values()
    if name not in ("pz", "tz"):
        assert term.type in codes.cid7151.concepts.values()
    assert term.type.scheme_designator == ("NCIt" if term.type.value.startswith("C") else "SCT")
    assert term.type.value == KNOWN.get(name, term.type.value)
    abnormal = term.category.value == "49755003"
    assert abnormal == (name not in ("liver", "spleen", "pancreas", "left atrium", "vessel", "pz", "tz"))
    assert term.region is None or abnormal


def test_spelling_and_case_do_not_matter() -> None:
    assert segment_term(" Non-Enhancing Tumor") == segment_term("non-enhancing tumour")
    assert segment_term("liver", {"Liver": segment_term("spleen")}) == segment_term("spleen")
    with pytest.raises(ValueError, match="no DICOM codes are known for the label 'kidney', only for liver, spleen"):
        segment_term("kidney")
