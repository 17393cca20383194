"""Bounds on an error from a finite number of rows, and which of several tries keep a limit all the same.

Whoever tries twenty thresholds on the same rows and takes the best has been lucky twenty times. `certify` tests a
grid of tries so that with probability `confidence` not one that it lets pass is beyond the limit; so any of those may
be chosen, by whatever measure. Three ways to share out the 1 - confidence that may go wrong:

- Bonferroni gives each try an equal part. It is blind to what the others showed.
- Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995; for risk control Angelopoulos et al. 2021, "Learn then
  Test", arXiv:2110.01052, section 2) gives the first try all of it, passes it on as long as the tries pass, and ends
  with the first that does not. Nothing is better where the first try is the safest, as with an error counted over
  all traffic, which can only grow as more is answered. But an error among the answers is worst known at the highest
  threshold, which few rows reach; there it ends before it began.
- The fallback procedure (Wiens 2003, "A fixed sequence Bonferroni procedure for testing multiple endpoints",
  Pharmaceutical Statistics 2) gives each try an equal part, and what a passing try had to the next one besides. It
  never passes less than Bonferroni, and a try that fails does not end it.

All three hold without any assumption on how the errors of different tries hang together, provided that the grid and
its order were fixed without a look at the rows, and that these are independent draws of what is to come.

This module knows counts, and nothing of classifiers.
"""

from __future__ import annotations

from collections.abc import Sequence

from smolcls.errors import ConfigError, InputError, require


def error_upper_bound(errors: int, count: int, confidence: float) -> float:
    """The rate that the true error rate does not exceed, with probability `confidence`.

    One-sided and exact: Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26. Of no rows nothing is known, so the bound is 1.

    Args:
        errors: wrong answers among `count` independent rows.
        confidence: above 0 and below 1.

    Raises:
        InputError: the counts are no counts.
        ConfigError: the confidence is out of its range.
        MissingExtraError: SciPy is not installed.
    """
    if not 0 <= errors <= count:
        raise InputError(f"Expected from 0 to {count} errors among {count} rows; found {errors}.")
    check_open_fraction(confidence, "confidence")
    if errors == count:
        return 1.0
    stats = require("scipy.stats", extra="evaluate", purpose="A bound on an error")
    # Near a confidence of 1 the quantile would be lost to rounding; the survival function's is not.
    return float(stats.beta.isf(1.0 - confidence, errors + 1, count - errors))


def certify(
    tries: Sequence[tuple[int, int]], *, max_error: float, confidence: float, growing: bool = False
) -> list[float | None]:
    """Which tries keep the limit, all of them at once with probability `confidence`.

    Args:
        tries: (errors, count) of each, in an order that was fixed without a look at the rows: the safest first.
        max_error: the limit on the true error rate, above 0 and below 1.
        growing: whether the true error rate can only grow from each try to the next, and all counts are the same.
            Then fixed-sequence testing is taken, else the fallback procedure.

    Returns:
        For each try the upper bound on its error rate by which it passed, or None where it did not.

    Raises:
        InputError, ConfigError, MissingExtraError: as `error_upper_bound`.
    """
    check_open_fraction(max_error, "max_error")
    check_open_fraction(confidence, "confidence")
    part = (1.0 - confidence) / max(1, len(tries))
    carried = 1.0 - confidence if growing else 0.0
    found: list[float | None] = []
    for errors, count in tries:
        level = carried if growing else carried + part
        bound = 1.0 if level <= 0.0 else error_upper_bound(errors, count, 1.0 - level)
        passes = bound <= max_error
        carried = level if passes else 0.0
        found.append(bound if passes else None)
    return found


def check_open_fraction(value: float, what: str) -> float:
    """`value` where it is a number above 0 and below 1, or `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1.0:
        raise ConfigError(f"{what} must be a number above 0 and below 1; found {value!r}.")
    return float(value)
