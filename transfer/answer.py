# SPDX-License-Identifier: Apache-2.0
"""What a study found, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .study import Study

LEVEL = 0.05

SCORE_NAMES = {"dice": "Dice", "auc": "AUC", "iou": "IoU", "surface_dice": "surface Dice"}


def answer(study: Study, contrasts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Answer a study's question, its interval included: a sentence for each label count of the primary contrast.

    Args:
        study: the study.
        contrasts: see ``Analysis.contrast_table``.

    Returns:
        The sentences.
    """
    lines = [line for line in contrasts if line["primary"]]
    sentences = [sentence(study, line) for line in lines]
    return sentences or ["The primary contrast has no finished pair of runs yet."]


def sentence(study: Study, line: Mapping[str, Any]) -> str:
    """Say what a contrast found at one label count.

    Args:
        study: the study.
        line: a line of the contrasts.

    Returns:
        One sentence, or two where no difference is shown: what could have been seen is the second.
    """
    amount = "all" if line["labels"] == "all" else str(line["labels"])
    start = f"With {amount} labelled patients, {line['arm']} against {line['against']}: "
    if line["difference"] is None:
        return start + "no finished pair of runs yet."
    name = SCORE_NAMES.get(study.score, study.score)
    interval = "" if line["low"] is None else f" (95 % interval {line['low']:+.3f} to {line['high']:+.3f})"
    p = line["p"] if line["p_holm"] is None else line["p_holm"]
    scope = f"{line['patients']} test patients, {line['seeds']} {'seed' if line['seeds'] == 1 else 'seeds'}"
    found = f"{start}{name} {line['difference']:+.3f}{interval}, p {p_text(p, True)}, {scope}: {verdict(line)}."
    if verdict(line).startswith("no difference") and line["smallest_difference"] is not None:
        found += f" The smallest difference that this study could have shown is {line['smallest_difference']:.3f}"
        found += " (80 % power)."
    return found


def verdict(line: Mapping[str, Any]) -> str:
    """Say whether a difference is shown, in a few words.

    The test is about other patients, for the networks that were trained; the interval is about other seeds too. Both
    have to tell.
    """
    p = line["p"] if line["p_holm"] is None else line["p_holm"]
    if p is None or p >= LEVEL or line["low"] is None:
        return "no difference shown"
    if line["low"] <= 0 <= line["high"]:
        return "no difference shown beyond these seeds"
    alone = " with this one seed, which says nothing of others" if line.get("seeds") == 1 else ""
    return f"{line['arm']} is {'better' if line['difference'] > 0 else 'worse'}{alone}"


def p_text(p: float, sentence: bool = False) -> str:
    """Write a p value, for a table or after the word "p" in a sentence.

    Example:
        >>> p_text(0.0341), p_text(0.0341, True), p_text(0.0001, True)
        ('0.034', '= 0.034', 'below 0.001')
    """
    if p < 0.001:
        return "below 0.001"
    return f"= {p:.3f}" if sentence else f"{p:.3f}"


def control_sentences(study: Study, contrasts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what the permuted controls tell of a gain: whether it is one of features or of the weights' scale.

    Args:
        study: the study.
        contrasts: see ``Analysis.contrast_table``.

    Returns:
        A sentence for each control and label count of the primary contrast.
    """
    primary, sentences = study.primary, []
    controls = [name for name, arm in study.arms.items() if arm.permute and name != primary.arm]
    for control in controls:
        for line in contrasts:
            pair = line["arm"], line["against"], line["rate_kind"]
            if pair != (primary.arm, control, primary.rate) or line["difference"] is None:
                continue
            if line["labels"] in (primary.labels or study.labels):
                sentences.append(f"Control without features: {sentence(study, line)}")
    return list(dict.fromkeys(sentences))
