"""A chain survives the errors and the garbage of its stages, and leaves alone those that keep failing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from stages import PATIENCE, PROBABILITIES, Clock, Gate, Stranger, at_once, fallback, first_step, predicting, raising

from smolcls import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    CircuitOpenError,
    ConfidenceRouter,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    SmolclsError,
    Stage,
)
from smolcls.backends.fake import FakeClassifier

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


# Errors

ERRORS: list[tuple[SmolclsError, str, str]] = [
    (SmolclsError("no"), "failed", "closed"),
    (BackendError("no"), "failed", "closed"),
    (BackendUnavailableError("no"), "failed", "closed"),
    (BackendTimeoutError("no"), "timed-out", "closed"),
    (CircuitOpenError("no"), "breaker-open", "closed"),
    (MissingExtraError("no"), "unavailable", "open"),
    (ModelError("no"), "unavailable", "open"),
    (ConfigError("no"), "unavailable", "open"),
]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize(("error", "outcome", "state"), ERRORS, ids=[type(row[0]).__name__ for row in ERRORS])
def test_errors_of_each_kind(error: SmolclsError, outcome: str, state: str, timeout: float | None) -> None:
    primary = FakeClassifier(lambda text: error)
    router = ConfidenceRouter([Stage(primary, timeout=timeout), fallback()])
    assert first_step(router) == (outcome, "no")
    assert router.breakers == [state, "closed"]
    assert first_step(router)[0] == ("breaker-open" if state == "open" else outcome)
    assert len(primary.asked) == (1 if state == "open" else 2)


def test_a_text_that_only_one_stage_refuses_is_no_failure_of_that_stage() -> None:
    primary = FakeClassifier({"a": InputError("longer than this backend takes"), "b": "prompt"})
    router = ConfidenceRouter([Stage(primary, failures=1, retries=3), fallback()])
    for _ in range(4):
        assert first_step(router) == ("failed", "refused a text that others take: longer than this backend takes")
    assert router.breakers[0] == "closed"
    assert len(primary.asked) == 4, "a refused text is not tried again"
    assert router.classify("b").label == "prompt"


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("boom"), "raised RuntimeError: boom"),
        (MemoryError("12 GB"), "raised MemoryError: 12 GB"),
        (KeyError("x"), "raised KeyError: 'x'"),
        (StopIteration(), "raised StopIteration: "),
        (TimeoutError("socket"), "raised TimeoutError: socket"),
    ],
)
def test_exceptions_of_strangers(error: Exception, reason: str, timeout: float | None) -> None:
    router = ConfidenceRouter([Stage(Stranger(raising(error)), timeout=timeout, failures=2), fallback()])
    assert first_step(router) == ("failed", reason)
    assert first_step(router) == ("failed", reason)
    assert router.breakers[0] == "open"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda texts: None, "was to return a list of 1 predictions; returned None"),
        (lambda texts: "prompt", "was to return a list of 1 predictions; returned prompt"),
        (lambda texts: [], "was to return a list of 1 predictions; returned []"),
        (lambda texts: predicting()(texts * 2), "was to return a list of 1 predictions; returned [Prediction("),
        (lambda texts: ["prompt"], "was to return predictions; returned 'prompt'"),
        (predicting(label="spam"), "answered with labels that are not the task's: Prediction(label='spam'"),
        (predicting(probabilities={"spam": 1.0}), "answered with labels that are not the task's"),
        (predicting(probabilities={"prompt": 1.0}), "answered with labels that are not the task's"),
        (predicting(probabilities=PROBABILITIES | {"spam": 0.0}), "answered with labels that are not the task's"),
        (predicting(probabilities=None), "raised TypeError: "),
        (predicting(confidence=math.nan), "answered with the probability nan; expected 0 to 1"),
        (predicting(confidence=1.01), "answered with the probability 1.01; expected 0 to 1"),
        (predicting(confidence="high"), "raised TypeError: "),
        (predicting(probabilities=PROBABILITIES | {"prompt": math.nan}), "answered with the probability nan"),
        (predicting(probabilities=PROBABILITIES | {"prompt": -0.5}), "answered with the probability -0.5"),
        (predicting(trace=("?",)), "answered with a trace that is none: ('?',)"),
        (predicting(trace=None), "raised TypeError: "),
    ],
)
def test_garbage(answer: Callable[[list[str]], object], reason: str) -> None:
    router = ConfidenceRouter([Stage(Stranger(answer), failures=1), fallback()])
    outcome, found = first_step(router)
    assert outcome == "failed"
    assert found.startswith(reason)
    assert router.breakers[0] == "open"


def test_a_float32_softmax_is_no_predicting() -> None:
    answer = predicting(confidence=1.0000001, probabilities={"command": 0.0, "prompt": 1.0000001, "workflow": -1e-9})
    assert ConfidenceRouter([Stranger(answer), fallback()]).classify("a").label == "prompt"


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_the_wish_to_stop_passes_through(kind: type[BaseException], timeout: float | None) -> None:
    stop = [True]
    primary = Stranger(lambda texts: raising(kind())(texts) if stop[0] else predicting()(texts))
    router = ConfidenceRouter([Stage(primary, timeout=timeout, failures=1), fallback()])
    with pytest.raises(kind):
        router.classify("a")
    assert router.breakers == ["closed", "closed"]
    stop[0] = False
    assert router.classify("a").label == "prompt"


def test_the_wish_to_stop_gives_the_probe_back() -> None:
    clock = Clock()
    answers: list[BaseException | None] = [BackendError("down"), KeyboardInterrupt(), None]

    def answer(texts: list[str]) -> object:
        error = answers.pop(0)
        return predicting()(texts) if error is None else raising(error)(texts)

    router = ConfidenceRouter([Stage(Stranger(answer), failures=1, cooldown=30), fallback()], clock=clock)
    first_step(router)
    clock.now += 30
    with pytest.raises(KeyboardInterrupt):
        router.classify("a")
    assert router.breakers[0] == "half-open"
    at_once(1, lambda _: router.classify("a"))
    assert router.breakers[0] == "closed"


# The breaker


def test_one_primary_and_one_fallback_open_refuse_probe_and_close() -> None:
    clock = Clock()
    healthy = [False]
    primary = FakeClassifier(lambda text: "prompt" if healthy[0] else BackendUnavailableError("refused"))
    router = ConfidenceRouter([Stage(primary, failures=3, cooldown=30), fallback()], clock=clock)
    assert [first_step(router)[0] for _ in range(3)] == ["failed"] * 3
    assert router.breakers == ["open", "closed"]
    clock.now += 10
    assert first_step(router) == ("breaker-open", "left alone after repeated failures, for 20.0 s more")
    assert len(primary.asked) == 3, "an open breaker asks nobody"
    clock.now += 20
    assert router.breakers[0] == "half-open"
    assert first_step(router) == ("failed", "refused")
    assert router.breakers[0] == "open"
    assert first_step(router)[1].endswith("for 30.0 s more")
    clock.now += 30
    healthy[0] = True
    assert router.classify("a").label == "prompt"
    assert router.breakers[0] == "closed"
    assert len(primary.asked) == 5


def test_a_single_stage_has_a_breaker_too() -> None:
    primary = FakeClassifier(lambda text: BackendError("down"))
    router = ConfidenceRouter([Stage(primary, failures=1)])
    with pytest.raises(BackendError, match=r"fake: down\.$"):
        router.classify("a")
    with pytest.raises(BackendError, match="fake: left alone after repeated failures, for"):
        router.classify("a")
    assert len(primary.asked) == 1


def test_one_probe_at_a_time_under_sixteen_threads() -> None:
    clock, gate = Clock(), Gate("prompt")
    broken = [True]
    primary = FakeClassifier(lambda text: BackendError("down") if broken[0] else gate(text))
    router = ConfidenceRouter([Stage(primary, failures=1), fallback()], clock=clock)
    first_step(router)
    clock.now += 30
    broken[0] = False
    reasons: list[str] = []

    def ask(number: int) -> None:
        prediction = router.classify("a")
        reasons.append(prediction.trace[0].reason)
        if len(reasons) == 15:
            gate.open()

    at_once(16, ask)
    assert gate.waited == 1
    assert reasons[:15] == ["left alone after repeated failures, until the call that probes it is back"] * 15
    assert router.breakers[0] == "closed"
