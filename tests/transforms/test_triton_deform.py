# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels without a GPU: they compile for one, and Triton's interpreter runs them on small images.

Their distributions are compared with the reference in ``test_batch_deform.py``, which needs a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models_genesis.transforms import bezier_map
from models_genesis.transforms.voxel_kinds import MAPPED, PAINTED, SHUFFLED

pytest.importorskip("triton", reason="Triton is not installed; it comes with torch for CUDA")

NdArray = np.ndarray[Any, Any]
SHAPE = (16, 18, 14)
POINTS = [(0.2, 0.9, 0.7, 0.1), (0.0, 1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0), (0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 0.0, 0.0)]

INTERPRETED = """
import numpy as np, sys, torch, triton, triton.language as tl
from models_genesis.transforms import BatchGenesisDeform
from models_genesis.transforms.triton_deform import _bezier

@triton.jit
def curve(points, values, results, N: tl.constexpr):
    lane = tl.arange(0, N)
    value = tl.load(values + lane)
    mapped = _bezier(tl.load(points), tl.load(points + 1), tl.load(points + 2), tl.load(points + 3), value)
    tl.store(results + lane, mapped)

found = {}
values = torch.linspace(0, 1, 1024, dtype=torch.float64)
for number, corner in enumerate(POINTS):
    mapped = torch.empty_like(values)
    curve[(1,)](torch.tensor(corner, dtype=torch.float64), values, mapped, 1024)
    found[f"curve{number}"] = mapped.numpy()

index = torch.arange(SHAPE[0] * SHAPE[1] * SHAPE[2], dtype=torch.int32).reshape(1, 1, *SHAPE)
images = torch.cat([index, index.max() - index], dim=1).repeat(3, 1, 1, 1, 1)
span = {"intensity_range": (0, int(index.max())), "output_range": (0, 1), "num_blocks": 12, "backend": "triton"}
deform = BatchGenesisDeform(shuffle_prob=1, seed=5, max_block_fraction=0.25, record_kinds=True, **span)
found["deformed"], found["target"] = (result.numpy() for result in deform(images))
found["kinds"] = deform.kinds.numpy()
again = BatchGenesisDeform(shuffle_prob=1, seed=5, max_block_fraction=0.25, **span)(images)[0].numpy()
found["again"] = again

line = torch.arange(8, dtype=torch.int16).reshape(1, 1, 8).repeat(6, 1, 1)
one = BatchGenesisDeform("shuffle", flip_prob=0, shuffle_prob=1, num_blocks=1, max_block_fraction=1.0, seed=2,
                         intensity_range=(0, 7), output_range=(0, 7), backend="triton")
found["line"] = one(line)[0].numpy()
np.savez(sys.argv[1], **found)
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
import models_genesis.transforms.triton_deform as kernels

NUMBERS = "voxels channels X Y Z side_x side_y side_z axis0 axis1 axis2 num_axes".split()
RATES = "flip_prob shuffle_prob nonlinear_prob reverse_prob paint_prob out_paint_prob low high out_low out_high".split()
TYPES = {"keys": "*i64", "numbers": "*i32", "points": "*fp64", "owner": "*i32", "source": "*i32", "images": "*i16",
         "deformed": "*fp32", "target": "*fp32", "kinds": "*u8", **dict.fromkeys(NUMBERS, "i32"),
         **dict.fromkeys(RATES, "fp32")}

for name, constants, warps in (
    ("_draw_parameters", {"MAX_FLIPS": 3, "AHEAD": 0}, 1),
    ("_draw_parameters", {"MAX_FLIPS": 3, "AHEAD": 2, "X": 1, "Y": 1, "num_axes": 1}, 1),
    ("_mark_blocks", {"LANES": 128}, 1),
    ("_permute_blocks", {"LANES": 128}, 1),
    ("_permute_blocks", {"LANES": 1024}, 8),
    ("_render", {"SHUFFLES": True, "KINDS": True, "VOXELS": 1024}, 4),
):
    kernel = getattr(kernels, name)
    signature = {each: "constexpr" if each in constants else TYPES[each] for each in kernel.arg_names}
    places = {(kernel.arg_names.index(each),): value for each, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    print(name, "cubin", len(made.asm["cubin"]))
"""


def run(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    script = folder / "script.py"  # Triton reads a kernel's source from its file
    script.write_text(code.replace("POINTS", repr(POINTS)).replace("SHAPE", repr(SHAPE)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    # sm_90: an H100's machine code, made by the assembler that Triton brings
    printed = run(COMPILED, tmp_path, TRITON_CACHE_DIR=str(tmp_path))
    assert printed.count("cubin") == 6


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NdArray]:
    """What the kernels give when Triton interprets them; it must be told before it is imported."""
    folder = tmp_path_factory.mktemp("triton")
    run(INTERPRETED, folder, str(folder / "found.npz"), TRITON_INTERPRET="1")
    with np.load(folder / "found.npz") as found:
        return dict(found)


def test_the_curve_is_the_bezier_curve(interpreted: dict[str, NdArray]) -> None:
    values = np.linspace(0, 1, 1024)
    for number, (x1, y1, x2, y2) in enumerate(POINTS):
        # fifty halvings leave 2**-51 of the parameter; the curve's slope there is at most 3
        expected = bezier_map(values, ((x1, y1), (x2, y2)))
        bound = 2e-5 if x1 == x2 == 0 or x1 > x2 else 1e-9  # the reference itself, where the tangent is vertical
        assert np.abs(interpreted[f"curve{number}"] - expected).max() < bound


def test_the_chain_flips_shuffles_maps_and_paints(interpreted: dict[str, NdArray]) -> None:
    voxels = int(np.prod(SHAPE))
    index = np.arange(voxels).reshape(SHAPE)
    for deformed, target, (kinds,) in zip(
        interpreted["deformed"], interpreted["target"], interpreted["kinds"], strict=True
    ):
        original = (target[0] * (voxels - 1)).round().astype(int)
        flips = [index[tuple(slice(None, None, step) for step in (a, b, c))]
                 for a in (1, -1) for b in (1, -1) for c in (1, -1)]  # fmt: skip
        assert sum(np.array_equal(original, flip) for flip in flips) == 1
        assert np.allclose(target[1], 1 - target[0], atol=1e-6)
        shown = kinds != PAINTED
        assert deformed.min() >= 0 and deformed.max() <= 1
        # channels hold a value and its complement: a curve at both of a pair, and the same voxel of both
        order = target[0][kinds == MAPPED].argsort()
        for channel in deformed:
            steps = np.diff(channel[kinds == MAPPED][order])
            assert (steps >= -1e-6).all() or (steps <= 1e-6).all()
        # a shuffled voxel shows another one of its block: some voxel that is near
        pairs = dict(zip(deformed[0][kinds == MAPPED].tolist(), target[0][kinds == MAPPED].tolist(), strict=True))
        moved = np.argwhere(kinds == SHUFFLED)
        assert len(moved) == 0 or shown.any()
        for place in moved[:50]:
            value = pairs.get(float(deformed[0][tuple(place)]))
            if value is None:
                continue
            (there,) = np.argwhere(original == round(value * (voxels - 1)))
            assert (np.abs(there - place) < [max(1, side // 4) for side in SHAPE]).all()


def test_the_seed_decides_and_recording_kinds_changes_nothing(interpreted: dict[str, NdArray]) -> None:
    assert np.array_equal(interpreted["again"], interpreted["deformed"])


def test_one_block_is_permuted_within_itself(interpreted: dict[str, NdArray]) -> None:
    rows = interpreted["line"].reshape(6, 8).round().astype(int)
    for row in rows:
        assert sorted(row) == list(range(8))
    assert any((row != np.arange(8)).any() for row in rows)
