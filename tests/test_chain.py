"""The search for a chain's thresholds, on arrays whose truth is known."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest

from smolcls import ConfidenceRouter, ConfigError, InputError, Stage, Task, chain
from smolcls.backends.fake import FakeClassifier
from smolcls.chain import Aim, Frontier, Point
from smolcls.data.rows import Row
from smolcls.measured import Measured, Opinions, measure

np = pytest.importorskip("numpy")
pytest.importorskip("scipy.stats")

THREE = ("cheap", "middle", "costly")
COLOURS = Task(["red", "blue"], name="colours")


def measured(
    confidence: list[list[float]], right: list[list[int]], latency: list[float], families: list[str] | None = None
) -> Measured:
    """Small arrays, by stage; one latency a stage."""
    rows = len(right[0])
    return Measured(
        THREE[: len(right)],
        np.array(confidence, dtype=float),
        np.array(right, dtype=bool),
        np.repeat(np.array(latency)[:, None], rows, axis=1),
        tuple(families or map(str, range(rows))),
    )


def population(rows: int, seed: int, copies: int = 1) -> Measured:
    """Rows of a known population: two stages that are right as often as they say, a third that always says 0.9.

    Args:
        copies: each row stands there so many times, as one family.
    """
    draw = np.random.default_rng(seed)
    confidence = np.stack([draw.beta(4, 1, rows), draw.beta(8, 1, rows), np.full(rows, 0.9)])
    right = draw.random((3, rows)) < confidence
    families = tuple(str(row // copies) for row in range(rows * copies))
    latency = np.repeat(np.array([[0.1], [1.0], [30.0]]), rows * copies, axis=1)
    return Measured(THREE, confidence.repeat(copies, axis=1), right.repeat(copies, axis=1), latency, families)


# Arithmetic


def test_a_row_is_answered_by_the_first_stage_that_is_sure_and_pays_for_all_that_were_asked() -> None:
    rows = measured(
        [[0.9, 0.8, 0.2, 0.1], [0.9, 0.9, 0.7, 0.1], [0.0] * 4],
        [[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]],
        [1, 10, 100],
    )
    point = chain.evaluate(rows, [0.8, 0.7, 0.0])
    assert point == Point(
        (0.8, 0.7, 0.0), errors=1, rows=4, mean_latency_ms=(4 * 1 + 2 * 10 + 100) / 4, shares=(0.5, 0.25, 0.25)
    )
    assert point.accuracy == 0.75


def test_a_stage_never_answers_where_it_must_not_but_the_last_always_does() -> None:
    never = -np.inf
    rows = measured([[never, 1.0], [never, never]], [[1, 1], [1, 1]], [1, 2])
    assert chain.evaluate(rows, [0.0, 0.0]).shares == (0.5, 0.5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("thresholds", [(0.0, 0.0, 0.0), (0.7, 0.9, 0.0), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize(
    "pools", [(None, None, None), (None, {"cheap": 0.3, "middle": 0.8}, {"costly": 0.5, "cheap": 0.6})]
)
def test_the_arithmetic_is_what_a_router_does(
    seed: int, thresholds: tuple[float, ...], pools: tuple[dict[str, float] | None, ...]
) -> None:
    draw = random.Random(seed)
    texts = [f"text {number}" for number in range(40)]
    rows = [Row(text, draw.choice(COLOURS.names)) for text in texts]
    answers = [{text: (draw.choice(COLOURS.names), draw.uniform(0.51, 1)) for text in texts} for _ in THREE]
    stages = [
        Stage(FakeClassifier(answer, task=COLOURS), name=name, pool=pool)
        for answer, name, pool in zip(answers, THREE, pools, strict=True)
    ]
    stages[0] = replace(stages[0], accept=["red"])
    point = chain.evaluate(measure(stages, COLOURS, rows), thresholds)
    router = ConfidenceRouter(
        [stage.with_threshold(cut) for stage, cut in zip(stages, thresholds, strict=True)], task=COLOURS
    )
    predictions = router.classify_batch(texts)
    assert point.errors == sum(answer.label != row.label for answer, row in zip(predictions, rows, strict=True))
    asked = [sum(len(answer.trace) == stage + 1 for answer in predictions) / len(texts) for stage in range(3)]
    assert point.shares == pytest.approx(asked)


# The frontier


def test_grids_hold_values_that_were_seen_rounded_down_and_one() -> None:
    rows = measured([[0.1234567, 0.5, 0.99999999, -np.inf], [0.5] * 4, [1.0] * 4], [[1] * 4] * 3, [1, 2, 3])
    first, second = chain.grids(rows)
    assert first == [0.123456, 0.5, 0.999999, 1.0]
    assert second == [0.5, 1.0]


def test_a_grid_has_no_more_vectors_than_the_budget() -> None:
    first, second = chain.grids(population(500, seed=1), budget=100)
    assert len(first) == len(second) == 10


def test_a_stage_that_accepts_nothing_has_one_threshold() -> None:
    rows = measured([[-np.inf] * 2, [1.0] * 2], [[1, 1], [1, 1]], [1, 2])
    assert chain.grids(rows) == [[1.0]]


def test_a_single_stage_is_a_chain_of_one_point() -> None:
    assert chain.propose(measured([[0.5, 0.5]], [[1, 0]], [3])) == [Point((0.0,), 1, 2, 3.0, (1.0,))]


def test_no_chain_of_the_frontier_is_beaten_and_no_chain_of_the_grid_beats_one() -> None:
    rows = population(300, seed=3)
    kept = chain.propose(rows, budget=400)
    assert len(kept) > 5
    assert [point.mean_latency_ms for point in kept] == sorted({point.mean_latency_ms for point in kept})
    assert [point.errors for point in kept] == sorted({point.errors for point in kept}, reverse=True)
    first, second = chain.grids(rows, budget=400)
    for one in first:
        for other in second:
            tried = chain.evaluate(rows, [one, other, 0.0])
            assert any(p.errors <= tried.errors and p.mean_latency_ms <= tried.mean_latency_ms for p in kept)


def test_of_equal_chains_the_most_careful_is_kept_and_a_stage_that_nothing_comes_to_takes_every_answer() -> None:
    rows = measured([[0.9, 0.9], [0.3, 0.6], [0.5, 0.5]], [[1, 1], [1, 1], [0, 0]], [1, 10, 100])
    assert [point.thresholds for point in chain.propose(rows)] == [(0.9, 0.0, 0.0)]


# Halves


def test_a_family_stands_in_one_half_and_is_judged_by_one_row() -> None:
    families = [f"f{number // 3}" for number in range(60)] + [f"alone{number}" for number in range(20)]
    proposing, judging = chain.halve(families)
    first, second = ([families[place] for place in half] for half in (proposing, judging))
    assert not set(first) & set(second)
    assert set(first) | set(second) == set(families)
    assert len(second) == len(set(second)) == 20
    assert len(first) > len(set(first)) == 20


def test_the_seed_draws_the_halves() -> None:
    families = [str(number) for number in range(100)]
    assert chain.halve(families, 1) == chain.halve(families, 1)
    assert chain.halve(families, 1) != chain.halve(families, 2)


def test_one_family_cannot_be_halved() -> None:
    with pytest.raises(InputError, match="rows of two families at the least; found 1"):
        chain.halve(["same"] * 10)


# The choice


def frontier(*points: tuple[int, float], rows: int = 1000) -> Frontier:
    """Chains by (errors, mean latency), the same in both halves."""
    made = tuple(Point((cut / 10, 0.0), errors, rows, ms, (0.5, 0.5)) for cut, (errors, ms) in enumerate(points))
    return Frontier(("a", "b"), made, made)


def test_max_error_takes_the_fastest_chain_before_the_first_that_is_not_within_the_limit() -> None:
    found = chain.choose(frontier((10, 1), (90, 2), (30, 3), (20, 4)), Aim(max_error=0.05))
    assert (found.mean_latency_ms, found.accuracy, found.rows) == (3, 0.97, 1000)
    assert found.accuracy_lower == 0.95  # the limit is what is promised, for more than one chain was tried
    assert found.thresholds == (0.2, 0.0)


def test_target_accuracy_takes_the_fastest_that_reaches_it_and_bounds_what_it_does_elsewhere() -> None:
    chains = frontier((80, 1), (40, 2), (20, 3))
    chains = replace(chains, checked=tuple(replace(point, errors=point.errors + 10) for point in chains.checked))
    found = chain.choose(chains, Aim(target_accuracy=0.96))
    assert (found.mean_latency_ms, found.accuracy) == (2, 0.95)
    assert found.accuracy_lower == pytest.approx(0.9371, abs=2e-4)  # Clopper-Pearson for 50 of 1,000


def test_max_latency_takes_the_most_accurate_within_it() -> None:
    found = chain.choose(frontier((80, 1), (40, 2), (20, 3)), Aim(max_latency_ms=2.5, confidence=0.9))
    assert (found.mean_latency_ms, found.confidence) == (2, 0.9)


def test_too_few_rows_are_told_from_chains_that_are_not_good_enough() -> None:
    with pytest.raises(InputError, match=r"too few .* it takes 59 .* found 58\. Give at least 118 rows"):
        chain.choose(frontier((0, 1), rows=58), Aim(max_error=0.05))
    assert chain.choose(frontier((0, 1), rows=59), Aim(max_error=0.05)).accuracy == 1
    with pytest.raises(InputError, match=r"the most accurate makes 60 errors in 1000 rows, a bound of 0\.07"):
        chain.choose(frontier((60, 1)), Aim(max_error=0.05))


def test_an_aim_that_no_chain_reaches() -> None:
    with pytest.raises(InputError, match=r"accuracy of 0\.99: the best has 0\.9600 on 1000 rows"):
        chain.choose(frontier((80, 1), (40, 2)), Aim(target_accuracy=0.99))
    with pytest.raises(InputError, match=r"within 0\.5 ms: the fastest takes 1 ms a row"):
        chain.choose(frontier((80, 1), (40, 2)), Aim(max_latency_ms=0.5))


def test_exactly_one_aim_in_its_range() -> None:
    with pytest.raises(ConfigError, match="one of max_error, target_accuracy and max_latency_ms; found none"):
        Aim()
    with pytest.raises(ConfigError, match="found max_error, max_latency_ms"):
        Aim(max_error=0.1, max_latency_ms=3)
    for wrong in (0, 1.0, True, "0.1"):
        with pytest.raises(ConfigError, match="max_error must be a number above 0 and below 1; found"):
            Aim(max_error=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_latency_ms must be a number above 0; found -1"):
        Aim(max_latency_ms=-1)
    with pytest.raises(ConfigError, match="confidence must be a number above 0 and below 1; found 95"):
        Aim(max_error=0.1, confidence=95)


# Pools


def opinions(rows: int, seed: int, names: tuple[str, ...] = ("cheap", "costly")) -> Measured:
    """Stages that each see the truth through noise of their own."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 3, rows)
    scores = draw.normal(0.0, 1.0, (len(names), rows, 3)) + 1.5 * (np.arange(3) == truth[:, None])
    said = np.exp(1.5 * scores)
    said /= said.sum(axis=2, keepdims=True)
    given = Opinions(names, said, np.ones(said.shape[:2], bool), np.ones((len(names), 3), bool), truth)
    confidence, right = given.confidence_and_right([None] * len(names))
    latency = np.repeat(np.arange(1.0, len(names) + 1)[:, None], rows, axis=1)
    return Measured(names, confidence, right, latency, tuple(map(str, range(rows))), given)


def test_a_pool_is_fitted_on_the_rows_that_propose_and_tells_more_than_its_stages() -> None:
    rows = opinions(2000, seed=1)
    found, alone = chain.explore(rows, pool=True), chain.explore(rows)
    proposing, _ = chain.halve(rows.families)
    assert rows.opinions is not None
    assert found.pools == rows.opinions.only(proposing).fit_pools()
    assert alone.pools is None
    assert found.checked[-1].accuracy > alone.checked[-1].accuracy + 0.03
    fitted = chain.choose(found, Aim(max_latency_ms=9.0))
    assert fitted.pools == found.pools


def test_a_name_that_stood_there_before_keeps_its_pool_and_stands_in_no_later_one() -> None:
    given = opinions(200, seed=2, names=("a", "b", "a", "c")).opinions
    assert given is not None
    first, second, again, last = given.fit_pools()
    assert (first, again) == (None, None)
    assert given.stages.count("a") == 2
    assert second is not None
    assert set(second) == {"a", "b"}
    assert last is not None
    assert set(last) == {"b", "c"}, "a is not one stage before it"
    *_, repeated = opinions(200, seed=2, names=("a", "b", "b")).opinions.fit_pools()  # type: ignore[union-attr]
    assert repeated is not None
    assert set(repeated) == {"a", "b"}
    assert opinions(29, seed=2).opinions.fit_pools() == (None, None)  # type: ignore[union-attr]


def test_a_stage_beside_which_no_opinion_counts_has_no_pool() -> None:
    given = opinions(200, seed=4).opinions
    assert given is not None
    assert replace(given, truth=given.probabilities.sum(axis=0).argmin(axis=1)).fit_pools() == (None, None)


def test_a_stage_that_abstains_or_may_not_answer_so_does_neither_with_a_pool() -> None:
    given = opinions(50, seed=3).opinions
    assert given is not None
    given.answered[1, :10] = False
    given.accepted[1, 0] = False
    confidence, _ = given.confidence_and_right([None, {"cheap": 1.0, "costly": 1.0}])
    product = given.probabilities.prod(axis=0)
    silent = (np.arange(50) < 10) | (product.argmax(axis=1) == 0)
    assert (np.isneginf(confidence[1]) == silent).all()


# The promise


def without_the_middle(rows: Measured) -> Measured:
    """Two stages, for a fine grid in little time."""
    kept = [0, 2]
    return Measured(("cheap", "costly"), rows.confidence[kept], rows.right[kept], rows.latency_ms[kept], rows.families)


def true_accuracy(threshold: float) -> float:
    """Of the two stages: the confidence of the first has the density 4c³ and is right, the second is right at 0.9."""
    return 4 / 5 * (1 - threshold**5) + threshold**4 * 0.9


def test_the_known_accuracy_is_that_of_many_rows() -> None:
    point = chain.evaluate(without_the_middle(population(200_000, seed=0)), (0.8, 0.0))
    assert point.accuracy == pytest.approx(true_accuracy(0.8), abs=0.003)


@pytest.mark.parametrize("copies", [1, 4])
def test_over_200_draws_the_promised_limits_are_broken_in_at_most_five_percent(copies: int) -> None:
    limit = 0.15
    broken = chosen = careless = below = 0
    for draw in range(200):
        rows = without_the_middle(population(400, seed=draw + 1, copies=copies))
        found = chain.explore(rows, seed=draw, budget=40)
        # What a search would promise that trusts the rows it chose on.
        trusted = next((point for point in found.proposed if 1 - point.accuracy <= limit), found.proposed[-1])
        careless += true_accuracy(trusted.thresholds[0]) < 1 - limit
        fast = chain.choose(found, Aim(max_latency_ms=15.0))
        below += true_accuracy(fast.thresholds[0]) < fast.accuracy_lower
        with contextlib.suppress(InputError):  # nothing promised, nothing broken
            within = chain.choose(found, Aim(max_error=limit))
            chosen += 1
            broken += true_accuracy(within.thresholds[0]) < 1 - limit
    # 5 % of 200 are 10; a binomial count of that mean exceeds 17 in one run of a hundred.
    assert broken <= 17
    assert below <= 17
    assert chosen > 100
    assert careless > 50
