# SPDX-License-Identifier: Apache-2.0
"""The codes of segments are those of DICOM's own lists."""

from __future__ import annotations

import json

import pytest

from models_genesis.datasets.io.segment_terms import SEGMENT_TERMS, read_terms, segment_term

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


KIDNEY = ["SCT:AnatomicalStructure", "SCT:Kidney"]


def test_terms_of_a_file_are_keywords_or_codes_of_three_parts(tmp_path) -> None:
    written = {"kidney": KIDNEY, "cyst": [*KIDNEY, ["T-71000", "SRT", "Kidney"]]}
    (tmp_path / "terms.json").write_text(json.dumps(written))
    terms = read_terms(tmp_path / "terms.json")
    assert terms["kidney"].category == codes.SCT.AnatomicalStructure
    assert terms["kidney"].type == codes.SCT.Kidney and terms["kidney"].region is None
    region = terms["cyst"].region
    assert (region.value, region.scheme_designator, region.meaning) == ("T-71000", "SRT", "Kidney")
    assert segment_term("Kidney", terms) == terms["kidney"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (KIDNEY[:1], "kidney: expected category, type and perhaps region, found"),
        ([*KIDNEY, *KIDNEY], "kidney: expected category, type and perhaps region, found"),
        ("SCT:Kidney", "kidney: expected category, type and perhaps region, found"),
        ([*KIDNEY[:1], "SCT:Kidnee"], "kidney: expected scheme:Keyword .*, found 'SCT:Kidnee'"),
        ([*KIDNEY[:1], "Kidney"], "kidney: expected scheme:Keyword .*, found 'Kidney'"),
        ([*KIDNEY[:1], ["T-71000", "SRT"]], "kidney: expected scheme:Keyword"),
        ([*KIDNEY[:1], ["T-71000", "SRT", "Kidney", "2020"]], "kidney: expected scheme:Keyword"),
        ([*KIDNEY[:1], [71000, "SRT", "Kidney"]], "kidney: expected scheme:Keyword"),
    ],
)
def test_terms_of_a_file_that_say_something_else_are_refused(entry, message, tmp_path) -> None:
    (tmp_path / "terms.json").write_text(json.dumps({"kidney": entry}))
    with pytest.raises(ValueError, match=message):
        read_terms(tmp_path / "terms.json")
