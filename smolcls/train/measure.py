"""How good label log-probabilities are: accuracy, by label, and how far confidences can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolcls.calibration import apply_temperature, mean_nll

BINS = 15


def measure(
    names: Sequence[str], rows: Sequence[Sequence[float]], truth: Sequence[int], temperature: float = 1.0
) -> dict[str, Any]:
    """Metrics of scored rows, JSON-ready.

    Args:
        names: the labels, in the order of the log-probabilities.
        rows: label log-probabilities, one sequence a row; at least one row.
        truth: index of the true label of each row.

    Returns:
        `rows`, `accuracy`, `macro_f1`, `by_label` (rows, recall, precision, F1), `confusion` (counts, a line for
        each true label), `ece` (expected calibration error of the likeliest label in 15 bins of equal width; Guo et
        al. 2017, section 2), `nll` (mean negative log-likelihood, nats) and `temperature`.
    """
    spreads = [apply_temperature(row, temperature) for row in rows]
    answers = [max(range(len(names)), key=spread.__getitem__) for spread in spreads]
    confusion = [[0] * len(names) for _ in names]
    for true, answer in zip(truth, answers, strict=True):
        confusion[true][answer] += 1
    by_label = {name: _of_label(confusion, index) for index, name in enumerate(names)}
    right = [true == answer for true, answer in zip(truth, answers, strict=True)]
    return {
        "rows": len(rows),
        "accuracy": sum(right) / len(right),
        "macro_f1": sum(item["f1"] for item in by_label.values()) / len(names),
        "by_label": by_label,
        "confusion": confusion,
        "ece": _ece([max(spread) for spread in spreads], right),
        "nll": mean_nll(rows, truth, temperature),
        "temperature": temperature,
    }


def _of_label(confusion: Sequence[Sequence[int]], index: int) -> dict[str, float]:
    hits, rows, answers = confusion[index][index], sum(confusion[index]), sum(line[index] for line in confusion)
    return {
        "rows": rows,
        "recall": hits / rows if rows else 0.0,
        "precision": hits / answers if answers else 0.0,
        "f1": 2 * hits / (rows + answers) if rows + answers else 0.0,
    }


def _ece(confidences: Sequence[float], right: Sequence[bool]) -> float:
    gaps = [0.0] * BINS
    for confidence, hit in zip(confidences, right, strict=True):
        gaps[min(BINS - 1, int(confidence * BINS))] += confidence - hit
    return sum(map(abs, gaps)) / len(confidences)
