# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of segmenting one large CT, and the share of the windows' forward passes in it.

    python -m benchmarks.whole_scan [--quick] [--out results.json] [--shape 512 512 400] [--overlap 0.5]
        [--features 64 128 256 512] [--torchscript]

The configuration of the liver bundle's ``inference.json`` from reading the file to writing label map and picture, on a
CT of tiled phantoms, with random weights. Processor time does not count what others use of a busy machine.
"""

from __future__ import annotations

import logging
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import nn

from models_genesis.datasets import make_phantom
from models_genesis.networks import GenesisUNet, save_weights

from .measure import parse_arguments, print_machine, print_table, write_results

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "genesis_lits_liver_ct_segmentation"


class ForwardClock(nn.Module):
    """Runs a network, a TorchScript one too, and keeps the seconds in it, by the wall's clock and the processor's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = self.windows = 0
        self.seconds = {"wall": 0.0, "processor": 0.0}

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Run the network and note the time."""
        started = read_clocks()
        output: torch.Tensor = self.network(inputs)
        if output.is_cuda:
            torch.cuda.synchronize()
        self.calls += 1
        self.windows += len(output)
        for name, now in read_clocks().items():
            self.seconds[name] += now - started[name]
        return output


def read_clocks() -> dict[str, float]:
    """The time by the wall and of this process on all its processors."""
    return {"wall": time.perf_counter(), "processor": time.process_time()}


def resident_gib() -> float:
    """The most memory that this process had resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_scan(path: Path, shape: tuple[int, ...]) -> None:
    """Write a CT of phantoms next to one another, int16."""
    tile = tuple(min(128, side) for side in shape)
    phantom = make_phantom(0, region="abdomen", shape=tile)
    counts = [-(-side // part) for side, part in zip(shape, tile, strict=True)]
    image = np.tile(phantom.image, counts)[tuple(slice(side) for side in shape)]
    nib.save(nib.Nifti1Image(image, np.diag([0.7, 0.7, 1.0, 1.0])), path)


TORCHSCRIPT = {
    "network_def": "$torch.jit.load(@ckpt_dir + '/model.ts', map_location=@device)",
    "handlers#0#_disabled_": True,
}
"""What ``docs/formats.md`` lays over the bundle to predict with TorchScript."""


def segment(folder: Path, features: list[int], overlap: float, torchscript: bool = False) -> dict[str, Any]:
    """Run ``inference.json`` on the scan in a folder."""
    network = GenesisUNet(features=features, out_channels=2)
    save_weights(network.state_dict(), folder / "model.pt")
    parser = ConfigParser(ConfigParser.load_config_file(BUNDLE / "configs" / "inference.json"))
    paths = {"dataset_dir": folder / "scans", "ckpt_dir": folder, "output_dir": folder / "predicted"}
    parser.update({name: str(path) for name, path in paths.items()} | {"features": features, "overlap": overlap})
    if torchscript:
        torch.jit.script(network.eval()).save(str(folder / "model.ts"))
        parser.update(TORCHSCRIPT)
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.network = clock = ForwardClock(evaluator.network)
    before, start = resident_gib(), read_clocks()
    evaluator.run()
    seconds = {name: now - start[name] for name, now in read_clocks().items()}
    return {
        "windows": clock.windows,
        "seconds": seconds,
        "seconds_in_windows": clock.seconds,
        "share_of_windows": {name: clock.seconds[name] / seconds[name] for name in seconds},
        "resident_gib_before": before,
        "resident_gib_peak": resident_gib(),
        "gpu_gib_peak": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "precision": str(parser.get_parsed_content("precision")),
    }


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(
        "Time and memory of segmenting one large CT.",
        ("--shape", {"type": int, "nargs": 3, "default": [512, 512, 400], "help": "voxels"}),
        ("--features", {"type": int, "nargs": "+", "default": [64, 128, 256, 512], "help": "of the network"}),
        ("--overlap", {"type": float, "default": 0.5, "help": "of the windows"}),
        ("--torchscript", {"action": "store_true", "help": "the network as a TorchScript file"}),
    )
    shape, features = arguments.shape, arguments.features
    if arguments.quick:
        shape, features = [96, 80, 48], [8, 16]
    logging.basicConfig(level=logging.WARNING)
    results: dict[str, Any] = {"machine": print_machine(), "shape": shape, "features": features}
    results |= {"overlap": arguments.overlap, "torchscript": arguments.torchscript}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "scans").mkdir()
        write_scan(Path(name) / "scans" / "scan.nii", tuple(shape))
        results |= segment(Path(name), features, arguments.overlap, arguments.torchscript)
    seconds, inside, share = (results[name] for name in ("seconds", "seconds_in_windows", "share_of_windows"))
    rows = [(clock, seconds[clock], inside[clock], 100 * share[clock]) for clock in seconds]
    title = f"{' x '.join(map(str, shape))}, {results['windows']} windows, {results['precision']}"
    print_table(title, ("clock", "s", "s in windows", "% in windows"), rows)
    print(f"resident at most {results['resident_gib_peak']:.2f} GiB, before {results['resident_gib_before']:.2f} GiB")
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
