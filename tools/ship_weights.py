# SPDX-License-Identifier: Apache-2.0
"""Put trained weights into a bundle, with their birth certificate and what was measured on them.

Takes ``model.pt``, ``model.json`` and ``birth_certificate.json`` of a training, adds reports of the bundle's own
evaluation to the certificate, and fills ``eval_metrics`` of the metadata. All must be about the same weights, which
their SHA-256 tells.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models_genesis.datasets.io.find_scans import without_suffix
from models_genesis.networks.weight_container import sha256_of
from models_genesis.training import read_model_settings
from models_genesis.training.handlers.birth_certificate import CERTIFICATE

MAX_BYTES = 25 * 1024**2
"""The model zoo takes no larger files but by a link."""

CHOSEN_BY = ("training", "validation")
"""Parts of the data that have chosen the weights; scores on them are not what ``eval_metrics`` states."""


def headline(report: Mapping[str, Any]) -> dict[str, float]:
    """Give the scores of a report that the metadata state.

    Args:
        report: content of ``segmentation.json``, ``classification.json`` or ``restoration.json``.

    Raises:
        ValueError: for another file.

    Example:
        >>> headline({"cubes": 8, "mse_restored": 0.01, "mse_mean_image": 0.02, "mse_deformed": 0.2})
        {'mse_restored': 0.01, 'mse_mean_image': 0.02, 'mse_deformed': 0.2}
    """
    if "regions" in report:
        # a region that no case has is without a score
        means = {name: means["dice"]["mean"] for name, means in report["regions"].items()}
        scores = {name: mean for name, mean in means.items() if mean is not None}
        mean = {"mean_dice": sum(scores.values()) / len(scores)} if len(scores) > 1 else {}
        named = {f"dice_{name.lower().replace(' ', '_')}": value for name, value in scores.items()}
        return {name: round(value, 4) for name, value in {**mean, **named}.items()}
    if "ranking" in report:
        scores = {name: report["ranking"][name] for name in ("auc", "average_precision")}
        return {name: round(value, 4) for name, value in scores.items() if value is not None}
    if "mse_restored" in report:
        return {name: report[name] for name in ("mse_restored", "mse_mean_image", "mse_deformed")}
    raise ValueError(f"expected a report of a bundle's evaluation, found the keys {sorted(report)}")


def scores_by_case(report: Path) -> dict[str, dict[str, float]]:
    """Read the Dice of each case and region that a segmentation's report lies next to, empty for other reports.

    Args:
        report: ``segmentation.json``; the scores are in ``segmentation.csv``.

    Returns:
        Dice by region, by the name of the case's file, without the folders of the machine that measured it.

    Raises:
        ValueError: when two cases have one name.
    """
    path = report.with_suffix(".csv")
    if report.name != "segmentation.json" or not path.is_file():
        return {}
    scores: dict[str, dict[str, float]] = {}
    seen: set[tuple[str, str]] = set()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, region = Path(row["case"]).name, row["region"]
            if (name, region) in seen:
                raise ValueError(f"{path}: expected cases of different names, found {name} twice")
            seen.add((name, region))
            found = scores.setdefault(name, {})
            if row["dice"]:  # empty where neither the case nor its prediction has the region
                found[region] = round(float(row["dice"]), 4)
    return scores


def probabilities_by_scan(report: Path) -> dict[str, list[float]]:
    """Read the probabilities that a classification's report lies next to, empty for other reports.

    Args:
        report: ``classification.json``; the probabilities are in ``predictions.csv``.

    Returns:
        Probabilities by series, in the order of the table of candidates.
    """
    path = report.with_name("predictions.csv")
    if report.name != "classification.json" or not path.is_file():
        return {}
    found: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["seriesuid"], []).append(round(float(row["probability"]), 4))
    return found


def errors_by_scan(report: Path) -> dict[str, dict[str, float]]:
    """Read the errors of each scan that a restoration's report lies next to, empty for other reports.

    Args:
        report: ``restoration.json``; the scans are in ``restoration.csv``.

    Returns:
        Mean squared errors by the name of the scan's file.
    """
    path = report.with_suffix(".csv")
    if report.name != "restoration.json" or not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["scan"] != "all"]
    return {Path(row["scan"]).name: {key: float(row[key]) for key in row if key.startswith("mse")} for row in rows}


DETAILS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    "dice_by_case": scores_by_case,
    "probabilities_by_scan": probabilities_by_scan,
    "errors_by_scan": errors_by_scan,
}
"""What lies next to a report for each case, by its name in the certificate; empty for reports of other kinds."""


def details_of(report: Path) -> dict[str, Mapping[str, Any]]:
    """Read those of :data:`DETAILS` that a report has."""
    return {name: found for name, read in DETAILS.items() if (found := read(report))}


def image_files(scan: Mapping[str, Any]) -> list[str]:
    """List the image files of a scan of a certificate."""
    images = scan.get("image", [])
    return [each["file"] for each in (images if isinstance(images, list) else [images])]


def ship(bundle: Path, ckpt_dir: Path, reports: Mapping[str, Path], commands: Mapping[str, str]) -> dict[str, Any]:
    """Copy weights into a bundle.

    Args:
        bundle: its folder.
        ckpt_dir: folder of the training's three files.
        reports: JSON of an evaluation by the part of the data it was run on, such as ``"testing"``.
        commands: how each was run, by part.

    Returns:
        The certificate.

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when weights are too large, a file is about others, or no report is on unseen data.
    """
    weights = ckpt_dir / "model.pt"
    for needed in (weights, ckpt_dir / "model.json", ckpt_dir / CERTIFICATE):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: expected it from a training that reached its end, found no such file")
    if weights.stat().st_size > MAX_BYTES:
        raise ValueError(f"{weights}: expected at most 25 MiB, found {weights.stat().st_size / 1024**2:.0f}")
    read_model_settings(ckpt_dir)  # refuses settings of other weights
    sha256 = sha256_of(weights)
    certificate: dict[str, Any] = json.loads((ckpt_dir / CERTIFICATE).read_text(encoding="utf-8"))
    contents = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in reports.items()}
    for content in contents.values():
        if "candidates_file" in content:  # of the machine that measured
            content["candidates_file"] = Path(content["candidates_file"]).name
    found = {str(ckpt_dir / CERTIFICATE): certificate["weights"]["sha256"]}
    found |= {str(reports[part]): content.get("weights_sha256") for part, content in contents.items()}
    for name, value in found.items():
        if value != sha256:
            raise ValueError(f"{name}: expected it to be about {weights} ({sha256}), found {value}")
    unseen = [part for part in contents if part not in CHOSEN_BY]
    if not unseen:
        raise ValueError(f"expected a report on data that did not choose the weights, found {list(contents)}")
    details = {part: details_of(path) for part, path in reports.items()}
    chosen_by = {
        Path(file).name for part in certificate["data"].values() for scan in part for file in image_files(scan)
    }
    chosen_by |= {without_suffix(name) for name in chosen_by}  # tables of candidates name a series, not its file
    for part in unseen:
        cases = {name for found in details[part].values() for name in found}
        if seen := sorted(chosen_by & cases):
            raise ValueError(f"{reports[part]}: expected cases that the training has not seen, found {seen[:3]}")
    certificate["evaluations"] = {
        part: {"command": commands.get(part), "report": content, **details[part]} for part, content in contents.items()
    }
    metadata_path = bundle / "configs" / "metadata.json"
    metadata = json.loads(metadata_path.read_text(encoding="utf-8"))
    metadata["eval_metrics"] = {
        f"{part}_{name}": value for part in unseen for name, value in headline(contents[part]).items()
    }
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundles"))
    from sync import layout, write_whole  # type: ignore[import-not-found,unused-ignore]

    text = json.dumps(certificate, indent=1, ensure_ascii=False) + "\n"
    (bundle / "models").mkdir(exist_ok=True)
    for name in ("model.pt", "model.json"):
        write_whole(bundle / "models" / name, (ckpt_dir / name).read_bytes())
    write_whole(bundle / "models" / CERTIFICATE, text.encode())
    write_whole(metadata_path, (layout(metadata) + "\n").encode())
    return certificate


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ckpt_dir", type=Path, required=True)
    parser.add_argument("--report", action="append", default=[], metavar="PART=JSON", help="an evaluation's report")
    parser.add_argument("--command", action="append", default=[], metavar="PART=COMMAND", help="how it was run")
    options = parser.parse_args(arguments)
    reports = {part: Path(path) for part, _, path in (each.partition("=") for each in options.report)}
    commands = {part: command for part, _, command in (each.partition("=") for each in options.command)}
    certificate = ship(options.bundle, options.ckpt_dir, reports, commands)
    print(json.dumps(certificate["weights"]))


if __name__ == "__main__":
    main()
