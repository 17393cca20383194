"""What the base class does for every backend: checking, calibration, abstention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from smolcls import BackendError, Calibration, Classifier, ConfigError, Prediction, Scores, StageTrace, Task
from smolcls.classifier import check_fraction, check_texts

TASK = Task(["a", "b"])


class Fixed(Classifier):
    """Gives the scores it was made with."""

    name = "fixed"

    def __init__(self, *values: float, **options: Any) -> None:
        super().__init__(**{"task": TASK, **options})
        self.values = values

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        return [Scores(self.values, truncated=True, label_mass=0.5, rule="r") for _ in texts]


def fitted(temperature: float, task: Task = TASK) -> Calibration:
    return Calibration(temperature, task.fingerprint, "", "fixed", 100, 0.0, 0.0)


def test_scores_become_a_prediction() -> None:
    prediction = Fixed(math.log(0.25), math.log(0.75)).classify("x")
    assert prediction == Prediction(
        label="b",
        confidence=pytest.approx(0.75),  # type: ignore[arg-type]
        probabilities=pytest.approx({"a": 0.25, "b": 0.75}),  # type: ignore[arg-type]
        backend="fixed",
        calibrated=False,
        truncated=True,
        latency_ms=prediction.latency_ms,
        label_mass=0.5,
        rule="r",
    )


def test_a_tie_goes_to_the_first_label() -> None:
    assert Fixed(-0.7, -0.7).classify("x").label == "a"


def test_the_temperature_is_applied() -> None:
    values = (math.log(0.1), math.log(0.9))
    soft = Fixed(*values, calibration=fitted(2.0)).classify("x")
    assert soft.calibrated
    assert soft.confidence == pytest.approx(3.0 / 4.0)  # sqrt(0.9) : sqrt(0.1) = 3 : 1
    assert Fixed(*values, calibration=fitted(0.5)).classify("x").confidence == pytest.approx(81.0 / 82.0)


def test_a_calibration_may_be_a_file(tmp_path: Path) -> None:
    fitted(2.0).save(tmp_path / "calibration.json")
    assert Fixed(0.0, -1.0, calibration=tmp_path / "calibration.json").calibration == fitted(2.0)
    with pytest.raises(ConfigError, match="is not a calibration that smolcls wrote"):
        Fixed(0.0, -1.0, calibration=tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is not a calibration that smolcls wrote"):
        Fixed(0.0, -1.0, calibration=5)


def test_a_calibration_of_another_task_is_refused() -> None:
    other = Task(["a", "c"])
    with pytest.raises(ConfigError, match="fitted for another task or another version of it") as caught:
        Fixed(0.0, -1.0, calibration=fitted(2.0, other))
    assert other.fingerprint in str(caught.value)
    assert TASK.fingerprint in str(caught.value)
    assert "smolcls calibrate" in str(caught.value)


def test_a_calibration_of_another_backend_is_refused() -> None:
    class Other(Fixed):
        name = "other"

    with pytest.raises(ConfigError, match=r"fitted for another backend \(fixed; this one is other\)\. Fit it again"):
        Other(0.0, -1.0, calibration=fitted(2.0))


def test_abstention_is_at_the_bound_itself_not_yet() -> None:
    values = (math.log(0.25), math.log(0.75))
    assert Fixed(*values, min_confidence=0.74).classify("x").label == "b"
    assert Fixed(*values, min_confidence=0.76).classify("x").label is None
    assert Fixed(0.0, -math.inf, min_confidence=1.0).classify("x").label == "a"


@pytest.mark.parametrize(
    "values",
    [(), (0.0,), (0.0, 0.0, 0.0), (math.nan, 0.0), (0.5, -1.0), (-math.inf, -math.inf), (math.inf, -1.0)],
)
def test_scores_that_are_none_are_an_error(values: tuple[float, ...]) -> None:
    with pytest.raises(BackendError, match="fixed was to score the labels a, b with log-probabilities; it returned"):
        Fixed(*values).classify("x")


def test_a_backend_that_loses_texts_is_an_error() -> None:
    class Short(Fixed):
        def score_batch(self, texts: Sequence[str]) -> list[Scores]:
            return super().score_batch(texts)[1:]

    with pytest.raises(BackendError, match="fixed was to score 3 texts; it returned 2 scores"):
        Short(0.0, -1.0).classify_batch(["x", "y", "z"])


def test_scores_that_do_not_sum_to_one_are_normalised() -> None:
    assert Fixed(-5.0, -5.0).classify("x").probabilities == pytest.approx({"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, True, "0.5", None])
def test_a_fraction_is_from_nought_to_one(value: Any) -> None:
    with pytest.raises(ConfigError, match="threshold must be a number between 0 and 1; found"):
        check_fraction(value, "threshold")


def test_texts_may_come_from_any_iterable() -> None:
    assert check_texts(text for text in ("a", "b")) == ["a", "b"]
    assert check_texts({"a": 1, "b": 2}) == ["a", "b"]
    assert [item.label for item in Fixed(0.0, -1.0).classify_batch(iter(["x", "y"]))] == ["a", "a"]


def test_a_prediction_as_a_dictionary() -> None:
    short = Prediction("a", 0.75, {"a": 0.75, "b": 0.25}, "fixed", latency_ms=1.23456)
    assert short.to_dict() == {
        "label": "a",
        "confidence": 0.75,
        "probabilities": {"a": 0.75, "b": 0.25},
        "backend": "fixed",
        "calibrated": False,
        "truncated": False,
        "latency_ms": 1.235,
    }
    step = StageTrace("one", "failed", "it broke")
    full = Prediction(None, 0.5, {"a": 0.5, "b": 0.5}, "x", label_mass=0.0, rule="r", trace=(step,)).to_dict()
    assert (full["label"], full["label_mass"], full["rule"]) == (None, 0.0, "r")
    assert full["trace"] == [
        {
            "stage": "one",
            "outcome": "failed",
            "reason": "it broke",
            "label": None,
            "confidence": None,
            "latency_ms": 0.0,
        }
    ]
