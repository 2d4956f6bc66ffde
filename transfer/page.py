# SPDX-License-Identifier: Apache-2.0
"""``report.html``: one file that needs no other, for a laptop and for a phone."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .analysis import Analysis, rate_kinds
from .answer import SCORE_NAMES, p_text, verdict
from .figures import draw_cases, draw_curve, draw_dose, draw_slices, embed
from .plan import Run
from .slices import read_slices
from .study import Labels, Study, order

STYLE = """
:root { --ink: #1b1f24; --soft: #5a6472; --line: #dde2e8; --tint: #f4f7fa; --accent: #0b6fa4; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
.answer { background: var(--tint); border-left: 4px solid var(--accent); padding: .8rem 1rem; margin: 1rem 0;
  font-size: 1.1rem; }
p { overflow-wrap: anywhere; }
.answer p { margin: .35rem 0; }
.note { color: var(--soft); font-size: .88rem; }
.warn { background: #fff6e5; border-left: 4px solid #d08700; padding: .6rem 1rem; margin: 1rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { text-align: right; padding: .25rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 4rem; }
th:first-child, td:first-child { text-align: left; }
td:last-child { white-space: normal; min-width: 12rem; line-height: 1.25; }
tr.primary td { background: #eaf4fa; font-weight: 600; }
tr.failed td { background: #fdeeee; }
code, pre { font-size: .78rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--tint); padding: .6rem; margin: .3rem 0; }
summary { cursor: pointer; color: var(--accent); margin: .5rem 0; }
""".strip()


def render_page(
    analysis: Analysis, protocol: Mapping[str, Any], summary: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]
) -> str:
    """Write the page.

    Args:
        analysis: the study's analysis.
        protocol: what was fixed before the first run.
        summary: what ``results.json`` holds.
        cases: scores of the cases.

    Returns:
        The page, with all figures in it.
    """
    study = analysis.study
    parts = [
        f"<h1>{_text(study.title)}</h1>",
        _answer(summary),
        _warnings(summary),
        _protocol(study, protocol),
        _curves(study, summary),
        _contrasts(study, summary),
        _cases(study, cases),
        _pictures(analysis),
        _dose(study, summary),
        _labels_saved(study, summary),
        _spread(study, summary),
        _arms(study),
        _rates(summary),
        _runs(analysis, summary),
        f'<h2>Method</h2><p class="note">{_text(summary["method"])}</p>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(study.title)}</title><style>{STYLE}</style></head><body><main>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _number(value: Any, digits: int = 3, sign: bool = False) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _range(low: Any, high: Any, sign: bool = False, digits: int = 3) -> str:
    if low is None and high is None:
        return "-"
    return f"{_number(low, digits, sign)} to {_number(high, digits, sign)}"


def _labels(labels: Labels | str) -> str:
    return "all" if labels == "all" else str(labels)


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None, raw: bool = False
) -> str:
    """Write a table that scrolls by itself where it is wider than the screen."""
    kinds = classes or [""] * len(rows)
    body = "".join(
        f"<tr{f' class={kind}' if kind else ''}>" + "".join(f"<td>{c if raw else _text(c)}</td>" for c in row) + "</tr>"
        for row, kind in zip(rows, kinds, strict=True)
    )
    top = "".join(f"<th>{_text(each)}</th>" for each in head)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(source: str, caption: str) -> str:
    return f'<figure><img src="{source}" alt="{_text(caption)}"><figcaption>{_text(caption)}</figcaption></figure>'


def _answer(summary: Mapping[str, Any]) -> str:
    lines = "".join(f"<p>{_text(sentence)}</p>" for sentence in summary["answer"])
    controls = "".join(f'<p class="note">{_text(sentence)}</p>' for sentence in summary["controls"])
    return f'<div class="answer">{lines}{controls}</div>'


def _warnings(summary: Mapping[str, Any]) -> str:
    runs, notes = summary["runs"], []
    if runs["left"]:
        notes.append(f"Preliminary: {runs['left']} of {runs['expected']} runs are not done yet.")
    if runs["failed"]:
        notes.append(f"{len(runs['failed'])} runs failed and are missing from the means: " + "; ".join(runs["failed"]))
    if runs["failed_before"]:
        notes.append(f"{runs['failed_before']} runs failed first and were done again.")
    if lost := summary["never_found"]:
        names = "; ".join(f"{each['region']} in {each['run']}" for each in lost)
        notes.append(
            f"In {len(lost)} runs a region is not found in any test case, and means mix two kinds of runs: {names}."
        )
    edges = [line for line in summary["learning_rates"] if line["at_edge"]]
    if edges:
        names = ", ".join(f"{line['arm']} with {_labels(line['labels'])} labels" for line in edges)
        notes.append(f"The best learning rate is at the end of the grid, a better one may lie beyond it: {names}.")
    few = min((len(line["seeds"]) for line in summary["scores"] if line["seeds"]), default=0)
    if 0 < few < 3:
        notes.append(f"Intervals from {few} seed(s) tell little of the spread over seeds.")
    return "".join(f'<p class="warn">{_text(note)}</p>' for note in notes)


def _protocol(study: Study, protocol: Mapping[str, Any]) -> str:
    first = protocol["versions"][0]
    primary = study.primary
    counts = ", ".join(map(_labels, primary.labels or study.labels))
    text = (
        f"Primary contrast: {primary.arm} against {primary.against} with {counts} labelled patients, each at "
        f"{'its best' if primary.rate == 'best' else 'the common'} learning rate; {study.score}, {study.steps} steps, "
        f"seeds {', '.join(map(str, study.seeds))}. Fixed on {first['time']}, before the first run; SHA-256 of the "
        f"study {first['sha256']}."
    )
    later = [
        f"Extended on {version['time']} (SHA-256 {version['sha256']}): {_changes(before['study'], version['study'])}."
        for before, version in zip(protocol["versions"], protocol["versions"][1:], strict=False)
    ]
    return "".join(f'<p class="note">{_text(line)}</p>' for line in [text, *later])


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    changed = [key for key in after if before.get(key) != after[key]]
    return "other " + ", ".join(changed) if changed else "nothing"


def _curves(study: Study, summary: Mapping[str, Any]) -> str:
    names = {
        "best": "Each arm at its best learning rate, chosen on a part of fold 0's training patients",
        "common": f"All arms at the learning rate {study.rates.common:g}",
    }
    figures = [
        _figure(
            embed(draw_curve(study, summary["scores"], kind)), names[kind] + ". Bars: 95 % intervals; points: seeds."
        )
        for kind in rate_kinds(study)
        if any(line["rate_kind"] == kind and line["score"] is not None for line in summary["scores"])
    ]
    rows = [
        [
            line["arm"], _labels(line["labels"]), line["rate_kind"],
            "-" if line["rate"] is None else f"{line['rate']:g}",
            _number(line["score"]), _range(line["low"], line["high"]), _number(line["spread_over_seeds"]),
            " ".join(_number(value) for value in line["by_seed"]), f"{line['runs']} of {line['runs_expected']}",
            str(len(line["failed"])),
        ]
        for line in summary["scores"]
    ]  # fmt: skip
    head = ["arm", "labels", "rate", "value", "score", "95 % interval", "s.d. of seeds", "seeds", "runs", "failed"]
    table = f"<details><summary>All scores</summary>{_table(head, rows)}</details>"
    return f'<h2>Score against label count</h2><div class="figures">{"".join(figures)}</div>{table}'


def _contrasts(study: Study, summary: Mapping[str, Any]) -> str:
    rows, classes = [], []
    for line in summary["contrasts"]:
        if line["difference"] is None:
            continue
        rows.append(
            [
                f"{line['arm']} - {line['against']}", _labels(line["labels"]), line["rate_kind"],
                _number(line["difference"], 4, True), _range(line["low"], line["high"], True, 4), p_text(line["p"]),
                "-" if line["p_holm"] is None else p_text(line["p_holm"]),
                _number(line["smallest_difference"], 4), str(line["patients"]), str(line["seeds"]), verdict(line),
            ]
        )  # fmt: skip
        classes.append("primary" if line["primary"] else "")
    head = ["contrast", "labels", "rate", f"difference ({SCORE_NAMES.get(study.score, study.score)})", "95 % interval"]
    head += ["p", "p, Holm", "could have shown", "patients", "seeds", "verdict"]
    note = '<p class="note">The shaded lines are the primary contrast; all others are secondary.</p>'
    return f"<h2>Differences, and what the study could have shown</h2>{_table(head, rows, classes)}{note}"


def _cases(study: Study, cases: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({line["labels"] for line in cases}, key=order)
    figures = [
        _figure(embed(draw_cases(study, cases, labels)), f"{study.primary}, each case's mean over seeds.")
        for labels in counts
    ]
    return f'<h2>Case by case</h2><div class="figures">{"".join(figures)}</div>' if figures else ""


def _pictures(analysis: Analysis) -> str:
    """Show the best, the median and the worst case of each arm, of its first seed."""
    study = analysis.study
    labels = (study.primary.labels or study.labels)[0]
    figures = []
    for arm in study.arms:
        rate = analysis.cell(arm, labels, study.primary.rate).rate
        if rate is None:
            continue
        name = Run("main", arm, labels, 0, study.seeds[0], rate).name
        path = analysis.results.runs / name / "slices.npz"
        if not path.is_file():
            continue
        slices, regions = read_slices(path)
        ranked = sorted(analysis.results.cases(name), key=lambda case: float(case["score"]))
        places = (("worst", 0), ("median", len(ranked) // 2), ("best", len(ranked) - 1))
        chosen = [
            (f"{kind} {float(ranked[place]['score']):.3f}\n{ranked[place]['patient']}", slices[ranked[place]["case"]])
            for kind, place in places
        ]
        caption = f"{arm}, {_labels(labels)} labelled patients, seed {study.seeds[0]}. Solid: label, dashed: prediction"
        caption += f" ({', '.join(regions)})."
        figures.append(_figure(embed(draw_slices(chosen, regions), "png"), caption))
    if not figures:
        return ""
    return f'<h2>Worst, median and best case</h2><div class="figures">{"".join(figures)}</div>'


def _dose(study: Study, summary: Mapping[str, Any]) -> str:
    figures = []
    for kind in rate_kinds(study):
        lines = [line for line in summary["dose_response"] if line["rate_kind"] == kind]
        if len({line["dose"] for line in lines}) > 1:
            caption = f"Dose-response, {'best' if kind == 'best' else 'common'} learning rate."
            figures.append(_figure(embed(draw_dose(study, lines)), caption))
    return f'<h2>Dose-response</h2><div class="figures">{"".join(figures)}</div>' if figures else ""


def _labels_saved(study: Study, summary: Mapping[str, Any]) -> str:
    lines = summary["labels_saved"]
    if not lines:
        return ""
    arm, against = study.primary.arm, study.primary.against
    rows = []
    for line in lines:
        needed = "not reached" if line["never_reached"] else f"{line['against_needs']:.1f}"
        needed = f"at most {needed}" if line["at_smallest_count"] else needed
        most = f"more than {lines[-1]['patients']:g}"
        low, high = (most if line[end] is None else f"{line[end]:.1f}" for end in ("low", "high"))
        share = "-" if line["share"] is None else f"{line['share']:.0%}"
        share = f"at least {share}" if line["at_smallest_count"] else share
        rows.append([f"{line['patients']:g}", needed, most if low == high == most else f"{low} to {high}", share])
    head = [f"labels of {arm}", f"labels {against} needs for the same score", "95 % interval", "share"]
    note = (
        f"The learning curve of {against} is taken as straight over the logarithm of the label count; the share is "
        f"what {arm} uses of the labels that {against} needs."
    )
    return f'<h2>Labels saved</h2>{_table(head, rows)}<p class="note">{_text(note)}</p>'


def _spread(study: Study, summary: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{line['arm']} / {line['against']}", _labels(line["labels"]), line["rate_kind"],
            _number(line["spread_ratio"], 2), _range(line["spread_ratio_low"], line["spread_ratio_high"], digits=2),
            str(line["seeds"]),
        ]
        for line in summary["contrasts"]
        if line["spread_ratio"] is not None
    ]  # fmt: skip
    head = ["arms", "labels", "rate", "ratio of the s.d. over seeds", "95 % interval", "seeds"]
    return f"<h2>Spread over seeds</h2>{_table(head, rows)}" if rows else ""


def _arms(study: Study) -> str:
    rows = []
    for arm in study.arms.values():
        start = "random" if arm.weights is None else arm.weights + (", values permuted" if arm.permute else "")
        kinds = ((arm.overrides, ""), (arm.train_overrides, " (training)"), (arm.evaluate_overrides, " (evaluation)"))
        settings = ", ".join(f"{key} = {value}{stage}" for own, stage in kinds for key, value in own.items()) or "-"
        rows.append([arm.name, start, settings, "-" if arm.dose is None else f"{arm.dose:g}", arm.description or "-"])
    return f"<h2>Arms</h2>{_table(['arm', 'start', 'settings', 'dose', ''], rows)}"


def _rates(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            line["arm"],
            _labels(line["labels"]),
            "-" if line["rate"] is None else f"{line['rate']:g}",
            "; ".join(f"{rate}: {_number(score)}" for rate, score in line["scores"].items()) or "-",
        ]
        for line in summary["learning_rates"]
    ]
    if not any(line["scores"] for line in summary["learning_rates"]):
        return ""
    table = _table(["arm", "labels", "chosen rate", "inner validation score by rate"], rows)
    return f"<h2>Learning rates</h2><details><summary>Rates and their scores</summary>{table}</details>"


def _runs(analysis: Analysis, summary: Mapping[str, Any]) -> str:
    rows, classes = [], []
    for name, row in sorted(analysis.rows.items()):
        commands = (
            f"<details><summary>commands</summary><pre>{_text(row['train_command'])}</pre>"
            f"<pre>{_text(row['evaluate_command'])}</pre></details>"
        )
        state = _text(row["status"] if row["status"] == "done" else f"failed: {row['error']}")
        seconds = "-" if row.get("seconds") is None else f"{row['seconds']:.0f}"
        score = _number(row["score"], 4)
        rows.append([_text(name), str(row["patients"]), score, seconds, _text(row.get("device", "-")), state, commands])
        classes.append("" if row["status"] == "done" else "failed")
    table = _table(["run", "patients", "score", "seconds", "device", "status", ""], rows, classes, raw=True)
    runs = summary["runs"]
    hours = sum(float(row.get("seconds") or 0) for row in analysis.rows.values()) / 3600
    note = (
        f"{runs['finished']} runs finished, {len(runs['failed'])} of them failed, {runs['left']} left; {hours:.1f} "
        "hours of single runs. In commands $BUNDLE is the bundle, $STUDY the folder of the study's file, $DATA the "
        "data set and $OUT the folder of the results."
    )
    return f'<h2>Runs</h2><p class="note">{_text(note)}</p><details><summary>All runs</summary>{table}</details>'
