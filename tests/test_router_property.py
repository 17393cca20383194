"""Random chains with random failures: an answer, or one error if all stages failed, and an honest trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from stages import Clock

from smolcls import (
    BackendError,
    BackendTimeoutError,
    ConfidenceRouter,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    Prediction,
    SmolclsError,
    Stage,
)
from smolcls.backends.fake import FakeClassifier

NAMES = ("command", "prompt", "workflow")
TEXTS = ("a", "b", "c")
#: Kinds of errors to what a trace calls them.
FAILURES: Mapping[type[Exception], str] = {
    BackendError: "failed",
    InputError: "failed",
    SmolclsError: "failed",
    RuntimeError: "failed",
    MemoryError: "failed",
    BackendTimeoutError: "timed-out",
    ModelError: "unavailable",
    MissingExtraError: "unavailable",
    ConfigError: "unavailable",
}
ANSWERED = {"accepted", "below-threshold", "not-accepted-label", "abstained"}
UNANSWERED = {*FAILURES.values(), "breaker-open"}


@dataclass
class Behaviour:
    """What a stage of a random chain does with each text."""

    answers: Mapping[str, tuple[str, float] | type[Exception]]
    threshold: float
    accept: list[str] | None
    abstains_below: float
    failures: int
    weights: tuple[float, ...] | None

    def stage(self, name: str, before: Sequence[str] = ()) -> Stage:
        fake = FakeClassifier(self._answer, min_confidence=self.abstains_below)
        pool = None if self.weights is None else dict(zip([name, *before], self.weights, strict=False))
        return Stage(fake, threshold=self.threshold, accept=self.accept, failures=self.failures, name=name, pool=pool)

    def _answer(self, text: str) -> tuple[str, float]:
        answer = self.answers[text]
        if isinstance(answer, tuple):
            return answer
        raise answer("no")


confidences = st.floats(0.34, 1.0)
behaviours = st.builds(
    Behaviour,
    answers=st.fixed_dictionaries(
        dict.fromkeys(TEXTS, st.tuples(st.sampled_from(NAMES), confidences) | st.sampled_from(list(FAILURES)))
    ),
    threshold=st.floats(0.0, 1.0),
    accept=st.none() | st.lists(st.sampled_from(NAMES), unique=True),
    abstains_below=st.just(0.0) | confidences,
    failures=st.integers(1, 3),
    weights=st.none() | st.tuples(st.floats(0.1, 2.0), *[st.floats(0.0, 2.0)] * 3),
)
batches = st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), min_size=1, max_size=5)


def check(prediction: Prediction, chain: list[str], min_confidence: float) -> None:
    """What must hold of every prediction."""
    assert tuple(prediction.probabilities) == NAMES
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
    assert prediction.confidence == max(prediction.probabilities.values())
    likeliest = {name for name in NAMES if prediction.probabilities[name] == prediction.confidence}
    assert prediction.label in (likeliest if prediction.confidence >= min_confidence else {None})
    steps = prediction.trace
    assert [step.stage for step in steps] == chain[: len(steps)], "one entry a stage asked, in order"
    assert all(step.outcome in ANSWERED | UNANSWERED for step in steps)
    assert all((step.confidence is None) == (step.outcome in UNANSWERED) for step in steps)
    if steps[-1].outcome == "accepted":
        assert prediction.confidence == steps[-1].confidence
        assert "accepted" not in [step.outcome for step in steps[:-1]]
    else:
        assert len(steps) == len(chain)
        assert steps[-1].outcome in UNANSWERED
        assert prediction.confidence == max(step.confidence for step in steps if step.confidence is not None)


@settings(max_examples=150, deadline=None)
@given(
    chain=st.lists(behaviours, min_size=1, max_size=4),
    batches=batches,
    min_confidence=st.just(0.0) | confidences,
    passing=st.sampled_from([0.0, 31.0]),
)
def test_random_chains(chain: list[Behaviour], batches: list[list[str]], min_confidence: float, passing: float) -> None:
    clock = Clock()
    names = [f"stage {number}" for number in range(len(chain))]
    stages = [
        behaviour.stage(name, names[:place]) for place, (behaviour, name) in enumerate(zip(chain, names, strict=True))
    ]
    router = ConfidenceRouter(stages, min_confidence=min_confidence, clock=clock)
    for texts in batches:
        clock.now += passing
        asked_before = [asked(stage) for stage in stages]
        predictions = answers(router, texts)
        if isinstance(predictions, SmolclsError):
            event("no stage could answer")
            assert type(predictions) is BackendError
            message = str(predictions)
            assert message.startswith("No stage of the router could answer. stage 0: ")
            assert all(f"{name}: " in message for name in names)
            continue
        event("answered")
        assert len(predictions) == len(texts)
        for prediction in predictions:
            check(prediction, names, min_confidence)
        for position, (stage, before) in enumerate(zip(stages, asked_before, strict=True)):
            reached = [
                text
                for text, prediction in zip(texts, predictions, strict=True)
                if len(prediction.trace) > position and prediction.trace[position].outcome != "breaker-open"
            ]
            assert asked(stage)[len(before) :] == reached, "a stage is asked what its trace says, in order"


@settings(max_examples=60, deadline=None)
@given(chain=st.lists(behaviours, min_size=1, max_size=4), text=st.sampled_from(TEXTS))
def test_an_error_only_if_every_stage_failed(chain: list[Behaviour], text: str) -> None:
    router = ConfidenceRouter([behaviour.stage(str(number)) for number, behaviour in enumerate(chain)])
    expected = [None if isinstance(item.answers[text], tuple) else item.answers[text] for item in chain]
    if None in expected:
        steps = router.classify(text).trace
        for step, kind in zip(steps, expected, strict=False):
            assert step.outcome in ANSWERED if kind is None else step.outcome == FAILURES[kind]  # type: ignore[index]
    else:
        with pytest.raises(BackendError, match="No stage of the router could answer"):
            router.classify(text)


def answers(router: ConfidenceRouter, texts: list[str]) -> list[Prediction] | SmolclsError:
    try:
        return router.classify_batch(texts)
    except SmolclsError as error:
        return error


def asked(stage: Stage) -> list[str]:
    assert isinstance(stage.classifier, FakeClassifier)
    return list(stage.classifier.asked)
