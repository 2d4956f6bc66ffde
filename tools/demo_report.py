# SPDX-License-Identifier: Apache-2.0
"""The demo's report: one HTML file with its pictures inside, the answer first, commands and settings folded away."""

from __future__ import annotations

import base64
import csv
import datetime
import html
import io
import json
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from demo_study import study_results
from matplotlib.image import imsave

from models_genesis.datasets.io.atomic_write import atomic_text

STYLE = """
:root{--ink:#1c2530;--soft:#5d6b7a;--line:#dfe4ea;--good:#16713f;--bad:#a4341f;--accent:#1f5fa8}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);margin:0;background:#fff}
main{max-width:62rem;margin:0 auto;padding:1.2rem 1rem 3rem}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0 .2rem}
h2{font-size:1.25rem;margin:2.4rem 0 .4rem}
p{margin:.4rem 0 .8rem;max-width:46rem}
.soft,figcaption{color:var(--soft);font-size:.92rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:.8rem;margin:1.2rem 0}
.answer{border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1rem}
.answer b{display:block;font-size:1.9rem;line-height:1.2}
.good b{color:var(--good)}.bad b{color:var(--bad)}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(9.5rem,46%),1fr));gap:.6rem;margin:.6rem 0 1.4rem}
.wide{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem}
figure{margin:0}
figure img{display:block;width:100%;border-radius:.3rem}
.scan{background:#000}
figcaption{margin-top:.25rem}
details{border-top:1px solid var(--line);padding:.6rem 0}
summary{cursor:pointer;font-weight:600}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f6f8;padding:.6rem;border-radius:.3rem;font-size:.82rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem}
iframe{width:100%;height:80vh;border:1px solid var(--line);border-radius:.3rem}
td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
"""


@dataclass(frozen=True)
class StageRecord:
    """One command that was run.

    Args:
        title: what it does.
        command: its words.
        expected: seconds that were announced.
        seconds: seconds that it took.
    """

    title: str
    command: Sequence[str]
    expected: float
    seconds: float


@dataclass(frozen=True)
class Run:
    """What the report tells of a run besides the files that its stages wrote.

    Args:
        root: the project's folder.
        stages: the commands.
        device: what it ran on.
        cube_side: voxels of the blocks in which scans are deformed and restored, from back to front.
        settings: name and value of each, as text.
    """

    root: Path
    stages: Sequence[StageRecord]
    device: str
    cube_side: int
    settings: dict[str, str]


def restoration_errors(out: Path) -> dict[str, float]:
    """Read the mean squared errors of all validation cubes.

    Args:
        out: folder of the demo.

    Returns:
        ``restored``, and its baselines ``deformed`` and ``mean_image``.
    """
    with (out / "restoration" / "restoration.csv").open(newline="") as file:
        rows = {row["scan"]: row for row in csv.DictReader(file)}
    return {kind: float(rows["all"][f"mse_{kind}"]) for kind in ("restored", "deformed", "mean_image")}


def liver_scores(out: Path) -> list[dict[str, str]]:
    """Read the lines of the segmentation's report that are of the liver.

    Args:
        out: folder of the demo.

    Returns:
        One mapping a scan.
    """
    with (out / "liver_evaluation" / "segmentation.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["region"] == "liver"]


def write_report(out: Path, run: Run) -> Path:
    """Write ``report.html``.

    Args:
        out: folder of the demo, with what its stages wrote.
        run: what else there is to tell.

    Returns:
        The file.
    """
    body = "".join((answers(out, run), restored_scans(out, run), livers(out), folded(out, run), study(out)))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Models Genesis, tried out</title><style>{STYLE}</style></head><body><main>
{body}</main></body></html>
"""
    path = out / "report.html"
    with atomic_text(path) as file:
        file.write(page)
    return path


def answers(out: Path, run: Run) -> str:
    """The top of the page: what came out, in three numbers.

    Args:
        out: folder of the demo.
        run: what else there is to tell.

    Returns:
        HTML.
    """
    errors = restoration_errors(out)
    share = errors["restored"] / errors["mean_image"]
    dices = [float(row["dice"] or "nan") for row in liver_scores(out)]
    dice = statistics.mean(dices)
    minutes = sum(stage.seconds for stage in run.stages) / 60
    restores = (
        "learned to repair deformed scans"
        if share <= 0.5
        else "began to learn to repair deformed scans"
        if share < 0.95
        else "did not learn to repair deformed scans in this short run"
    )
    finds = (
        "then learned to outline livers"
        if dice >= 0.7
        else "then learned to outline livers only roughly"
        if dice >= 0.3
        else "did not learn to outline livers"
    )
    cards = (
        _answer(
            share <= 0.5,
            f"{share:.0%}",
            f"of the error that remains without looking at the scan: {errors['restored']:.4f} restored, "
            f"{errors['mean_image']:.4f} for the average scan, {errors['deformed']:.4f} left deformed "
            "(mean squared error, grey values from 0 to 1; lower is better)",
        ),
        _answer(
            dice >= 0.8,
            f"{dice:.2f}",
            f"Dice of the liver in {len(dices)} scans that it had not seen ({', '.join(f'{d:.2f}' for d in dices)}; "
            "1 is perfect)",
        ),
        _answer(
            True, f"{minutes:.0f} min", f"from nothing to this page, on {_a(run.device)} with {os.cpu_count()} cores"
        ),
    )
    return (
        f"<h1>Models Genesis, tried out in {minutes:.0f} minutes</h1>"
        f"<p>A small network {restores} without any labels, {finds} from a few labelled ones. All scans are computed "
        "phantoms: the page shows that everything works on this machine, not how good it is on patients.</p>"
        f'<div class="answers">{"".join(cards)}</div>'
    )


def _answer(good: bool, number: str, meaning: str) -> str:
    return (
        f'<div class="answer {"good" if good else "bad"}"><b>{html.escape(number)}</b>'
        f'<span class="soft">{html.escape(meaning)}</span></div>'
    )


def _a(device: str) -> str:
    return f"a {device}" if device == "processor" else f"an {device}" if device[:1] in "AEIO" else f"a {device}"


def restored_scans(out: Path, run: Run) -> str:
    """Each validation scan: original, deformed, and restored.

    Args:
        out: folder of the demo.
        run: what else there is to tell.

    Returns:
        HTML.
    """
    error = restoration_errors(out)["restored"]
    rows = []
    for original in validation_scans(out):
        pictures = {
            original: "original",
            written_scan(out, original, "deformed"): "deformed: what the network sees",
            written_scan(out, original, "restored"): f"restored (error of all cubes: {error:.4f})",
        }
        figures = [_scan_figure(path, caption, run.cube_side) for path, caption in pictures.items()]
        rows.append(f'<div class="row">{"".join(figures)}</div>')
    return (
        "<h2>What it restores</h2><p>Whole scans that the network had not seen, from the front. They are deformed and "
        "restored block by block: grey values bent or inverted, voxels shuffled, parts overwritten with noise.</p>"
        + "".join(rows)
    )


def validation_scans(out: Path) -> list[Path]:
    """The images of the phantom's patients that are kept for validation."""
    data = out / "phantom"
    entries = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["validation"]
    return [data / entry["image"] for entry in entries]


def written_scan(out: Path, original: Path, kind: str) -> Path:
    """The file that a stage wrote for a scan.

    Args:
        out: folder of the demo.
        original: the scan.
        kind: ``"deformed"`` or ``"restored"``.

    Returns:
        Its path.
    """
    case = original.name.removesuffix(".nii.gz")
    return out / "restored" / case / f"{case}_{kind}.nii.gz"


def _scan_figure(path: Path, caption: str, cube_side: int) -> str:
    pixels, shape = front_view(path, cube_side)
    buffer = io.BytesIO()
    imsave(buffer, pixels, cmap="gray", vmin=-1000, vmax=1000, format="png")
    style = f"aspect-ratio:{shape[0]:.0f}/{shape[1]:.0f}"
    return (
        f'<figure><img class="scan" style="{style}" src="{_embedded(buffer.getvalue())}" alt="{html.escape(caption)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def front_view(path: Path, cube_side: int) -> tuple[np.ndarray, tuple[float, float]]:
    """A coronal slice from the middle of a scan, seen from the front: the head is up, the patient's right is left.

    Args:
        path: a NIfTI file.
        cube_side: voxels of a block from back to front; the slice is in the middle of one, where the least is painted.

    Returns:
        Pixels, from the top left, and width and height in mm.
    """
    scan = nib.as_closest_canonical(nib.load(path))
    voxels = np.asarray(scan.dataobj)
    depth = voxels.shape[1]
    middle = min(depth // 2 // cube_side * cube_side + cube_side // 2, depth - 1)
    plane = voxels[::-1, middle, ::-1].T
    x, _, z = scan.header.get_zooms()[:3]
    return np.ascontiguousarray(plane), (float(x * plane.shape[1]), float(z * plane.shape[0]))


def livers(out: Path) -> str:
    """The livers that the fine-tuned network found.

    Args:
        out: folder of the demo.

    Returns:
        HTML.
    """
    scores = {Path(row["case"]).name.removesuffix(".nii.gz"): row for row in liver_scores(out)}
    figures = []
    for name, row in scores.items():
        picture = (out / "liver_evaluation" / f"{name}.png").read_bytes()
        caption = f"{name}: Dice {float(row['dice'] or 'nan'):.2f}, {float(row['predicted_ml']):.0f} ml found"
        caption += f" of {float(row['label_ml']):.0f} ml. Solid: the truth; dashed: found"
        figures.append(
            f'<figure><img src="{_embedded(picture)}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return (
        "<h2>The livers it finds</h2><p>The same network, fine-tuned from these weights, in scans that it had not "
        f'seen.</p><div class="wide">{"".join(figures)}</div>'
    )


def study(out: Path) -> str:
    """The end of the page: whether the pretraining helped, in a sentence, each start's scores, and the whole report.

    Args:
        out: folder of the demo.

    Returns:
        HTML.
    """
    results = study_results(out)
    found = json.loads((results / "results.json").read_text(encoding="utf-8"))
    answer = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in found["answer"])
    rows = [
        [line["arm"], f"{line['score']:.3f}", ", ".join(f"{score:.3f}" for score in line["by_seed"])]
        for line in found["scores"]
    ]
    report = html.escape((results / "report.html").read_text(encoding="utf-8"))
    return (
        "<h2>Does the pretraining help?</h2><p>The livers once more, from a few labels only: short trainings from "
        "random and from the pretrained weights, several of each. So few of them show large differences only; the same "
        "two commands run such a study on your own scans.</p>"
        f"{answer}{html_table(['start', 'mean Dice', 'each training'], rows)}"
        "<details><summary>The whole report of this study</summary>"
        f'<iframe title="Report of the study" srcdoc="{report}"></iframe></details>'
    )


def folded(out: Path, run: Run) -> str:
    """What only some readers want: more pictures, all numbers, commands, settings and the machine.

    Args:
        out: folder of the demo.
        run: what else there is to tell.

    Returns:
        HTML.
    """
    cubes = _file_figure(out / "restoration" / "restoration.png")
    numbers = f"<p>Restored cubes, mean squared errors</p>{table(out / 'restoration' / 'restoration.csv')}"
    numbers += f"<p>Livers</p>{table(out / 'liver_evaluation' / 'segmentation.csv')}"
    curves = "".join(_file_figure(out / name / "history.png") for name in ("pretraining", "liver_training"))
    commands = "".join(
        f"<p>{html.escape(stage.title)}: {stage.seconds:.0f} s (announced: {stage.expected:.0f} s)</p>"
        f"<pre>{html.escape(command_line(stage.command, out, run.root))}</pre>"
        for stage in run.stages
    )
    settings = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in run.settings.items()
    )
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {run.device}, "
    machine += f"Python {platform.python_version()}, {datetime.datetime.now():%Y-%m-%d %H:%M}"
    parts = {
        "Validation cubes, one by one": cubes,
        "All numbers": numbers,
        "Training curves": f'<div class="wide">{curves}</div>',
        "Commands, and how long they took": f"<p>From the project's folder, with <code>{_out_name(out)}</code> as "
        f"the folder of results.</p>{commands}",
        "Settings and machine": f'<div class="scroll"><table>{settings}</table></div><p>{html.escape(machine)}</p>',
    }
    return "<h2>More</h2>" + "".join(
        f"<details><summary>{html.escape(title)}</summary>{content}</details>" for title, content in parts.items()
    )


def command_line(command: Sequence[str], out: Path, root: Path) -> str:
    """A command as a reader would type it: paths from the project's folder, no folder of this machine.

    Args:
        command: its words.
        out: folder of the demo.
        root: the project's folder.

    Returns:
        One line.
    """
    words = ["python" if word == sys.executable else word for word in command]
    words = [word.replace(str(out), _out_name(out)).replace(f"{root}{os.sep}", "") for word in words]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    """A word for the shell; a list of files keeps its quotes readable."""
    plain = not set(word) & set('"$`\\!')
    return f'"{word}"' if "'" in word and plain else shlex.quote(word)


def _out_name(out: Path) -> str:
    return out.name


def table(path: Path) -> str:
    """An HTML table of a CSV file; of paths in it only the names are shown.

    Args:
        path: the file.

    Returns:
        The table, with the file's header as its first row.
    """
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return html_table(header, [[re.split(r"[\\/]", cell)[-1] for cell in row] for row in rows])


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that scrolls by itself where it is wider than the screen.

    Args:
        header: names of the columns.
        rows: cells.

    Returns:
        The table.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _file_figure(path: Path) -> str:
    return f'<figure><img src="{_embedded(path.read_bytes())}" alt="{html.escape(path.stem)}"></figure>'


def _embedded(png: bytes) -> str:
    """A picture inside the page, so that the report is one file to hand on."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
