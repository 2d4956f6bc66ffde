# SPDX-License-Identifier: Apache-2.0
"""What runs of bundles are given and leave, for several files of tests."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import torch


def folders(folder: Path) -> dict[str, Path]:
    """Overrides for what a run leaves: results in ``eval``, weights in ``models``."""
    return {"output_dir": folder / "eval", "ckpt_dir": folder / "models"}


def history(folder: Path) -> list[tuple[str, str, str]]:
    """Epoch, loss and metric of each epoch that a training has done with those :func:`folders`."""
    with (folder / "eval" / "history.csv").open() as file:
        return [(row["epoch"], row["train_loss"], row["val_metric"]) for row in csv.DictReader(file)]


def losses(folder: Path) -> list[float]:
    """Loss and metric of each epoch, one after another, of a training with those :func:`folders`."""
    return [float(value) for _, *values in history(folder) for value in values]


def assert_same_end(one: Path, other: Path) -> None:
    """Two trainings with those :func:`folders` have the same history and leave the same weights, bit by bit."""
    assert history(one) == history(other)
    states = [torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def assert_restored(folder: Path, scans: Path) -> None:
    """One scan of CT was deformed and restored, in its own space; the restored one is much nearer to it.

    That proves orientation and scale of both.

    Args:
        folder: where inference has written them.
        scans: folder of the original, a NIfTI file in HU.
    """
    (restored,) = folder.glob("*/*_restored.nii.gz")
    (deformed,) = folder.glob("*/*_deformed.nii.gz")
    original = nib.load(scans / f"{restored.parent.name}.nii.gz")
    hu = np.clip(original.get_fdata(), -1000, 1000)
    errors = []
    for path in (restored, deformed):
        image = nib.load(path)
        assert image.shape == original.shape and image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.affine, original.affine, atol=1e-4)
        assert np.abs(image.get_fdata()).max() <= 1000
        errors.append(np.mean((image.get_fdata() - hu) ** 2))
    assert errors[0] < 0.7 * errors[1]
