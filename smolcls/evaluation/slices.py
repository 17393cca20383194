"""Where a classifier is good and where not: the same metrics on parts of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smolcls import metrics
from smolcls.data.tables import LabelledText
from smolcls.errors import InputError
from smolcls.evaluation.run import Evaluation

LENGTH = "length"
USUAL = ("certainty", "source")
OTHERS = "(others)"
_MOST = 12  # values of a column that have a line of their own

# The upper ends of the bands, in characters.
_BANDS = ((20, "up to 20 characters"), (60, "21 to 60 characters"), (200, "61 to 200 characters"))
_LONGEST = "over 200 characters"


@dataclass(frozen=True, slots=True)
class Slice:
    """Metrics of the rows that have one value in a column.

    Attributes:
        column, value: which rows.
        rows: how many.
        accuracy: with its interval at 95 %.
        macro_f1: mean F1 over the labels that come.
        confidence: mean confidence; far above the accuracy, the answers are overconfident here.
    """

    column: str
    value: str
    rows: int
    accuracy: float
    interval: metrics.Interval
    macro_f1: float
    confidence: float


def columns_of(rows: Sequence[LabelledText], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns to slice by: the length, the usual ones that the rows have, and those that are wanted.

    Raises:
        InputError: a wanted column is not there.
    """
    there = dict.fromkeys(name for row in rows for name in row.columns)
    for name in wanted:
        if name not in there and name != LENGTH:
            raise InputError(f"The rows have no column {name!r} to slice by; they have {', '.join((*there, LENGTH))}.")
    return tuple(dict.fromkeys((LENGTH, *(name for name in USUAL if name in there), *wanted)))


def slices(evaluation: Evaluation, columns: Sequence[str]) -> list[Slice]:
    """The metrics of each value of each column, the most frequent first; rare values are one slice."""
    return [
        _slice(evaluation, column, value, places)
        for column in columns
        for value, places in _parts(evaluation.rows, column)
    ]


def _parts(rows: Sequence[LabelledText], column: str) -> list[tuple[str, list[int]]]:
    value_of: Callable[[LabelledText], str] = _band if column == LENGTH else lambda row: str(row.columns.get(column))
    parts: dict[str, list[int]] = {band: [] for _, band in (*_BANDS, (0, _LONGEST))} if column == LENGTH else {}
    for place, row in enumerate(rows):
        parts.setdefault(value_of(row), []).append(place)
    found = [(value, places) for value, places in parts.items() if places]
    if column != LENGTH:
        found.sort(key=lambda item: -len(item[1]))
    if len(found) > _MOST:
        found[_MOST - 1 :] = [(OTHERS, sorted(place for _, places in found[_MOST - 1 :] for place in places))]
    return found


def _band(row: LabelledText) -> str:
    return next((band for most, band in _BANDS if len(row.text) <= most), _LONGEST)


def _slice(evaluation: Evaluation, column: str, value: str, places: Sequence[int]) -> Slice:
    spreads = [evaluation.probabilities[place] for place in places]
    found = metrics.measure(evaluation.labels, spreads, [evaluation.truth[place] for place in places])
    return Slice(
        column,
        value,
        found.rows,
        found.accuracy,
        found.accuracy_interval,
        found.macro_f1,
        sum(map(max, spreads)) / len(spreads),
    )
