"""Measuring the stages of a chain on rows, and a router fitted on them, with fakes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from stages import Stranger, raising

from smolcls import BackendError, ConfidenceRouter, ConfigError, InputError, Stage, Task
from smolcls.backends.fake import FakeClassifier
from smolcls.data.rows import Row
from smolcls.measured import measure

np = pytest.importorskip("numpy")
pytest.importorskip("scipy.stats")

COLOURS = Task(["red", "blue"], name="colours")


def fakes() -> list[Stage]:
    """A fast stage that is right where it is sure, and a slow one that is always right."""
    fast = FakeClassifier(lambda text: ("red", 0.95 if "red" in text else 0.6), task=COLOURS)
    slow = FakeClassifier(lambda text: text.split()[0], task=COLOURS, delay=0.002)
    return [Stage(fast, accept={"red": 0.99}), Stage(slow, timeout=5.0)]


def rows_of_two(count: int) -> list[Row]:
    return [Row(f"{COLOURS.names[number % 2]} {number}", COLOURS.names[number % 2]) for number in range(count)]


def test_measuring_asks_each_stage_about_each_row_alone() -> None:
    abstaining = FakeClassifier(lambda text: (text.split()[0], 0.7), task=COLOURS, min_confidence=0.8)
    steps: list[tuple[str, int, int]] = []
    stages = [*fakes(), Stage(abstaining)]
    found = measure(stages, COLOURS, rows_of_two(4), lambda *step: steps.append(step))
    assert found.confidence[0] == pytest.approx([0.95, 0.6, 0.95, 0.6])
    assert list(found.confidence[2]) == [-np.inf] * 4  # it gave no label
    assert found.right.tolist() == [[True, False] * 2, [True] * 4, [True] * 4]
    assert (found.latency_ms[1] >= 2).all()
    assert found.stages == ("fake", "fake", "fake")
    assert steps[3:5] == [("1. fake", 4, 4), ("2. fake", 1, 4)]
    assert len(steps) == 12


def test_a_label_that_a_stage_does_not_accept_is_no_answer_of_it() -> None:
    stage = Stage(FakeClassifier("blue", task=COLOURS), accept=["red"])
    assert measure([stage], COLOURS, rows_of_two(2)).confidence.tolist() == [[-np.inf] * 2]


def test_families_are_read_from_rows_and_from_columns() -> None:
    rows: list[Any] = [
        Row("red", "red", family="a"),
        Row("red", "red"),
        SimpleNamespace(text="red", label="red", columns={"family": 0}),
        SimpleNamespace(text="red", label="red", columns={"family": None}),
        SimpleNamespace(text="red", label="red"),
    ]
    assert measure(fakes(), COLOURS, rows).families == ("family a", "row 1", "family 0", "row 3", "row 4")


def test_rows_that_cannot_be_used() -> None:
    with pytest.raises(InputError, match="fitted on labelled rows; found none"):
        measure(fakes(), COLOURS, [])
    with pytest.raises(InputError, match="Row 2: expected one of the labels red, blue; found 'green'"):
        measure(fakes(), COLOURS, [Row("a", "red"), Row("b", "green")])


def test_a_stage_that_does_not_answer_is_named() -> None:
    broken = Stage(Stranger(raising(BackendError("no luck.")), task=COLOURS), name="odd")
    with pytest.raises(BackendError, match=r"while a chain is fitted; 'odd' does not: no luck\. Mend it, or leave"):
        measure([broken], COLOURS, rows_of_two(2))


def test_a_stage_keeps_its_labels_with_one_threshold() -> None:
    assert Stage("rules", accept={"a": 0.9, "b": 0.8}).with_threshold(0.5).accept == {"a": 0.5, "b": 0.5}
    listed = Stage("rules", accept=["a"], timeout=3).with_threshold(0.5)
    assert (listed.accept, listed.threshold, listed.timeout) == (["a"], 0.5, 3)
    assert Stage("rules", threshold={"a": 1}).with_threshold(0.5).threshold == 0.5


def test_a_router_is_fitted_and_the_old_one_stays_as_it_was() -> None:
    old = ConfidenceRouter(fakes(), task=COLOURS, min_confidence=0.1)
    new = old.fit(rows_of_two(300), max_error=0.05)
    assert new.stages[0].accept == {"red": 0.949999}
    assert (new.stages[1].threshold, new.stages[1].timeout, new.min_confidence) == (0.0, 5.0, 0.1)
    assert old.stages[0].accept == {"red": 0.99}
    assert old.chain_fit is None
    assert new.chain_fit is not None
    assert (new.chain_fit.accuracy, new.chain_fit.accuracy_lower, new.chain_fit.rows) == (1.0, 0.95, 150)
    assert new.chain_fit.thresholds == (0.949999, 0.0)
    assert 0.3 < new.chain_fit.shares[0] < 0.7
    answers = new.classify_batch(["red 1", "blue 2"])
    assert [len(answer.trace) for answer in answers] == [1, 2]


def test_an_aim_is_checked_before_any_stage_is_asked() -> None:
    stages = fakes()
    with pytest.raises(ConfigError, match="found none"):
        ConfidenceRouter(stages, task=COLOURS).fit(rows_of_two(4))
    assert isinstance(stages[0].classifier, FakeClassifier)
    assert stages[0].classifier.asked == []


def test_a_chain_in_which_a_stage_stands_twice_is_fitted_with_pools() -> None:
    fast, slow = fakes()
    names = ("fast", "slow", "fast", "last")
    stages = [replace(stage, name=name) for stage, name in zip((fast, slow, fast, slow), names, strict=True)]
    router = ConfidenceRouter(stages, task=COLOURS)
    first, second, again, last = (stage.pool for stage in router.fit(rows_of_two(300), max_error=0.05).stages)
    assert (first, again) == (None, None)
    assert second is not None
    assert "slow" in second
    assert last is not None
    assert "fast" not in last
    kept = router.fit(rows_of_two(300), max_error=0.05, pool=False)
    assert [stage.pool for stage in kept.stages] == [None] * 4
