# SPDX-License-Identifier: Apache-2.0
"""Noise has unit variance and the spectrum of CT."""

from __future__ import annotations

import numpy as np
import pytest

from models_genesis.datasets.phantom.texture import ct_noise, lattice_noise, stream


def test_noise_fields_have_unit_variance_and_the_spectrum_of_ct() -> None:
    axes = [np.arange(64, dtype=np.float32) * 2 for _ in range(3)]
    field = lattice_noise(axes, 6.0, stream(0, "test"))
    # About (128 / 6)^3 = 9,700 lattice nodes: the variance is known to 1.5 %, allow six times that.
    assert field.var() == pytest.approx(1, abs=0.09)
    noise = ct_noise((64, 64, 48), (2, 2, 2), 2.0, stream(0, "grain"))
    assert noise.var() == pytest.approx(1, abs=1e-3)
    power = (np.abs(np.fft.fftn(noise, axes=(0, 1))) ** 2).mean(axis=2)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
    bands = ((0, 0.03), (0.1, 0.2), (0.45, 0.6))
    low, middle, high = (power[(frequency > a) & (frequency < b)].mean() for a, b in bands)
    assert middle > 1.3 * low and middle > 2 * high, "ramp filter, then roll-off"
    assert 0.2 < (noise[:, :, 1:] * noise[:, :, :-1]).mean() < 0.95, "neighbouring slices share noise"
