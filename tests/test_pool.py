"""The logarithmic opinion pool: its arithmetic, and weights found on rows whose truth is known."""

from __future__ import annotations

from typing import Any

import pytest

from smolcls.pool import fit_weights, pool, pool_rows

np = pytest.importorskip("numpy")
pytest.importorskip("scipy.stats")


def said(rows: int, seed: int, sharpness: float = 1.0) -> tuple[Any, Any]:
    """Two opinions, each calibrated where `sharpness` is 1: independent noise on scores, four equally likely labels.

    With scores from N(d · [label is right], 1) the posterior is the softmax of d · score.
    """
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 4, rows)
    distance = 1.2
    scores = draw.normal(0.0, 1.0, (2, rows, 4)) + distance * (np.arange(4) == truth[:, None])
    powers = np.exp(sharpness * distance * scores)
    return powers / powers.sum(axis=2, keepdims=True), truth


def test_two_opinions_by_hand() -> None:
    first, second = {"a": 0.8, "b": 0.2}, {"a": 0.3, "b": 0.7}
    found = pool({"x": first, "y": second, "z": {}}, {"y": 2.0, "x": 1.0})
    assert found == pytest.approx({"a": 0.8 * 0.09 / (0.8 * 0.09 + 0.2 * 0.49), "b": 0.2 * 0.49 / 0.170})
    assert list(found) == ["a", "b"]


def test_one_opinion_of_weight_one_is_itself() -> None:
    assert pool({"x": {"a": 0.8, "b": 0.2}}, {"x": 1.0}) == pytest.approx({"a": 0.8, "b": 0.2})


def test_no_opinion_is_beyond_doubt() -> None:
    found = pool({"x": {"a": 1.0, "b": 0.0}, "y": {"a": 0.0, "b": 1.0}}, {"x": 1.0, "y": 1.5})
    assert found["b"] == pytest.approx(0.999, abs=1e-3)


def test_many_rows_are_pooled_as_one_is() -> None:
    opinions, _ = said(50, seed=1)
    found = pool_rows(opinions, np.array([0.4, 1.3]))
    for row in range(50):
        one = pool(
            {str(n): dict(zip("abcd", part[row], strict=True)) for n, part in enumerate(opinions)}, {"0": 0.4, "1": 1.3}
        )
        assert list(one.values()) == pytest.approx(found[row].tolist())


def test_independent_opinions_that_mean_what_they_say_count_in_full() -> None:
    opinions, truth = said(40_000, seed=2)
    assert fit_weights(opinions, truth) == pytest.approx([1.0, 1.0], abs=0.04)


def test_one_that_is_too_sure_counts_less() -> None:
    opinions, truth = said(40_000, seed=3, sharpness=2.0)
    assert fit_weights(opinions, truth) == pytest.approx([0.5, 0.5], abs=0.03)


def test_two_that_always_agree_share_the_weight_of_one() -> None:
    opinions, truth = said(40_000, seed=4)
    assert sum(fit_weights(opinions[[0, 0]], truth)) == pytest.approx(1.0, abs=0.04)


def test_one_that_knows_nothing_or_that_lies_changes_nothing() -> None:
    opinions, truth = said(40_000, seed=5)
    own, _ = fit_weights(np.stack([opinions[0], np.full_like(opinions[1], 0.25)]), truth)
    assert own == pytest.approx(1.0, abs=0.04)
    assert fit_weights(np.stack([opinions[0], np.roll(opinions[1], 1, axis=1)]), truth)[1] == 0


def test_weights_stay_finite_where_an_opinion_is_always_right() -> None:
    truth = np.array([0, 1] * 20)
    opinion = np.where(np.arange(2) == truth[:, None], 0.9, 0.1)
    [weight] = fit_weights(opinion[None], truth)
    assert weight == 2
