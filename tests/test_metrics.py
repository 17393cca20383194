"""Metrics against numbers counted by hand, against scikit-learn's own, and against the order of rows."""

from __future__ import annotations

import random
from math import comb, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from smolcls import InputError
from smolcls.metrics import Bin, coverage_curve, mcnemar, measure, reliability, wilson

YES_NO = ["yes", "no"]
FOUR = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
TRUTH = [0, 0, 1, 1]


def spreads(confidences: list[float]) -> list[list[float]]:
    """Rows of two labels whose first is the answer."""
    return [[value, 1.0 - value] for value in confidences]


def test_metrics_of_a_small_table_are_those_counted_by_hand() -> None:
    found = measure(YES_NO, FOUR, TRUTH)
    assert (found.rows, found.accuracy) == (4, 0.75)
    assert found.confusion == ((2, 0), (1, 1))
    yes, no = found.by_label["yes"], found.by_label["no"]
    assert [yes.rows, yes.recall, yes.precision, yes.f1] == pytest.approx([2, 1.0, 2 / 3, 0.8])
    assert [no.rows, no.recall, no.precision, no.f1] == pytest.approx([2, 0.5, 1.0, 2 / 3])
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    # Each confidence has a bin of its own: gaps .1, .2 and .3 where right, .6 where wrong.
    assert found.ece == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    assert found.brier == pytest.approx(2 * (0.1**2 + 0.2**2 + 0.3**2 + 0.6**2) / 4)
    assert found.nll == pytest.approx(-(log(0.9) + log(0.8) + log(0.7) + log(0.4)) / 4)
    assert (found.sure_errors, found.sure_error_share) == (0, 0.0)


def test_sure_errors_are_a_share_of_the_wrong_answers() -> None:
    found = measure(YES_NO, spreads([0.999, 0.999, 0.6, 0.991]), [0, 1, 1, 1])
    assert found.sure_errors == 2
    assert found.sure_error_share == pytest.approx(2 / 3)


def test_a_label_that_nobody_gives_or_has_does_not_lower_macro_f1() -> None:
    rows = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]
    found = measure(["a", "b", "c"], rows, [0, 1])
    assert found.macro_f1 == 1.0
    assert found.by_label["c"].f1 == 0.0
    # Answered, it counts.
    assert measure(["a", "b", "c"], [*rows, [0.1, 0.1, 0.8]], [0, 1, 0]).macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_true_label_of_probability_nought_still_gives_a_number() -> None:
    found = measure(YES_NO, [[1.0, 0.0]], [1])
    assert 30 < found.nll < 40
    assert found.brier == 2.0


def test_the_bins_are_scikit_learns_quantile_bins() -> None:
    from sklearn.calibration import calibration_curve

    draw = random.Random(4)
    confidences = [draw.uniform(0.5, 1.0) for _ in range(600)]
    right = [draw.random() < value for value in confidences]
    bins = reliability(spreads(confidences), [0 if hit else 1 for hit in right])
    accuracies, means = calibration_curve(right, confidences, n_bins=15, strategy="quantile")
    assert [item.rows for item in bins] == [40] * 15
    assert [item.confidence for item in bins] == pytest.approx(list(means), abs=1e-6)
    assert [item.accuracy for item in bins] == pytest.approx(list(accuracies))


def test_few_confidences_make_few_bins() -> None:
    bins = reliability(spreads([0.9] * 10 + [0.6] * 5), [0] * 8 + [1] * 2 + [0, 0, 0, 1, 1])
    assert bins == [Bin(5, 0.6, 0.6), Bin(10, 0.9, 0.8)]


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.55, 0.7, 0.7 + 1e-13, 0.9, 0.99]), st.booleans()), min_size=1), st.randoms()
)
def test_the_order_of_rows_changes_nothing(rows: list[tuple[float, bool]], chance: random.Random) -> None:
    mixed = chance.sample(rows, len(rows))
    one, other = (
        measure(YES_NO, spreads([value for value, _ in some]), [0 if right else 1 for _, right in some])
        for some in (rows, mixed)
    )
    assert one.ece == pytest.approx(other.ece)
    assert 0.0 <= one.ece <= 1.0
    assert one.accuracy_interval.low <= one.accuracy <= one.accuracy_interval.high
    curves = [
        coverage_curve(spreads([value for value, _ in some]), [0 if right else 1 for _, right in some])
        for some in (rows, mixed)
    ]
    assert curves[0] == curves[1]
    assert curves[0][-1].coverage == 1.0
    assert curves[0][-1].accuracy == pytest.approx(one.accuracy)


def test_the_coverage_curve_has_a_point_for_each_confidence() -> None:
    points = coverage_curve(spreads([0.6, 0.9, 0.9, 0.8]), [0, 0, 1, 0])
    assert [(point.confidence, point.coverage, point.accuracy) for point in points] == [
        (0.9, 0.5, 0.5),
        (0.8, 0.75, pytest.approx(2 / 3)),
        (0.6, 1.0, 0.75),
    ]


def test_the_wilson_interval_is_the_published_one() -> None:
    # Newcombe 1998, table I: 81 of 263.
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert wilson(10, 10).high == 1.0


def test_mcnemars_test_is_the_binomial_one() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 9) == mcnemar(9, 3) == pytest.approx(2 * sum(comb(12, i) for i in range(4)) / 2**12)


def test_rows_and_labels_must_pair() -> None:
    with pytest.raises(InputError, match="Expected one true label a row, and one row at least; found 4 rows and 1 lab"):
        measure(YES_NO, FOUR, [0])
    with pytest.raises(InputError, match="found 0 rows and 0 labels"):
        measure(YES_NO, [], [])
