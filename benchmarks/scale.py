# SPDX-License-Identifier: Apache-2.0
"""What a pretraining on many scans and many GPUs would take, computed from what was measured on few.

    python -m benchmarks.scale [--readers readers.json] [--charts docs]

Prints the table of ``docs/scale.md``. Nothing here is measured: :class:`Measured` holds figures of other benchmarks,
with their places, :class:`Assumed` all that nobody has measured here. ``--readers`` takes results of ``python -m
benchmarks.store --readers 1 2 4`` for the chart of those.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CASES", "Assumed", "Case", "Measured", "Plan", "daly_interval", "plan", "simulate_efficiency", "table"]


@dataclass(frozen=True)
class Measured:
    """Figures of ``docs/performance.md`` and ``docs/how-to/``, of the paper's network and cubes of 64x64x32."""

    cubes_per_second: float = 259.0  # one H100, batch 6, --deform_on step ("On a GPU")
    step_seconds: float = 0.0232  # the same
    parameters: int = 19_073_665
    save_seconds: float = 0.4  # network and optimizer to a local disk ("long runs")
    store_cubes_per_core: float = 504.0  # read from a store, warm ("Store")
    deform_seconds: float = 0.00087  # of a core, compiled ("Deformations on the CPU")
    requested_per_byte: float = 2.04  # bytes read for a cube's byte ("Store")
    index_bytes: int = 40_000  # index of a scan of 512 x 512 x 300, read for each cube ("Store")
    chunks_per_cube: int = 17  # ("large corpora")
    store_share: float = 0.549  # bytes of a store for each byte of int16 ("Store")
    order_bytes: int = 16  # of a cube, while the order of an epoch is drawn: two int64 (EpochSampler)


@dataclass(frozen=True)
class Assumed:
    """What was not measured here."""

    shape: tuple[int, int, int] = (512, 512, 300)
    cubes_per_scan: int = 32
    epochs: int = 100
    gpus_per_node: int = 8
    node_bytes_per_second: float = 25e9  # a network of 200 Gbit/s a machine
    network_share: float = 0.7  # of which an all-reduce gets so much
    hidden_share: float = 0.5  # of a step, behind which gradients are exchanged
    jitter: float = 0.03  # standard deviation of a step's time, each GPU's own
    gpu_mtbf_hours: float = 50_700.0  # 419 failures of 16,384 GPUs in 54 days (arXiv:2407.21783, section 3.3.4)
    restart_seconds: float = 300.0
    dollars_per_gpu_hour: float = 3.0


class Case(NamedTuple):
    """So many scans on so many GPUs."""

    scans: int
    gpus: int


CASES = (Case(10_000, 8), Case(100_000, 64), Case(1_000_000, 64), Case(1_000_000, 512))


class Plan(NamedTuple):
    """What a training takes.

    Attributes:
        raw_bytes, store_bytes: of all scans as int16, and in a store.
        cubes: of an epoch.
        efficiency: share of the speed that GPUs would have alone, simulated.
        epoch_seconds: validation not counted.
        gpu_hours, dollars: of the whole training.
        node_read_bytes: a second and machine, from store or cache.
        requests: to the store, a second, at most.
        cores_step, cores_cpu: of loaders, a GPU; deformed on the GPU, and by the loader.
        exchange_seconds: of an all-reduce of the gradients between machines.
        state_bytes: of a checkpoint.
        mtbf_hours: between failures of any GPU.
        save_every_minutes: Daly's interval.
        lost_share: time that saving and failures cost with a state after each epoch and every 30 minutes.
        order_bytes: memory of each process while an epoch's order is drawn.
    """

    raw_bytes: float
    store_bytes: float
    cubes: int
    efficiency: float
    epoch_seconds: float
    gpu_hours: float
    dollars: float
    node_read_bytes: float
    requests: float
    cores_step: float
    cores_cpu: float
    exchange_seconds: float
    state_bytes: float
    mtbf_hours: float
    save_every_minutes: float
    lost_share: float
    order_bytes: float


def exchange_seconds(gpus: int, measured: Measured, assumed: Assumed) -> float:
    """Time of a ring all-reduce of float32 gradients between machines; within one it counts as nothing."""
    nodes = math.ceil(gpus / assumed.gpus_per_node)
    sent = 2 * (nodes - 1) / nodes * 4 * measured.parameters
    return sent / (assumed.node_bytes_per_second * assumed.network_share)


def simulate_efficiency(gpus: int, measured: Measured, assumed: Assumed, steps: int = 2000, seed: int = 0) -> float:
    """Let each step wait for the slowest GPU and for what an exchange of gradients takes beyond what it hides behind.

    Args:
        gpus: their number.
        measured: the step alone.
        assumed: network and jitter.
        steps: steps that are simulated.
        seed: of the simulation.

    Returns:
        Share of the speed that so many GPUs would have alone.
    """
    rng = np.random.default_rng(seed)
    slowest = rng.normal(1.0, assumed.jitter, (steps, gpus)).max(axis=1).mean() if gpus > 1 else 1.0
    shown = max(exchange_seconds(gpus, measured, assumed) / measured.step_seconds - assumed.hidden_share, 0.0)
    return float(1 / (slowest + shown))


def daly_interval(save_seconds: float, mtbf_seconds: float) -> float:
    """Time between two checkpoints that loses least (Daly 2006, doi:10.1016/j.future.2004.11.016).

    Young's sqrt(2 * save * mtbf), with the terms of higher order.

    Args:
        save_seconds: time that saving takes.
        mtbf_seconds: mean time between failures.

    Returns:
        Seconds of training between the end of a checkpoint and the next.

    Example:
        >>> round(daly_interval(0.4, 3600.0), 1)
        53.4
    """
    if save_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = save_seconds / (2 * mtbf_seconds)
    return math.sqrt(2 * save_seconds * mtbf_seconds) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


def plan(case: Case, measured: Measured | None = None, assumed: Assumed | None = None) -> Plan:
    """Compute what a training takes.

    Args:
        case: how many scans and GPUs.
        measured: None for its defaults.
        assumed: None for its defaults.
    """
    m, a = measured or Measured(), assumed or Assumed()
    raw = case.scans * 2.0 * math.prod(a.shape)
    cubes = case.scans * a.cubes_per_scan
    efficiency = simulate_efficiency(case.gpus, m, a)
    speed = case.gpus * m.cubes_per_second * efficiency
    epoch = cubes / speed
    gpu_hours = a.epochs * epoch * case.gpus / 3600
    cube_bytes = 64 * 64 * 32 * 2 * m.requested_per_byte + m.index_bytes
    mtbf = a.gpu_mtbf_hours / case.gpus
    interval = min(30 * 60.0, epoch)  # a state every 30 minutes (--train#run#save_every_minutes) and after each epoch
    lost = m.save_seconds / interval + (interval / 2 + a.restart_seconds) / (3600 * mtbf)
    read = speed / math.ceil(case.gpus / a.gpus_per_node) * cube_bytes
    of_core = 1 / m.store_cubes_per_core
    return Plan(
        raw_bytes=raw,
        store_bytes=raw * m.store_share,
        cubes=cubes,
        efficiency=efficiency,
        epoch_seconds=epoch,
        gpu_hours=gpu_hours,
        dollars=gpu_hours * a.dollars_per_gpu_hour,
        node_read_bytes=read,
        requests=speed * (m.chunks_per_cube + 1),
        cores_step=m.cubes_per_second * of_core,
        cores_cpu=m.cubes_per_second * (of_core + m.deform_seconds),
        exchange_seconds=exchange_seconds(case.gpus, m, a),
        state_bytes=12.0 * m.parameters,
        mtbf_hours=mtbf,
        save_every_minutes=daly_interval(m.save_seconds, 3600 * mtbf) / 60,
        lost_share=lost,
        order_bytes=float(cubes * m.order_bytes),
    )


def table(cases: Sequence[Case] = CASES) -> str:
    """Write the plans of some cases as a table of Markdown."""
    plans = [plan(case) for case in cases]
    rows: list[tuple[str, list[str]]] = [
        ("the scans as int16", [f"{each.raw_bytes / 1e12:.3g} TB" for each in plans]),
        ("the store", [f"{each.store_bytes / 1e12:.3g} TB" for each in plans]),
        ("cubes an epoch", [f"{each.cubes:,}" for each in plans]),
        ("efficiency, **simulated**", [f"{100 * each.efficiency:.0f} %" for each in plans]),
        ("an epoch", [f"{each.epoch_seconds / 3600:.2g} h" for each in plans]),
        ("100 epochs", [f"{100 * each.epoch_seconds / 86400:.2g} days" for each in plans]),
        ("GPU hours", [f"{each.gpu_hours:,.0f}" for each in plans]),
        ("at 3 dollars an hour", [f"{each.dollars:,.0f} dollars" for each in plans]),
        ("read by each machine", [f"{each.node_read_bytes / 1e9:.2g} GB/s" for each in plans]),
        ("requests to the store, at most", [f"{each.requests:,.0f} a second" for each in plans]),
        ("loader cores a GPU, `--deform_on step`", [f"{each.cores_step:.2f}" for each in plans]),
        ("loader cores a GPU, `--deform_on cpu`", [f"{each.cores_cpu:.2f}" for each in plans]),
        ("exchange of gradients between machines", [f"{1e3 * each.exchange_seconds:.1f} ms" for each in plans]),
        ("a state", [f"{each.state_bytes / 1e6:.0f} MB" for each in plans]),
        ("a GPU fails every", [f"{each.mtbf_hours / 24:.3g} days" for each in plans]),
        ("Daly's interval", [f"{each.save_every_minutes:.0f} minutes" for each in plans]),
        ("lost to saving and failures", [f"{100 * each.lost_share:.2f} %" for each in plans]),
        ("memory for an epoch's order, each process", [f"{each.order_bytes / 1e6:,.0f} MB" for each in plans]),
    ]
    head = ["", *(f"{case.scans:,} scans, {case.gpus} GPUs" for case in cases)]
    lines = [head, ["---"] * len(head), *([name, *values] for name, values in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_efficiency(path: Path, measured: Measured | None = None, assumed: Assumed | None = None) -> None:
    """Draw the efficiency against the number of GPUs, for some jitters."""
    from dataclasses import replace

    from matplotlib.figure import Figure

    m, a = measured or Measured(), assumed or Assumed()
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    ranks = [2**power for power in range(11)]
    for jitter, style in ((0.01, ":"), (0.03, "-"), (0.1, "--")):
        values = [100 * simulate_efficiency(rank, m, replace(a, jitter=jitter), 500) for rank in ranks]
        axis.plot(ranks, values, style, marker=".", label=f"steps vary by {100 * jitter:.0f} %")
    slow = replace(a, node_bytes_per_second=25e9 / 20)
    axis.plot(ranks, [100 * simulate_efficiency(rank, m, slow, 500) for rank in ranks], "-.", label="3 %, 10 Gbit/s")
    axis.set_xscale("log", base=2)
    axis.set(xlabel="GPUs, 8 a machine", ylabel="% of the speed of as many alone", ylim=(0, 105))
    axis.set_xticks(ranks, [str(rank) for rank in ranks], fontsize=7)
    axis.set_title("Simulated, not measured", fontsize=10, color="tab:red")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=130)


def draw_readers(path: Path, results: dict[str, Any]) -> None:
    """Draw cubes a second against processes that read a store at once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    numbers = [int(number) for number in results["readers"]]
    for key, label, style in (
        ("cubes_per_second", "all together, by the clock", "o-"),
        ("cubes_per_core_second", "a core, of processor time", "s--"),
    ):
        values = [results["readers"][str(number)][key]["median"] for number in numbers]
        axis.plot(numbers, values, style, label=label)
    machine = results["machine"]
    axis.set(xlabel="processes that read", ylabel="cubes of 64x64x32 a second", ylim=(0, None), xticks=numbers)
    axis.set_title(f"Measured: {machine['cores']} cores at a load of {machine['load_1_min']}", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the table and draw the charts."""
    parser = argparse.ArgumentParser(description="What a pretraining on many scans and many GPUs would take.")
    parser.add_argument("--readers", type=Path, help="results of benchmarks.store --readers, for the chart of them")
    parser.add_argument("--charts", type=Path, help="folder for the charts")
    arguments = parser.parse_args()
    print(table())
    if arguments.charts:
        draw_efficiency(arguments.charts / "scale_efficiency.png")
        if arguments.readers:
            draw_readers(arguments.charts / "scale_readers.png", json.loads(arguments.readers.read_text()))


if __name__ == "__main__":
    main()
