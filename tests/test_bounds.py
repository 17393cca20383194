"""Bounds on an error: the exact one, and the correction for several tries."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smolcls import ConfigError, InputError
from smolcls.bounds import certify, error_upper_bound

stats = pytest.importorskip("scipy.stats", reason="needs the extra evaluate")

CONFIDENCES = st.floats(0.5, 0.9999)
SPLITS = 200
#: More broken limits than this come once in a thousand times where each comes with a probability of 5 %.
SLACK = int(stats.binom.isf(1e-3, SPLITS, 0.05))


@given(st.integers(0, 5000), st.integers(0, 5000), CONFIDENCES)
@settings(deadline=None)
def test_at_the_bound_so_few_errors_have_the_probability_that_is_left(one: int, other: int, confidence: float) -> None:
    errors, count = sorted((one, other))
    bound = error_upper_bound(errors, count, confidence)
    if errors == count:
        assert bound == 1.0
    else:
        assert errors / count < bound < 1.0
        assert stats.binom.cdf(errors, count, bound) == pytest.approx(1.0 - confidence, rel=1e-6)


@given(st.integers(0, 300), st.integers(1, 300), CONFIDENCES)
@settings(deadline=None)
def test_it_grows_with_errors_and_confidence_and_falls_with_rows(errors: int, more: int, confidence: float) -> None:
    bound = error_upper_bound(errors, errors + more, confidence)
    assert error_upper_bound(errors + 1, errors + more, confidence) > bound
    assert error_upper_bound(errors, errors + more + 1, confidence) < bound
    assert error_upper_bound(errors, errors + more, (1.0 + confidence) / 2.0) > bound


def test_known_values() -> None:
    assert error_upper_bound(0, 59, 0.95) == pytest.approx(1.0 - 0.05 ** (1 / 59))
    assert error_upper_bound(0, 58, 0.95) > 0.05 > error_upper_bound(0, 59, 0.95)
    assert error_upper_bound(3, 100, 0.95) == pytest.approx(0.07571, abs=1e-4)
    assert error_upper_bound(0, 0, 0.95) == 1.0
    assert 0.0 < error_upper_bound(0, 10, 1.0 - 1e-15) < 1.0


@pytest.mark.parametrize(("errors", "count"), [(-1, 5), (6, 5), (0, -1)])
def test_counts_that_are_none(errors: int, count: int) -> None:
    with pytest.raises(InputError, match=f"Expected from 0 to {count} errors among {count} rows; found {errors}"):
        error_upper_bound(errors, count, 0.95)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5, float("nan"), True, "0.9", None])
def test_confidences_and_limits_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="confidence must be a number above 0 and below 1; found"):
        error_upper_bound(0, 10, value)
    with pytest.raises(ConfigError, match="confidence must be a number above 0 and below 1; found"):
        certify([(0, 10)], max_error=0.1, confidence=value)
    with pytest.raises(ConfigError, match="max_error must be a number above 0 and below 1; found"):
        certify([(0, 10)], max_error=value, confidence=0.9)


def test_what_a_passing_try_had_goes_to_the_next() -> None:
    one, two = certify([(0, 200), (0, 200)], max_error=0.05, confidence=0.9)
    assert one == pytest.approx(error_upper_bound(0, 200, 0.95))
    assert two == pytest.approx(error_upper_bound(0, 200, 0.9))
    lost, after = certify([(9, 9), (0, 200)], max_error=0.05, confidence=0.9)
    assert lost is None
    assert after == pytest.approx(error_upper_bound(0, 200, 0.95))


def test_a_growing_error_is_walked_until_it_fails() -> None:
    tries = [(0, 200), (2, 200), (50, 200), (2, 200)]
    found = certify(tries, max_error=0.05, confidence=0.95, growing=True)
    assert found[:2] == [pytest.approx(error_upper_bound(errors, 200, 0.95)) for errors in (0, 2)]
    assert found[2:] == [None, None]
    assert certify([(50, 200), (0, 200)], max_error=0.05, confidence=0.95, growing=True) == [None, None]
    assert certify([], max_error=0.05, confidence=0.95) == []


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(8, 400)), min_size=1, max_size=8))
@settings(deadline=None)
def test_it_never_passes_less_than_bonferroni(tries: list[tuple[int, int]]) -> None:
    found = certify(tries, max_error=0.05, confidence=0.95)
    for (errors, count), bound in zip(tries, found, strict=True):
        if error_upper_bound(errors, count, 1.0 - 0.05 / len(tries)) <= 0.05:
            assert bound is not None


@pytest.mark.parametrize("growing", [False, True])
def test_over_200_draws_the_limit_is_broken_as_seldom_as_promised(growing: bool) -> None:
    """Every try is a little beyond the limit, so that each one that passes is a mistake."""
    draw, limit, uncorrected, broken = random.Random(5), 0.1, 0, 0
    for _ in range(SPLITS):
        fresh = [draw.random() < 0.101 for _ in range(1500)]
        if growing:
            tries = [(sum(fresh), 1500)] * 10
        else:
            tries = [(sum(fresh[place : place + 150]), 150) for place in range(0, 1500, 150)]
        broken += any(bound is not None for bound in certify(tries, max_error=limit, confidence=0.95, growing=growing))
        uncorrected += any(error_upper_bound(*item, 0.95) <= limit for item in tries)
    assert broken <= SLACK
    if not growing:
        assert uncorrected > SLACK  # without the correction the test would fail
