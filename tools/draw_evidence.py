# SPDX-License-Identifier: Apache-2.0
"""Draws ``docs/evidence.png``: what pretrained weights gained in each study, from ``docs/evidence/results``."""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models_genesis.datasets.io.atomic_write import atomic_write

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 0.16
SHOWN, NOT_SHOWN, GREY = "#0b6fa4", "#8a939e", "#5a6472"


@dataclass(frozen=True)
class Row:
    """A contrast of a study, as a reader knows it.

    Args:
        task: what is predicted, and its score.
        labels: labelled patients, as the study names them.
        study: folder of the results.
        arm: the start that is compared.
        against: the start that it is compared with.
        rate: ``best`` or ``common``.
    """

    task: str
    labels: str
    study: str
    arm: str = "rescaled"
    against: str = "scratch"
    rate: str = "best"


NODULES, SPOTS, HIPPOCAMPUS = "nodules outlined, Dice", "nodules told from bright spots, AUC", "hippocampus, Dice"
GROUPS: dict[str, tuple[Row, ...]] = {
    "pretrained against random weights, each at its best learning rate": (
        Row(NODULES, "20", "nodules_rates"),
        Row(NODULES, "100", "nodules_rates"),
        Row(NODULES, "all", "nodules_rates"),
        Row(SPOTS, "10", "candidates_few"),
        Row(SPOTS, "25", "candidates_few"),
        Row(SPOTS, "all", "candidates_rates"),
        Row(HIPPOCAMPUS, "2", "hippocampus_two"),
        Row(HIPPOCAMPUS, "5", "hippocampus_slices", "cubes", "cubes_scratch"),
        Row(HIPPOCAMPUS, "all", "hippocampus_slices", "cubes", "cubes_scratch"),
    ),
    "the same, both at one learning rate": (
        Row(NODULES + " (at 0.001)", "20", "nodules_rates", rate="common"),
        Row(NODULES + " (at 0.001)", "100", "nodules_rates", rate="common"),
        Row(NODULES + " (at 0.001)", "all", "nodules_rates", rate="common"),
        Row(SPOTS + " (at 0.001)", "all", "candidates_longer", rate="common"),
        Row(SPOTS + " (at 0.0003)", "all", "candidates_rates", rate="common"),
        Row(HIPPOCAMPUS + " (at 0.003)", "2", "hippocampus_two", rate="common"),
        Row(HIPPOCAMPUS + " (at 0.003)", "5", "hippocampus_slices", "cubes", "cubes_scratch", "common"),
        Row(HIPPOCAMPUS + " (at 0.003, with flips)", "5", "hippocampus_people_confirm", rate="common"),
        Row(HIPPOCAMPUS + " (at 0.003)", "25", "hippocampus_controls", rate="common"),
        Row(HIPPOCAMPUS + " (at 0.003)", "all", "hippocampus_slices", "cubes", "cubes_scratch", "common"),
    ),
    "pretrained against the same weights without their features": (
        Row(SPOTS, "all", "candidates_confirm", against="permuted_rescaled", rate="common"),
        Row(HIPPOCAMPUS, "5", "hippocampus_people_confirm", against="permuted", rate="common"),
        Row(HIPPOCAMPUS, "25", "hippocampus_controls", against="permuted_rescaled", rate="common"),
    ),
    "deformed cubes restored, against other tasks of pretraining": (
        Row(SPOTS + ": autoencoder", "all", "candidates_proxies", "genesis", "autoencoder", "common"),
        Row(SPOTS + ": masking", "all", "candidates_proxies", "genesis", "masking", "common"),
    ),
}


def main() -> int:
    """Draw the picture.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "evidence" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "evidence.png")
    arguments = parser.parse_args()
    figure = Figure(figsize=(11, 9.8), facecolor="white")
    axes = figure.add_axes((0.36, 0.07, 0.34, 0.91))
    drawn = []
    place = 0.0
    beside = axes.get_yaxis_transform()
    axes.text(-0.04, -0.8, "labelled\npatients", transform=beside, ha="right", fontsize=8, color=GREY)
    for title, rows in GROUPS.items():
        axes.text(-1.03, place, title, transform=beside, weight="bold", va="center", fontsize=10)
        place += 1
        for row in rows:
            drawn.append(contrast_of(row, arguments.results))
            draw_row(axes, place, row, drawn[-1])
            place += 1
        place += 0.5
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    axes.set(xlim=(-LIMIT, LIMIT), ylim=(place - 0.4, -1.2), yticks=[])
    axes.set_xlabel("difference and its 95 % interval; right is better with pretraining", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "left", "right"]].set_visible(False)
    with atomic_write(arguments.out) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Description": json.dumps(drawn)})
    print(f"written: {arguments.out}")
    return 0


def contrast_of(row: Row, results: Path) -> dict[str, float]:
    """The numbers of a row.

    Raises:
        ValueError: if the study has not exactly one such contrast.
    """
    path = results / row.study / "contrasts.csv"
    named = {"arm": row.arm, "against": row.against, "labels": row.labels, "rate_kind": row.rate}
    with path.open(newline="") as file:
        found = [line for line in csv.DictReader(file) if all(line[key] == value for key, value in named.items())]
    if len(found) != 1:
        raise ValueError(f"{path}: expected one line with {named}, found {len(found)}.")
    return {key: float(found[0][key]) for key in ("difference", "low", "high", "seeds", "patients")}


def draw_row(axes: Axes, place: float, row: Row, contrast: dict[str, float]) -> None:
    """Draw a contrast: its name, its interval, which ends in an arrow where it goes on, and its numbers."""
    low, high, difference = contrast["low"], contrast["high"], contrast["difference"]
    color = NOT_SHOWN if low <= 0 <= high else SHOWN
    axes.plot([max(low, -LIMIT), min(high, LIMIT)], [place, place], color=color, linewidth=2, solid_capstyle="butt")
    for end, marker in ((low, "<"), (high, ">")):
        if abs(end) > LIMIT:
            axes.plot(LIMIT if end > 0 else -LIMIT, place, marker, color=color, markersize=6, clip_on=False)
    axes.plot(difference, place, "o", color=color, markersize=6)
    beside = axes.get_yaxis_transform()
    axes.text(-1.01, place, row.task, transform=beside, va="center", fontsize=9)
    axes.text(-0.04, place, row.labels, transform=beside, va="center", ha="right", fontsize=9, color=GREY)
    numbers = f"{difference:+.3f}  ({signed(low)} to {signed(high)})"
    ink = "black" if color == SHOWN else GREY
    axes.text(1.03, place, numbers, transform=beside, va="center", fontsize=9, color=ink)
    tested = f"{contrast['seeds']:.0f} seeds, {contrast['patients']:.0f} patients"
    axes.text(1.86, place, tested, transform=beside, va="center", ha="right", fontsize=8, color=GREY)


def signed(value: float) -> str:
    """A number with its sign, to three places, or to four where three would be zero.

    >>> signed(-0.0149), signed(0.00032)
    ('-0.015', '+0.0003')
    """
    return f"{value:+.3f}" if abs(value) >= 0.0005 else f"{value:+.4f}"


if __name__ == "__main__":
    raise SystemExit(main())
