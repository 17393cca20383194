"""Label sets: their coverage, their order, their file, and for which classifier they hold."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smolcls import Calibration, Classifier, ConfigError, InputError, Prediction, Scores, Task
from smolcls.conformal import Conformal, least_probability

TASK = Task(["a", "b", "c", "d"])


class Spread(Classifier):
    """Its scores are written in the text."""

    name = "spread"
    model = ""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"task": TASK, **options})

    def model_fingerprint(self) -> str:
        return self.model

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        rows = [[float(value) for value in text.split()] for text in texts]
        return [Scores(tuple(math.log(value / sum(row)) for value in row)) for row in rows]


def drawn(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts with labels that the classifier is too sure of."""
    draw, texts, labels = random.Random(seed), [], []
    for _ in range(count):
        row = [draw.expovariate(1.0) ** 2 for _ in TASK.names]
        texts.append(" ".join(f"{value + 1e-9:.9f}" for value in row))
        labels.append(draw.choices(TASK.names, [math.sqrt(value) for value in row])[0])
    return texts, labels


def fit(count: int = 200, coverage: float = 0.9, **options: Any) -> Conformal:
    texts, labels = drawn(count, 1)
    return Spread(**options).fit_conformal(texts, labels, coverage=coverage)


def prediction(*values: float) -> Prediction:
    return Prediction("a", max(values), dict(zip(TASK.names, values, strict=True)), "spread")


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.95])
def test_the_true_label_is_in_as_many_sets_as_promised(coverage: float) -> None:
    classifier = Spread()
    texts, labels = drawn(2000, 4)
    means = []
    for seed in range(20):
        conformal = classifier.fit_conformal(*drawn(100, 100 + seed), coverage=coverage)
        sets = classifier.predict_set(texts, conformal)
        means.append(sum(label in found for label, found in zip(labels, sets, strict=True)) / len(labels))
        assert 1.0 <= sum(map(len, sets)) / len(sets) < 4.0
    # The coverage is that over draws of the rows; 20 of them leave a standard error of about 0.01.
    assert sum(means) / len(means) == pytest.approx(coverage, abs=0.03)


def test_the_least_probability_is_the_rank_that_the_coverage_asks_for() -> None:
    values = [number / 100 for number in range(1, 20)]
    assert least_probability(values, 0.95) == 0.01
    assert least_probability(values, 0.9) == 0.02
    assert least_probability(values, 0.05) == 0.19
    assert least_probability([0.1 * number for number in range(1, 10)], 0.7) == pytest.approx(0.3)


@pytest.mark.parametrize(("coverage", "needed"), [(0.95, 19), (0.9, 9), (0.99, 99)])
def test_too_few_rows_are_said_with_the_number_it_takes(coverage: float, needed: int) -> None:
    least_probability([0.5] * needed, coverage)
    with pytest.raises(InputError, match=f"take at least {needed} held-out rows; found {needed - 1}"):
        least_probability([0.5] * (needed - 1), coverage)
    with pytest.raises(InputError, match=f"take at least {needed} held-out rows; found 3"):
        fit(3, coverage)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, True, "0.9", math.nan])
def test_a_coverage_is_between_nought_and_one(value: Any) -> None:
    with pytest.raises(ConfigError, match="coverage must be a number above 0 and below 1; found"):
        least_probability([0.5] * 100, value)


def test_a_set_is_in_the_order_of_likelihood_and_never_empty() -> None:
    conformal = replace(fit(), least=0.2)
    assert conformal.predict_set(prediction(0.1, 0.3, 0.4, 0.2)) == ("c", "b", "d")
    assert conformal.predict_set(prediction(0.25, 0.25, 0.25, 0.25)) == ("a", "b", "c", "d")
    assert replace(conformal, least=0.9).predict_set(prediction(0.1, 0.3, 0.4, 0.2)) == ("c",)
    other = Prediction("a", 0.7, {"a": 0.7, "z": 0.3}, "spread")
    with pytest.raises(InputError, match="Expected a prediction of the labels a, b, c, d; found a, z"):
        conformal.predict_set(other)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    conformal, path = fit(), tmp_path / "conformal.json"
    conformal.save(path)
    assert Conformal.load(path) == Conformal.load(str(path)) == conformal
    assert (conformal.backend, conformal.rows, conformal.temperature) == ("spread", 200, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "its format is not smolcls-conformal-1"),
        ({"labels": "ab"}, "its labels are 'ab'"),
        ({"coverage": 1}, "coverage must be a number above 0 and below 1; found 1"),
        ({"least": -1}, "least must be a number from 0 on; found -1"),
        ({"temperature": None}, "temperature must be a number from 0 on; found None"),
        ({"backend": 3}, "backend must be a text; found 3"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_damaged_file(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "conformal.json"
    fit().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=f"is not a conformal predictor that smolcls wrote .*{reason}"):
        Conformal.load(path)
    with pytest.raises(ConfigError, match="No such file"):
        Conformal.load(tmp_path / "none.json")


def test_they_hold_for_the_classifier_that_they_were_fitted_on() -> None:
    conformal, texts = fit(), ["1 2 3 4"]
    assert Spread().predict_set(texts, conformal) == [conformal.predict_set(Spread().classify("1 2 3 4"))]
    assert Spread().predict_set([], conformal) == []
    softened = Spread(calibration=Calibration(2.0, TASK.fingerprint, "", "spread", 100, 0.0, 0.0))
    for classifier, other, reason in (
        (softened, conformal, r"another temperature \(1; this classifier's is 2\)"),
        (Spread(), replace(conformal, backend="x"), r"another backend \(x; this one is spread\)"),
        (Spread(task=Task(["a", "b", "c", "e"])), conformal, "another task"),
    ):
        with pytest.raises(ConfigError, match=f"The label sets were fitted for {reason}"):
            classifier.predict_set(texts, other)
    loaded = Spread()
    loaded.model = "m1"
    with pytest.raises(ConfigError, match=r"another model \(fingerprint m0; this model's is m1\)"):
        loaded.predict_set(texts, replace(conformal, model="m0"))
    assert softened.fit_conformal(*drawn(50, 1), coverage=0.9).temperature == 2.0


def test_rows_that_are_none() -> None:
    with pytest.raises(InputError, match="Expected one label a text; found 2 texts and 1 labels"):
        Spread().fit_conformal(["1 1 1 1", "2 1 1 1"], ["a"], coverage=0.5)
    with pytest.raises(InputError, match="Row 2: expected one of the labels a, b, c, d; found 'z'"):
        Spread().fit_conformal(["1 1 1 1", "2 1 1 1"], ["a", "z"], coverage=0.5)
