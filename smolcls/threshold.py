"""The lowest confidence at which to answer, so that the error stays below a limit: with a bound, or not at all.

    choice = choose_threshold(confidences, correct, max_error=0.05)
    smolcls.load("llamacpp", min_confidence=choice.threshold)

Either the error among the answers is limited, or that over all traffic, where what is not answered is no error. A grid
of thresholds is tried that was fixed beforehand; `smolcls.bounds` corrects for their number. The bound is for texts
drawn as the rows were, one by one: rows that resemble each other have to be thinned out before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from smolcls.bounds import certify, check_open_fraction, error_upper_bound
from smolcls.errors import ConfigError, InputError

Of = Literal["answered", "traffic"]

#: Thresholds that are tried, from the safest on; the last answers everything. Finer towards 1, where confidences crowd.
GRID = (
    0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95, 0.925, 0.9,
    0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0,
)  # fmt: skip
_MOST_ROWS = 100_000_000  # beyond that no number of rows is worth naming


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """A threshold and what it does on the rows it was chosen on.

    Attributes:
        threshold: answers of at least this confidence are given; 0 gives all.
        of: whether `max_error` limits the error among the `answered` rows or among all `traffic`.
        max_error: with probability `confidence` the true error is at most this. That is the promise.
        confidence: that probability.
        rows, answered, errors: rows in all, those answered, and wrong answers among these.
        error_bound: the bound by which the threshold passed, at most `max_error`. It holds by itself at a level that
            is corrected for the thresholds tried.
    """

    threshold: float
    of: Of
    max_error: float
    confidence: float
    rows: int
    answered: int
    errors: int
    error_bound: float

    @property
    def share_answered(self) -> float:
        """Share of the rows that are answered."""
        return self.answered / self.rows

    @property
    def observed_error(self) -> float:
        """Share of wrong answers, among the answered or among all rows as `of` says."""
        return self.errors / (self.answered if self.of == "answered" else self.rows)


def choose_threshold(
    confidences: Sequence[float],
    correct: Sequence[bool],
    *,
    max_error: float,
    confidence: float = 0.95,
    of: Of = "answered",
) -> ThresholdChoice:
    """The lowest threshold of `GRID` whose error is at most `max_error` with probability `confidence`.

    Args:
        confidences: the likeliest label's probability for each held-out row.
        correct: whether that label is the row's.
        of: limit the error among the `answered` rows, or among all `traffic`.

    Raises:
        InputError: no threshold keeps the limit; the message says how many rows would be needed, or that more rows
            would not help. Or the rows are no rows.
        ConfigError: an argument is out of its range.
        MissingExtraError: SciPy is not installed.
    """
    check_open_fraction(max_error, "max_error")
    check_open_fraction(confidence, "confidence")
    if of not in get_args(Of):
        raise ConfigError(f'of must be "answered" or "traffic"; found {of!r}.')
    _check_rows(confidences, correct)
    answered, errors = _counts(confidences, correct)
    traffic = of == "traffic"
    rows = len(confidences)
    tries = [(wrong, rows if traffic else count) for wrong, count in zip(errors, answered, strict=True)]
    # Over all traffic each further answer can only be one more error; among the answers there is no such order.
    bounds = certify(tries, max_error=max_error, confidence=confidence, growing=traffic)
    for place in reversed(range(len(GRID))):
        bound = bounds[place]
        if bound is not None:
            return ThresholdChoice(GRID[place], of, max_error, confidence, rows, answered[place], errors[place], bound)
    level = (1.0 - confidence) / (1 if traffic else len(GRID))
    raise InputError(_why_none(tries, rows, max_error, confidence, level))


def _check_rows(confidences: Sequence[float], correct: Sequence[bool]) -> None:
    if len(confidences) != len(correct) or not len(confidences):
        raise InputError(
            f"Expected a confidence and a judgement for each row, and one row at least; found {len(confidences)} "
            f"confidences and {len(correct)} judgements."
        )
    for position, value in enumerate(confidences, start=1):
        if not 0.0 <= value <= 1.0 + 1e-9:
            raise InputError(f"Row {position}: expected a confidence from 0 to 1; found {value!r}.")


def _counts(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[list[int], list[int]]:
    """For each threshold the rows that it answers, and the wrong ones among them."""
    wrong = [value for value, right in zip(confidences, correct, strict=True) if not right]
    return (
        [sum(value >= threshold for value in confidences) for threshold in GRID],
        [sum(value >= threshold for value in wrong) for threshold in GRID],
    )


def _why_none(tries: Sequence[tuple[int, int]], rows: int, max_error: float, confidence: float, level: float) -> str:
    """Why no threshold passes: too few rows, or too many errors at each."""
    asked = f"an error of at most {max_error:g} with confidence {confidence:g}"
    needed = min(_rows_needed(wrong, count, rows, max_error, level) for wrong, count in tries)
    if needed <= _MOST_ROWS:
        return (
            f"The rows are too few for {asked}: found {rows}; it takes about {_rounded(needed)} like these. Add rows, "
            "or allow a larger error."
        )
    place = min(
        (place for place, (_, count) in enumerate(tries) if count > 0),
        key=lambda place: tries[place][0] / tries[place][1],
        default=len(tries) - 1,
    )
    wrong, count = tries[place]
    return (
        f"No threshold gives {asked}, and more rows like these would not change that: even at {GRID[place]:g}, where "
        f"the fewest are wrong, {wrong} of {count} are. Allow a larger error, or use a better model."
    )


def _rows_needed(wrong: int, count: int, rows: int, max_error: float, level: float) -> float:
    """How many rows like these it takes until a try passes by itself, or infinity."""
    if count == 0 or wrong / count >= max_error:
        return math.inf

    def passes(total: int) -> bool:
        more_wrong, more = -(-wrong * total // rows), count * total // rows
        return error_upper_bound(min(more_wrong, more), more, 1.0 - level) <= max_error

    high = rows
    while not passes(high):
        high *= 2
        if high > _MOST_ROWS:
            return math.inf
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return float(high)


def _rounded(count: float) -> int:
    """Two leading digits, rounded up: more would promise what only the rows can tell."""
    step: int = 10 ** max(0, len(str(int(count))) - 2)
    return math.ceil(count / step) * step
