# SPDX-License-Identifier: Apache-2.0
"""The card of a packed bundle: its README with the sections that the model zoo's template asks for.

What all cards have alike is put in here, from the metadata, ``docs/data_license.txt`` and ``large_files.json``, so that
it cannot differ from them. The zoo drops ``large_files.json`` when it publishes a bundle, and the card is what remains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pins import PYTHONS

TAGS = {
    "genesis_brats_mri_segmentation": ("Segmentation", "MR", "Brain", "Tumour"),
    "genesis_chest_ct_pretraining": ("Pretraining", "CT", "Chest"),
    "genesis_lidc_nodule_ct_segmentation": ("Segmentation", "CT", "Lung", "Nodule"),
    "genesis_lits_liver_ct_segmentation": ("Segmentation", "CT", "Liver"),
    "genesis_luna16_nodule_ct_classification": ("Classification", "False-Positive Reduction", "CT", "Lung", "Nodule"),
    "genesis_msd_segmentation": ("Segmentation", "CT", "MR", "Medical Segmentation Decathlon"),
    "genesis_pecad_embolism_ct_classification": ("Classification", "False-Positive Reduction", "CT", "Embolism"),
}

HEADINGS = {"Commands": "MONAI Bundle Commands", "What was measured": "Performance"}
"""Headings of ours, and what the zoo's template calls them."""

SYSTEM = """## System Configuration

Linux on x86-64, Python {first} to {last}, the packages pinned in `configs/metadata.json`. A GPU is used where there is
one, several by the `multi_gpu_*` configs; everything also runs on a processor, on which training the default network
is slow. What was trained on what, and for how long, is told with the numbers.

#### TensorRT

Not supported: TensorRT models were never exported or run, and there is no `inference_trt.json`. TorchScript
(`python -m monai.bundle ckpt_export`) is tested.
"""

LICENSE = """## License

{copyright}. Code and configs: Apache License 2.0, see `LICENSE`. Data, and weights
trained on them, have terms of their own:

{data}
"""

SEPARATE = "- {description} (`{path}`, not enclosed). Licence: {licence}. {page}"


WEIGHTS = "- `models/model.pt`, enclosed, was trained on data with the licence: {licence}."


def zoo_card(
    readme: str,
    name: str,
    metadata: Mapping[str, Any],
    data_license: str,
    separate: Sequence[Mapping[str, str]] = (),
    weights_license: str = "",
) -> str:
    """Give a card the form of the zoo's template.

    Args:
        readme: the README of the packed bundle.
        name: the bundle.
        metadata: its metadata.
        data_license: the text of ``docs/data_license.txt``.
        separate: what ``large_files.json`` lists as licensed separately.
        weights_license: licence of the data that enclosed weights were trained on.

    Raises:
        ValueError: when the README has not the headings that it must have, or the bundle has no tags.
    """
    if name not in TAGS:
        raise ValueError(f"bundles/card.py: expected {name} in TAGS, found {', '.join(TAGS)}")
    for heading in ("Data", "Limits", "References", *HEADINGS):
        if readme.count(f"\n## {heading}\n") != 1:
            raise ValueError(f"{name}/docs/README.md: expected one heading '## {heading}'")
    if any(f"\n## {heading}\n" in readme for heading in ("System Configuration", "License")):
        raise ValueError(f"{name}/docs/README.md: expected no heading that packing adds")
    title, _, text = readme.partition("\n")
    for ours, theirs in HEADINGS.items():
        text = text.replace(f"\n## {ours}\n", f"\n## {theirs}\n")
    system = SYSTEM.format(first=PYTHONS[0], last=PYTHONS[-1])
    text = text.replace("\n## Limits\n", f"\n{system}\n## Limits\n")
    tags = ", ".join((*TAGS[name], "Self-Supervised", "Models Genesis"))
    top = f"{title}\n\n### **Authors**\n\n{metadata['authors']}\n\n### **Tags**\n\n{tags}\n\n## Model Description\n"
    terms = [WEIGHTS.format(licence=weights_license)] if weights_license else []
    terms += [SEPARATE.format(**each) for each in separate]
    data = "\n\n".join([data_license.rstrip(), *terms])
    return top + text.rstrip() + "\n\n" + LICENSE.format(copyright=metadata["copyright"], data=data)
