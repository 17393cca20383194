"""What a run's `metrics.json` says of held-out rows: the metrics of their log-probabilities at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolcls import metrics
from smolcls.calibration import apply_temperature


def measure(
    names: Sequence[str], rows: Sequence[Sequence[float]], truth: Sequence[int], temperature: float = 1.0
) -> dict[str, Any]:
    """Metrics of scored rows, JSON-ready, with the temperature they hold for.

    Args:
        names: the labels, in the order of the log-probabilities.
        rows: label log-probabilities, one sequence a row; at least one row.
        truth: index of the true label of each row.
    """
    spreads = [apply_temperature(row, temperature) for row in rows]
    return {**metrics.measure(names, spreads, truth).to_dict(), "temperature": temperature}
