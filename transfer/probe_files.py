# SPDX-License-Identifier: Apache-2.0
"""From weights and a data list to tables: what ``python -m models_genesis.transfer probe`` does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets.io.atomic_write import atomic_text
from ..datasets.io.csv_file import write_csv
from ..networks.weight_container import sha256_of
from .contrast import NUM_RESAMPLES, auc_samples
from .embedding import tile_size
from .embedding_files import load_with_settings
from .probe import Labels, Probe, ProbeRow, read_labelled_scans
from .results import installed

__all__ = ["check_cubes", "named_weights", "probe_files", "table_text"]

METHOD = (
    "A logistic regression on the standardised means of the encoder's maps, of all levels, over a cube in the middle "
    "of each scan; the penalty is chosen by cross-validation within the patients that it is fitted to. AUC: mean over "
    "folds and seeds. 95 % intervals: two-level bootstrap of patients and seeds at Student's quantiles. Running "
    "statistics of batch norm are of up to 64 of these cubes: those of random weights always, those of the others "
    "where norm_statistics is scans, not where it is own."
)

_PACKAGES = ("models-genesis", "torch", "monai", "numpy", "scikit-learn", "scipy")


def probe_files(
    weights: Sequence[str],
    images: str | Path,
    out: str | Path,
    settings: Mapping[str, Any] | None = None,
    allow_changed_settings: bool = False,
    labels: Sequence[Labels] = ("all",),
    folds: int = 5,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    splits: Sequence[str] = ("training",),
    **options: Any,
) -> str:
    """Compare weights by their frozen features, and write what was found: what the command line does.

    Args:
        weights: texts NAME=WEIGHTS, or what :func:`~models_genesis.networks.load_network` takes alone.
        images: data list, see :func:`~models_genesis.transfer.probe.read_labelled_scans`.
        out: folder of ``probe.csv``, a line for each comparison; ``cases.csv``, each scan's scores; and ``probe.json``,
            the comparisons with all that they were made of.
        settings: preprocessing that the weights do not tell.
        allow_changed_settings: take ``settings`` also where the weights tell others.
        labels: numbers of labelled patients, or ``"all"``.
        folds: into which patients are dealt out.
        seeds: draws of patients and of random weights.
        splits: lists of the data list.
        options: ``norm_statistics``, ``device``, ``modality`` and ``progress`` of
            :class:`~models_genesis.transfer.probe.Probe`.

    Returns:
        The comparisons as a table of Markdown.

    Raises:
        FileNotFoundError: weights or data list are not there.
        ValueError: weights, settings, scans or numbers cannot be used; nothing is written.
    """
    files = named_weights(weights)
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"--out: expected a folder, found the file {out}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"--labels: expected each number once, found {list(labels)}")
    scans = read_labelled_scans(images, splits, folds)
    probe = Probe(scans, seeds, **options)
    for count in labels:
        for seed in seeds:
            scans.check(count, seed)
    loaded = {name: load_with_settings(file, settings, allow_changed_settings) for name, file in files.items()}
    check_cubes({name: tile_size(*pair) for name, pair in loaded.items()})
    for name, pair in loaded.items():
        probe.add(name, *pair)
    rows = probe.rows(labels)
    content: dict[str, Any] = {
        "method": f"{METHOD} {auc_samples(max(row.undefined for row in rows), NUM_RESAMPLES)}",
        "norm_statistics": probe.norm_statistics,
        "datalist": {"file": Path(images).name, "sha256": sha256_of(images), "lists": list(splits)},
        "scans": {
            "patients": len(set(scans.patients)),
            "class 0": int((scans.classes == 0).sum()),
            "class 1": int((scans.classes == 1).sum()),
        },
        "labels": list(labels),
        "folds": folds,
        "seeds": list(seeds),
        "weights": probe.sources,
        "versions": {package: installed(package) for package in _PACKAGES},
        "comparisons": [row.flat for row in rows],
        "penalties": [
            {
                "weights": name,
                "labels": count,
                "C": {f"{each:g}": times for each, times in sorted(Counter(own).items())},
            }
            for (name, count), own in probe.penalties.items()
        ],
    }
    folder = Path(out)
    cases = _cases(probe, rows)
    write_csv(folder / "cases.csv", list(cases[0]), cases)
    write_csv(folder / "probe.csv", list(content["comparisons"][0]), content["comparisons"])
    with atomic_text(folder / "probe.json") as text:
        text.write(json.dumps(content, indent=2) + "\n")
    return table_text(rows)


def check_cubes(sides: Mapping[str, Sequence[int]]) -> None:
    """Refuse weights that would see more or less of each scan than others do.

    Args:
        sides: size of the cube by the weights' name.

    Raises:
        ValueError: when sizes differ.
    """
    if len({tuple(side) for side in sides.values()}) > 1:
        found = ", ".join(f"{name} {list(side)}" for name, side in sides.items())
        raise ValueError(f"expected one size of cube for all weights, found {found}: give --cube_size")


def named_weights(texts: Sequence[str]) -> dict[str, str]:
    """Read NAME=WEIGHTS.

    Args:
        texts: as the command line has them; weights alone are their own name.

    Returns:
        Weights by name, in the order given.

    Raises:
        ValueError: a name is empty or there twice.

    Example:
        >>> named_weights(["ours=models/model.pt", "theirs.pt"])
        {'ours': 'models/model.pt', 'theirs.pt': 'theirs.pt'}
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, weights = (text, "", "") if Path(text).exists() else text.partition("=")
        if not name or name in found or (equals and not weights):
            raise ValueError(f"--weights: expected NAME=WEIGHTS, each name once, found {text!r}")
        found[name] = weights or name
    return found


def table_text(rows: Sequence[ProbeRow]) -> str:
    """Write comparisons as a table of Markdown.

    Args:
        rows: the comparisons.

    Returns:
        The table.
    """
    lines = ["| labelled patients | weights | AUC (95 % interval) | by seed | against | difference (95 % interval) |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        area = _text(row.auc.value, row.auc.low, row.auc.high, "")
        difference = row.difference
        gain = "" if difference is None else _text(difference.value, difference.low, difference.high, "+")
        seeds = f"{row.seeds[0]:.3f} to {row.seeds[1]:.3f}"
        lines.append(f"| {row.labels} | {row.weights} | {area} | {seeds} | {row.against} | {gain} |")
    return "\n".join(lines)


def _text(value: float, low: float | None, high: float | None, sign: str) -> str:
    ends = "no interval" if low is None or high is None else f"{low:{sign}.3f} to {high:{sign}.3f}"
    return f"{value:{sign}.3f} ({ends})"


def _cases(probe: Probe, rows: Sequence[ProbeRow]) -> list[dict[str, Any]]:
    """List the scores of each scan, a column a seed."""
    table = []
    for name, labels in dict.fromkeys((row.weights, row.labels) for row in rows):
        scores = probe.scores(name, labels)
        assert scores.labels is not None
        columns = zip(scores.cases, scores.patients, scores.folds, scores.labels, scores.values.T, strict=True)
        for case, patient, fold, own, values in columns:
            row = {"weights": name, "labels": labels, "case": case, "patient": patient, "fold": int(fold)}
            row |= {"class": int(own)}
            table.append(row | {f"seed {seed}": float(value) for seed, value in zip(probe.seeds, values, strict=True)})
    return table
