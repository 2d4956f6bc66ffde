# SPDX-License-Identifier: Apache-2.0
"""Clicked points in, a probability for each out: the classification bundles in a viewer."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import Writer
from monailabel.utils.others.generic import device_list, name_to_device

from models_genesis.datasets import ScanHeader, read_scan_header
from models_genesis.training import CandidateScorer

logger = logging.getLogger(__name__)


class PointScoreTask(InferTask):
    """Scores clicked points with a classification bundle.

    A request has its points as 3D Slicer's module sends them, voxel indices ``[i, j, k]`` of the scan, under the name
    of the model's label, ``"foreground"`` or ``"points"``; or under ``"points_ras"``, mm in RAS. The result has
    ``points``, a list with the ``voxel``, ``ras``, ``probability`` and ``reason`` of each (no probability where there
    is a reason); ``prediction`` and ``label_names``, where each point's label carries its probability in its name; and
    a label map with a ball at each point, its value that of ``label_names``, so that a viewer shows the probabilities
    as names of segments.

    Args:
        path: folder of the bundle, called ``..._FINDING_ct_classification``; the label is called as the finding.
        radius: radius of the balls, in mm.
    """

    def __init__(self, path: Path, radius: float = 4.0) -> None:
        metadata = json.loads((path / "configs" / "metadata.json").read_text(encoding="utf-8"))
        named = re.search(r"_([a-z]+)_[a-z]+_classification$", path.name)
        self.label = named[1] if named else "finding"
        # of MONAI Label's types this is the one whose points and names of labels 3D Slicer hands on
        super().__init__(InferType.DEEPEDIT, {self.label: 1}, 3, metadata["description"], {"device": device_list()})
        self.weights = path / "models" / "model.pt"
        self.path = path
        self.radius = radius
        self._scorer: tuple[Any, CandidateScorer] | None = None

    def is_valid(self) -> bool:
        """Tell whether the bundle has weights."""
        return self.weights.is_file()

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Score the points of a request.

        Args:
            request: see the class; also ``image``, path of the scan, and ``device``.

        Returns:
            Path of the label map, None for a folder of DICOM files, and the result.

        Raises:
            HTTPException: 400, when there is no point or one is malformed.
        """
        start = time.monotonic()
        header = read_scan_header(request["image"])
        voxels = self.voxels(request, header)
        world = voxels @ header.affine[:3, :3].T + header.affine[:3, 3]
        scores = self.scorer(name_to_device(request.get("device", "cuda")))(request["image"], world, coordinates="RAS")
        points, names = [], {}
        rows = zip(voxels.tolist(), world.tolist(), scores.probability, scores.reason, strict=True)
        for number, (voxel, ras, probability, reason) in enumerate(rows, 1):
            known = None if np.isnan(probability) else float(probability)
            points.append({"voxel": voxel, "ras": ras, "probability": known, "reason": reason})
            answer = reason if known is None else f"{known:.3f}"
            names[f"{self.label} {answer} ({number})"] = number
        result = {
            "points": points,
            "prediction": [
                {"idx": number, "label": name, "score": point["probability"]}
                for (name, number), point in zip(names.items(), points, strict=True)
            ],
            "label_names": names,
            "latencies": {"total": round(time.monotonic() - start, 2)},
        }
        logger.info("%s: %s", request["image"], list(names))
        return self.write(request, header, voxels), result

    def scorer(self, device: str) -> CandidateScorer:
        """Give the bundle with its weights, which are read again when they have changed."""
        mark = (device, self.weights.stat().st_mtime_ns)
        if self._scorer is None or self._scorer[0] != mark:
            self._scorer = (mark, CandidateScorer(self.path, device=device))
        return self._scorer[1]

    def voxels(self, request: dict[str, Any], header: ScanHeader) -> np.ndarray:
        """Find the points of a request.

        Args:
            request: see the class.
            header: of the scan.

        Returns:
            (N, 3), voxel indices, which need not be whole.

        Raises:
            HTTPException: 400, when there is no point or one is malformed.
        """
        given = {key: request[key] for key in (self.label, "foreground", "points", "points_ras") if request.get(key)}
        if len(given) != 1:
            expected = f"points under one of {self.label!r}, 'foreground', 'points' or 'points_ras'"
            raise HTTPException(400, f"expected {expected}, found {list(given) or 'none'}")
        ((key, value),) = given.items()
        try:
            points = np.array(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise HTTPException(400, f"{key}: expected a list of three numbers each, found {value}") from error
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise HTTPException(400, f"{key}: expected a list of three finite numbers each, found {value}")
        if key != "points_ras":
            return points
        return np.linalg.solve(header.affine, np.column_stack([points, np.ones(len(points))]).T).T[:, :3]

    def write(self, request: dict[str, Any], header: ScanHeader, voxels: np.ndarray) -> str | None:
        """Write the label map, see the class; None for a folder of DICOM files."""
        if Path(request["image"]).is_dir():
            return None
        label = draw_balls(header.shape, header.affine, voxels, self.radius)
        data = {**request, "pred": label, "pred_meta_dict": {"affine": header.affine}, "image_path": request["image"]}
        return Writer(label="pred")(data)[0]


def draw_balls(shape: Sequence[int], affine: np.ndarray, voxels: np.ndarray, radius: float) -> np.ndarray:
    """Draw a ball at each point, of the value 1 for the first point; of balls that overlap the last is whole.

    Args:
        shape: voxels along each axis.
        affine: ``(4, 4)``, voxels to mm.
        voxels: (N, 3), voxel indices; what is outside is not drawn.
        radius: in mm; the voxel that a point is in is drawn in any case.

    Returns:
        The label map, uint8, uint16 for more than 255 points.

    Example:
        >>> draw_balls((5, 1, 1), np.diag([2.0, 2, 2, 1]), np.array([[1.0, 0, 0]]), 2.0).ravel().tolist()
        [1, 1, 1, 0, 0]
    """
    label = np.zeros(tuple(shape), np.uint8 if len(voxels) < 256 else np.uint16)
    # a ball of this radius in mm reaches no further than so many voxels along each axis of the scan
    reach = radius * np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1) + 1
    for number, voxel in enumerate(voxels, 1):
        low = np.clip(np.floor(voxel - reach), 0, label.shape).astype(int)
        high = np.clip(np.ceil(voxel + reach) + 1, 0, label.shape).astype(int)
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1)
        distance = np.linalg.norm((grid - voxel) @ affine[:3, :3].T, axis=-1)
        inside = (distance <= radius) | (np.round(voxel) == grid).all(-1)
        label[window][inside] = number
    return label
