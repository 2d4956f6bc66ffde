# SPDX-License-Identifier: Apache-2.0
"""What of a bundle's metadata follows from its configs and weights: channels, label names, modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from ...transforms.brats_regions import BRATS_REGIONS, brats_labels

__all__ = ["brats_names", "describe_channels"]

FORMATS = {"CT": "hounsfield", "MR": "magnitude"}
"""What the model zoo calls the values of a modality."""


def describe_channels(inference: Mapping[str, Any], metadata: dict[str, Any]) -> None:
    """Write the modality, the channels of the network and the labels of its label map into the metadata.

    Args:
        inference: content of ``inference.json`` of a segmentation.
        metadata: content of ``metadata.json``, which is changed. MONAI Label takes the names of a label map's values
            from the ``channel_def`` of the output.
    """
    parser = ConfigParser(dict(inference))
    channels = {side: int(parser.get_parsed_content(f"{side}_channels")) for side in ("in", "out")}
    labels = {int(value): str(name) for value, name in parser.get_parsed_content("labels").items()}
    if "targets" in inference:
        labels = brats_names(parser.get_parsed_content("convention"), parser.get_parsed_content("targets"), labels)
    else:
        labels = {value: name for value, name in labels.items() if value < channels["out"]}
    image, pred = (
        metadata["network_data_format"][side][key] for side, key in (("inputs", "image"), ("outputs", "pred"))
    )
    modality = parser.get_parsed_content("modality") if "modality" in inference else None
    if modality in FORMATS:
        image["modality"], image["format"] = modality, FORMATS[modality]
    image["num_channels"], pred["num_channels"] = channels["in"], channels["out"]
    named = {str(value): name for value, name in sorted(labels.items())}
    if named != pred["channel_def"]:
        pred["channel_def"] = named
        metadata["pred_classes"] = ", ".join(f"{value} {name}" for value, name in named.items())


def brats_names(convention: str, targets: Sequence[str], labels: Mapping[int, str]) -> dict[int, str]:
    """Name the values of the label map that nested BraTS regions are merged to.

    Args:
        convention: what the labels mean.
        targets: the regions that are predicted, from the outside inwards.
        labels: names of all values of the convention.

    Returns:
        Names by value; those of the regions where some are not predicted, for their voxels are in others then.

    Example:
        >>> brats_names("2018", ["whole tumour"], {1: "necrosis", 2: "oedema", 4: "enhancing tumour"})
        {0: 'background', 2: 'whole tumour'}
    """
    count = len(targets)
    nested = np.triu(np.ones((count, count + 1), np.uint8), 1).reshape(count, 1, 1, count + 1)
    values = [int(value) for value in np.ravel(brats_labels(nested, convention, targets))]
    names = [labels[value] for value in values[1:]] if count == len(BRATS_REGIONS) else list(targets)
    return dict(zip(values, ["background", *names], strict=True))
