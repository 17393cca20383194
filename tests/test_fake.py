"""The fake classifier answers what it is told."""

from __future__ import annotations

import math
import time

import pytest
from stages import PATIENCE, at_once

import smolcls
from smolcls import BackendError, ConfigError, ModelError, Task
from smolcls.backends.fake import FakeClassifier

TEAM = Task(["billing", "sales"], name="team")


def test_answers_the_first_label_by_default() -> None:
    prediction = FakeClassifier().classify("anything")
    assert (prediction.label, prediction.backend) == ("command", "fake")
    assert prediction.confidence == pytest.approx(0.99)
    assert prediction.calibrated


def test_one_label_for_every_text() -> None:
    fake = FakeClassifier("workflow", confidence=0.7)
    prediction = fake.classify("a")
    assert prediction.label == "workflow"
    assert prediction.probabilities == pytest.approx({"command": 0.15, "prompt": 0.15, "workflow": 0.7})


def test_a_mapping_of_texts() -> None:
    fake = FakeClassifier({"a": "prompt", "b": ("workflow", 0.6)})
    first, second = fake.classify_batch(["a", "b"])
    assert (first.label, second.label) == ("prompt", "workflow")
    assert (first.confidence, second.confidence) == pytest.approx((0.99, 0.6))


def test_a_function_of_the_text() -> None:
    fake = FakeClassifier(lambda text: "command" if text.startswith("/") else ("prompt", 0.5))
    assert [p.label for p in fake.classify_batch(["/help", "hi"])] == ["command", "prompt"]


def test_a_function_may_raise() -> None:
    def answer(text: str) -> str:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        FakeClassifier(answer).classify("a")


def test_full_confidence_is_exactly_one_and_finite() -> None:
    fake = FakeClassifier("prompt", confidence=1.0)
    assert fake.classify("a").confidence == 1.0
    assert all(math.isfinite(value) for value in fake.score_batch(["a"])[0].log_probabilities)


def test_an_error_is_raised_without_the_frames_of_earlier_raises() -> None:
    error = BackendError("down")
    fake = FakeClassifier({"a": error})
    depths = []
    for _ in range(3):
        with pytest.raises(BackendError, match="down") as caught:
            fake.classify("a")
        assert caught.value is error
        depths.append(len(caught.traceback))
    assert depths[0] == depths[1] == depths[2]


def test_remembers_what_it_was_asked_even_where_it_fails() -> None:
    fake = FakeClassifier({"a": "prompt", "b": ModelError("gone"), "c": "prompt"})
    with pytest.raises(ModelError):
        fake.classify_batch(["a", "b", "c"])
    fake.classify("a")
    assert fake.asked == ["a", "b", "c", "a"]


def test_remembers_every_text_of_many_threads() -> None:
    fake = FakeClassifier()
    at_once(8, lambda number: [fake.classify(f"{number}/{turn}") for turn in range(50)])
    assert sorted(fake.asked) == sorted(f"{number}/{turn}" for number in range(8) for turn in range(50))


def test_delay_is_taken_once_a_batch() -> None:
    fake = FakeClassifier(delay=0.05)
    begin = time.perf_counter()
    predictions = fake.classify_batch(["a", "b", "c", "d"])
    assert 0.05 <= time.perf_counter() - begin < PATIENCE
    assert sum(prediction.latency_ms for prediction in predictions) >= 50


def test_another_task_and_abstention() -> None:
    fake = FakeClassifier("sales", task=TEAM, confidence=0.6, min_confidence=0.7)
    prediction = fake.classify("a")
    assert prediction.label is None
    assert prediction.probabilities == pytest.approx({"billing": 0.4, "sales": 0.6})
    assert FakeClassifier(task=TEAM).classify("a").label == "billing"


def test_as_a_specification() -> None:
    assert smolcls.load("fake:workflow").classify("a").label == "workflow"
    assert smolcls.load("fake").classify("a").label == "command"
    assert FakeClassifier.why_unavailable() is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("spam", "was told to answer 'spam'; the labels are command, prompt, workflow"),
        (("prompt", 0.2), "'prompt' with confidence 0.2; with 3 labels it must be above 0.333"),
        (("prompt", 1 / 3), "it must be above 0.333"),
        (("prompt", 1.5), "a fake answer's confidence must be a number between 0 and 1; found 1.5"),
        (("prompt", math.nan), "a fake answer's confidence must be a number between 0 and 1; found nan"),
        (("prompt", 0.5, 1), "A fake answer is a label, a pair of label and confidence, or a SmolclsError; found"),
        (None, "found None"),
        (7, "found 7"),
    ],
)
def test_an_answer_that_cannot_be_given(answer: object, message: str) -> None:
    fake = FakeClassifier(lambda text: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError) as caught:
        fake.classify("a")
    assert message in str(caught.value)


def test_a_text_that_the_mapping_lacks() -> None:
    with pytest.raises(ConfigError, match="The fake classifier has no answer for 'b'"):
        FakeClassifier({"a": "prompt"}).classify("b")


def test_a_confidence_out_of_range() -> None:
    with pytest.raises(ConfigError, match="confidence must be a number between 0 and 1; found 2"):
        FakeClassifier(confidence=2)
