# SPDX-License-Identifier: Apache-2.0
"""Probabilities of single places in a scan, from Python, as a viewer that scores clicked points needs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import ArrayLike, NDArray

from ...datasets.candidates.table import inside, voxels_of
from ...networks import load_pretrained
from ..metrics.calibration import calibrated, read_temperature
from .option_types import convert_option

__all__ = ["CandidateScorer", "CandidateScores", "score_candidates"]


@dataclass(frozen=True)
class CandidateScores:
    """Probabilities of places in a scan.

    Args:
        probability: (N,), NaN where a place could not be scored.
        reason: (N,), why it could not, "" where it was.
    """

    probability: NDArray[np.float64]
    reason: tuple[str, ...]


class CandidateScorer:
    """A classification bundle with its weights, kept ready for one scan after the other.

    The network, the preparation of a scan, the cubes and the inferer are those of the bundle's ``inference.json``.

    Args:
        bundle_root: folder of the bundle.
        ckpt_dir: folder of ``model.pt``, by default ``models`` in the bundle.
        device: where to run, by default as the bundle says.
        temperature: see :func:`~models_genesis.training.read_temperature`.
        overrides: further keys of ``inference.json``, such as ``{"tta_flips": [0, 1, 2]}``.

    Raises:
        FileNotFoundError: when the bundle or its weights are missing.
        ValueError: when the weights do not fit the network, were trained with other settings than the overrides', or
            the bundle has no such key.
    """

    def __init__(
        self,
        bundle_root: str | Path,
        ckpt_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        temperature: float | str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        config = Path(bundle_root) / "configs" / "inference.json"
        weights = Path(ckpt_dir if ckpt_dir is not None else Path(bundle_root) / "models") / "model.pt"
        for path in (config, weights):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: expected a file of a classification bundle, found none")
        content = ConfigParser.load_config_file(str(config))
        parser = ConfigParser(content)
        given = {"bundle_root": str(bundle_root), "ckpt_dir": str(weights.parent), **(overrides or {})}
        if device is not None:
            given["device"] = torch.device(device)
        if unknown := sorted(set(given) - set(content)):
            raise ValueError(f"overrides: expected keys of {config}, found {unknown}")
        parser.update({key: convert_option(key, value, content[key]) for key, value in given.items()})
        parser.get_parsed_content("settings_check", default=None)
        self.device = torch.device(parser.get_parsed_content("device"))
        load_pretrained(parser.get_parsed_content("network_def"), weights, strict=True, need_checksums=True)
        self.network = parser.get_parsed_content("network").eval()
        self.inferer = parser.get_parsed_content("inferer")
        self.prepare = parser.get_parsed_content("preprocessing")
        self.cubes = parser.get_parsed_content("cubes")
        self.batch_size = int(parser.get_parsed_content("eval_batch_size"))
        self.temperature = read_temperature(temperature, weights.parent)
        self._last: tuple[Any, np.ndarray, np.ndarray] | None = None

    def __call__(
        self, image: str | Path, points: ArrayLike, coordinates: Literal["LPS", "RAS"] = "LPS"
    ) -> CandidateScores:
        """Score places in a scan; the scan of the call before is kept prepared.

        Args:
            image: path of the scan, in any format that the bundle reads.
            points: (N, 3) world coordinates, mm.
            coordinates: whether x and y point to the patient's left and back (``"LPS"``: LUNA16, DICOM, ITK) or right
                and front (``"RAS"``: NIfTI, 3D Slicer).

        Returns:
            A probability for each point, in their order.

        Raises:
            ValueError: when the points are not of shape (N, 3), or the coordinates neither LPS nor RAS.
            RuntimeError: when the scan cannot be read.
        """
        if coordinates not in ("LPS", "RAS"):
            raise ValueError(f"coordinates: expected 'LPS' or 'RAS', found {coordinates!r}")
        world = np.array(points, dtype=np.float64)
        if world.ndim != 2 or world.shape[1] != 3:
            raise ValueError(f"points: expected shape (N, 3), found {world.shape}")
        if coordinates == "RAS":
            world *= (-1, -1, 1)
        volume, affine = self._scan(str(image))
        voxels = voxels_of(world, affine)
        finite = np.asarray(np.isfinite(voxels).all(axis=1))
        within = finite & inside(np.where(finite[:, None], voxels, -1e9), volume.shape[1:])
        probability = np.full(len(world), np.nan)
        chosen = np.flatnonzero(within)
        for rows in np.array_split(chosen, -(-len(chosen) // self.batch_size)) if len(chosen) else []:
            probability[rows] = calibrated(self._logits(volume, affine, voxels[rows]), *self.temperature)
        reasons = (
            "" if ok else "outside its scan" if real else "bad coordinate"
            for ok, real in zip(within, finite, strict=True)
        )
        return CandidateScores(probability, tuple(reasons))

    def _scan(self, image: str) -> tuple[np.ndarray, np.ndarray]:
        fingerprint = (image, Path(image).stat().st_mtime_ns if Path(image).exists() else None)
        if self._last is None or self._last[0] != fingerprint:
            self._last = None  # two scans need not be in memory at once
            prepared = self.prepare({"image": image})["image"]
            self._last = (
                fingerprint,
                np.asarray(prepared.as_tensor().numpy()),
                np.asarray(prepared.affine, dtype=np.float64),
            )
        return self._last[1:]

    def _logits(self, volume: np.ndarray, affine: np.ndarray, voxels: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        items = [self.cubes({"image": volume, "image_affine": affine, "center": voxel}) for voxel in voxels]
        batch = torch.stack([torch.as_tensor(item["image"]) for item in items]).to(self.device)
        with torch.no_grad():
            return np.asarray(self.inferer(batch, self.network).cpu().numpy()[:, 0], dtype=np.float64)


def score_candidates(
    bundle_root: str | Path,
    image: str | Path,
    points: ArrayLike,
    coordinates: Literal["LPS", "RAS"] = "LPS",
    **options: Any,
) -> CandidateScores:
    """Score places in one scan by a classification bundle.

    For many scans keep a :class:`CandidateScorer`, which loads the weights once.

    Args:
        bundle_root: folder of the bundle.
        image: path of the scan.
        points: (N, 3) world coordinates, mm.
        coordinates: ``"LPS"`` or ``"RAS"``.
        options: those of :class:`CandidateScorer`.

    Returns:
        A probability for each point, in their order, and why one is missing.
    """
    return CandidateScorer(bundle_root, **options)(image, points, coordinates)
