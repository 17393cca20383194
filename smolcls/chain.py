"""Chooses the thresholds of a whole chain from labelled rows, and bounds the error of what it chose.

Pure arithmetic over what `measured.py` found. One half of the rows proposes chains, the other half judges them:

0. Where stages shall pool what they say (`pool.py`), the first half chooses the weights.
1. On the first half every vector of a grid of thresholds is tried. The chains that no other beats in both error
   and mean latency are the frontier.
2. The second half had no part in that, so the errors that one of them makes there are binomial, and the one-sided
   bound of Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the
   binomial", holds for any one chain that the first half named.
3. A limit on the error is kept by fixed-sequence testing, as in Angelopoulos et al. (2021), "Learn then Test",
   arXiv:2110.01052: along the frontier from the most accurate chain down, as long as the bound of each stays
   within the limit. The walk takes a chain beyond the limit only where the first such one on its way passes its
   test, with probability 1 - confidence at most, however many chains are tried. What is promised is therefore the
   limit, and not the smaller bound of the chain at which the walk ended.

Rows of one family resemble each other, and a bound counts independent rows. So a family stands in one half only,
and in the second half one row of it, drawn at random, speaks for it: the error is one in which each family counts
once. The bound is for texts that are drawn as the rows were. A router's own `min_confidence` is left out of account.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from smolcls.bounds import check_open_fraction, error_upper_bound
from smolcls.errors import ConfigError, InputError
from smolcls.measured import Measured

SEED = 7
BUDGET = 10_000  # vectors of thresholds that are tried; each costs some tens of microseconds
_FINEST = 100  # thresholds of one stage; more would follow single rows
_DIGITS = 6  # of a threshold; confidences crowd below 1


@dataclass(frozen=True)
class Aim:
    """What a chain is chosen for, one of three, and how sure its bound shall be.

    Args:
        max_error: take the fastest chain whose error stays within this, with probability `confidence`.
        target_accuracy: take the fastest chain that is so accurate on the rows that propose it. That is an aim; what
            is promised is the lower bound in the result.
        max_latency_ms: take the most accurate chain whose mean latency is within this.
        confidence: probability that the bound holds.

    Raises:
        ConfigError: none or several of the three, or a value out of its range.
    """

    max_error: float | None = None
    target_accuracy: float | None = None
    max_latency_ms: float | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        aims = {name: value for name, value in vars(self).items() if name != "confidence" and value is not None}
        if len(aims) != 1:
            raise ConfigError(
                "A chain is fitted for one aim: give one of max_error, target_accuracy and max_latency_ms; "
                f"found {', '.join(aims) or 'none'}."
            )
        for name, value in {**aims, "confidence": self.confidence}.items():
            if name != "max_latency_ms":
                check_open_fraction(value, name)
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ConfigError(f"{name} must be a number above 0; found {value!r}.")


@dataclass(frozen=True, slots=True)
class Point:
    """One chain on some rows.

    Attributes:
        thresholds: least confidences, one a stage; the last is 0.
        errors, rows: wrong answers among so many.
        mean_latency_ms: milliseconds a row, of all the stages that were asked.
        shares: share of the rows that each stage answered.
    """

    thresholds: tuple[float, ...]
    errors: int
    rows: int
    mean_latency_ms: float
    shares: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return 1.0 - self.errors / self.rows


@dataclass(frozen=True, slots=True)
class Frontier:
    """Chains that none beats in both error and mean latency, the fastest first.

    Attributes:
        stages: the stages' names.
        proposed: on the half of the rows that named them.
        checked: the same chains on the other half; they need not be in order there, for nothing was chosen on it.
        pools: for each stage the weights of its pool that the first half gave it, or None; None in all where none were
            fitted, and the stages keep what they have.
    """

    stages: tuple[str, ...]
    proposed: tuple[Point, ...]
    checked: tuple[Point, ...]
    pools: tuple[Mapping[str, float] | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChainFit:
    """The chain that was chosen, on rows that had no part in the choice.

    Attributes:
        stages: the stages' names.
        thresholds: least confidences, one a stage; the last is 0.
        accuracy: share of right answers.
        accuracy_lower: with probability `confidence` the accuracy on further texts is at least this; fitted for
            `max_error`, it is 1 - max_error.
        confidence: that probability.
        mean_latency_ms: milliseconds a row.
        shares: share of the rows that each stage answered.
        rows: the number of these rows.
        pools: as the `Frontier` has them.
    """

    stages: tuple[str, ...]
    thresholds: tuple[float, ...]
    accuracy: float
    accuracy_lower: float
    confidence: float
    mean_latency_ms: float
    shares: tuple[float, ...]
    rows: int
    pools: tuple[Mapping[str, float] | None, ...] | None = None


def evaluate(measured: Measured, thresholds: Sequence[float]) -> Point:
    """What the chain does on the rows with these thresholds, one a stage; the last stage answers what is left."""
    import numpy as np

    rows = len(measured.families)
    waiting = np.ones(rows, dtype=bool)
    right, spent, shares = 0, 0.0, []
    for stage, threshold in enumerate(thresholds):
        last = stage == len(thresholds) - 1
        taken = waiting if last else waiting & (measured.confidence[stage] >= threshold)
        spent += float(measured.latency_ms[stage][waiting].sum())
        right += int(np.count_nonzero(measured.right[stage] & taken))
        shares.append(int(np.count_nonzero(taken)) / rows)
        waiting = waiting & ~taken
    return Point(tuple(thresholds), rows - right, rows, spent / rows, tuple(shares))


def grids(measured: Measured, budget: int = BUDGET) -> list[list[float]]:
    """Thresholds to try, in ascending order for each stage but the last: quantiles of its confidences, and 1.

    Args:
        budget: the most vectors that their product may make.
    """
    import numpy as np

    stages = len(measured.stages) - 1
    finest = 1 if stages == 0 else min(_FINEST, max(2, int(budget ** (1 / stages))))
    found = []
    for confidence in measured.confidence[:-1]:
        seen = confidence[np.isfinite(confidence)]
        # Of values that were seen, so that each quantile makes a difference; rounded down, so that it lets them pass.
        cuts = np.quantile(seen, np.linspace(0, 1, finest - 1), method="lower") if seen.size > 0 else seen
        floors = np.floor(cuts * 10**_DIGITS) / 10**_DIGITS
        found.append(sorted({1.0, *(min(max(float(cut), 0.0), 1.0) for cut in floors)}))
    return found


def propose(measured: Measured, budget: int = BUDGET) -> list[Point]:
    """The chains that no other of the grid beats in both error and mean latency, the fastest first.

    Of chains that do the same the most careful is kept. A stage that no row comes to gets 0: only where another
    one fails will it be asked, and then its answer is better than none.
    """
    points = [evaluate(measured, [*cuts, 0.0]) for cuts in itertools.product(*grids(measured, budget))]
    points.sort(key=lambda point: (point.mean_latency_ms, point.errors, [-cut for cut in point.thresholds]))
    kept: list[Point] = []
    for point in points:
        if not kept or point.errors < kept[-1].errors:
            left = [1.0 - sum(point.shares[:stage]) for stage in range(len(point.shares))]
            cuts = [cut if share > 1e-9 else 0.0 for cut, share in zip(point.thresholds, left, strict=True)]
            kept.append(replace(point, thresholds=tuple(cuts)))
    return kept


def halve(families: Sequence[str], seed: int = SEED) -> tuple[list[int], list[int]]:
    """Positions of the rows that propose chains, and of those that judge them: of each other family one row.

    Raises:
        InputError: fewer than two families.
    """
    draw = random.Random(seed)
    members: dict[str, list[int]] = {}
    for place, family in enumerate(families):
        members.setdefault(family, []).append(place)
    if len(members) < 2:
        raise InputError(f"A chain is fitted on rows of two families at the least; found {len(members)}.")
    names = list(members)
    draw.shuffle(names)
    half = len(names) // 2
    return (
        sorted(place for name in names[:half] for place in members[name]),
        sorted(draw.choice(members[name]) for name in names[half:]),
    )


def explore(measured: Measured, *, pool: bool = False, seed: int = SEED, budget: int = BUDGET) -> Frontier:
    """The frontier that one half of the rows proposes, and what its chains do on the other half.

    Args:
        pool: first give each stage a pool with the stages before it, its weights fitted on the half that proposes.

    Raises:
        InputError: fewer than two families of rows.
    """
    proposing, judging = halve(measured.families, seed)
    pools = None
    if pool and measured.opinions is not None:
        pools = measured.opinions.only(proposing).fit_pools()
        measured = measured.pooled(pools)
    proposed = propose(measured.only(proposing), budget)
    unseen = measured.only(judging)
    checked = tuple(evaluate(unseen, point.thresholds) for point in proposed)
    return Frontier(measured.stages, tuple(proposed), checked, pools)


def choose(frontier: Frontier, aim: Aim) -> ChainFit:
    """The chain of the frontier that serves the aim.

    Raises:
        InputError: none does; the message says whether the rows are too few or the chains not good enough.
    """
    if aim.max_error is not None:
        place = _within_error(frontier.checked, aim.max_error, aim.confidence)
    elif aim.target_accuracy is not None:
        place = _first_accurate(frontier.proposed, aim.target_accuracy)
    else:
        assert aim.max_latency_ms is not None
        place = _last_fast(frontier.proposed, aim.max_latency_ms)
    point = frontier.checked[place]
    bound = aim.max_error
    if bound is None:  # one chain, named by the other half
        bound = error_upper_bound(point.errors, point.rows, aim.confidence)
    return ChainFit(
        frontier.stages,
        point.thresholds,
        point.accuracy,
        1.0 - bound,
        aim.confidence,
        point.mean_latency_ms,
        point.shares,
        point.rows,
        frontier.pools,
    )


def _within_error(checked: Sequence[Point], limit: float, confidence: float) -> int:
    """Where the walk from the most accurate chain down ends, each one's bound within the limit."""
    passed = itertools.takewhile(
        lambda point: error_upper_bound(point.errors, point.rows, confidence) <= limit, reversed(checked)
    )
    if (steps := len(list(passed))) > 0:
        return len(checked) - steps
    best = checked[-1]
    # Without a single error the bound of n rows is 1 - (1 - confidence)^(1/n).
    needed = math.ceil(math.log(1.0 - confidence) / math.log(1.0 - limit))
    if best.rows < needed:
        raise InputError(
            f"The rows are too few for an error of {limit:g} with confidence {confidence:g}: it takes {needed} "
            f"independent ones in the half that judges even if all answers are right; found {best.rows}. Give at least "
            f"{2 * needed} rows of different families, or a larger max_error."
        )
    bound = error_upper_bound(best.errors, best.rows, confidence)
    raise InputError(
        f"No chain keeps an error of {limit:g} with confidence {confidence:g}: the most accurate makes {best.errors} "
        f"errors in {best.rows} rows, a bound of {bound:.4f}. Give more rows, better stages or a larger max_error."
    )


def _first_accurate(proposed: Sequence[Point], target: float) -> int:
    for place, point in enumerate(proposed):
        if point.accuracy >= target:
            return place
    best = proposed[-1]
    raise InputError(
        f"No chain reaches an accuracy of {target:g}: the best has {best.accuracy:.4f} on {best.rows} rows. "
        "Give better stages or a lower target_accuracy."
    )


def _last_fast(proposed: Sequence[Point], limit: float) -> int:
    fast = sum(point.mean_latency_ms <= limit for point in proposed)  # they come first
    if fast == 0:
        raise InputError(
            f"No chain is within {limit:g} ms: the fastest takes {proposed[0].mean_latency_ms:.3g} ms a row. "
            "Leave out a slow stage, or give a larger max_latency_ms."
        )
    return fast - 1
