"""How a stage's classifier is made, tried again, and closed."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from stages import PATIENCE, Gate, Stranger, at_once, fallback, first_step, predicting, raising, stage_threads, until

from smolcls import (
    BackendError,
    BackendTimeoutError,
    Classifier,
    ConfidenceRouter,
    ConfigError,
    InputError,
    MissingExtraError,
    ModelError,
    SmolclsError,
    Stage,
    Task,
    registry,
)
from smolcls.backends.fake import FakeClassifier

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

SHORT = 0.05


# Retries


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("smolcls.runner.time.sleep", found.append)
    return found


def test_retries_double_their_pause_and_count_as_one_failure(pauses: list[float]) -> None:
    primary = FakeClassifier(lambda text: BackendError("down"))
    router = ConfidenceRouter([Stage(primary, retries=3, backoff=0.25, failures=2), fallback()])
    assert first_step(router) == ("failed", "down")
    assert pauses == [0.25, 0.5, 1.0]
    assert len(primary.asked) == 4
    assert router.breakers[0] == "closed"
    first_step(router)
    assert router.breakers[0] == "open"


def test_a_retry_that_succeeds_answers(pauses: list[float]) -> None:
    answers: list[Any] = [BackendError("down"), RuntimeError("odd"), "nonsense", None]

    def answer(texts: list[str]) -> object:
        found = answers.pop(0)
        return predicting()(texts) if found is None else raising(found)(texts) if found != "nonsense" else found

    router = ConfidenceRouter([Stage(Stranger(answer), retries=3), fallback()])
    assert router.classify("a").label == "prompt"
    assert len(pauses) == 3


def test_pauses_end_at_a_minute(pauses: list[float]) -> None:
    down = FakeClassifier(lambda text: BackendError("down"))
    first_step(ConfidenceRouter([Stage(down, retries=5, backoff=16), fallback()]))
    first_step(ConfidenceRouter([Stage(down, retries=1, backoff=1e9), fallback()]))
    assert pauses == [16, 32, 60, 60, 60, 60]


@pytest.mark.parametrize(
    "error", [ModelError("no"), MissingExtraError("no"), ConfigError("no"), BackendTimeoutError("no")]
)
def test_what_a_retry_cannot_mend_is_not_retried(error: SmolclsError, pauses: list[float]) -> None:
    primary = FakeClassifier(lambda text: error)
    first_step(ConfidenceRouter([Stage(primary, retries=5), fallback()]))
    assert len(primary.asked) == 1
    assert pauses == []


class Loads:
    """Stands for `registry.load`: waits at a gate, then gives or raises what was prepared."""

    def __init__(self, gate: Gate, result: Classifier | Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gate, self._result = gate, result
        monkeypatch.setattr(registry, "load", self)

    def __call__(self, spec: str, **options: Any) -> Classifier:
        self._gate()
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


# Loading and closing


def test_a_lasting_error_of_a_load_opens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(spec: str, **options: Any) -> Classifier:
        loads.append(spec)
        raise MissingExtraError('Install it with: pip install "smolcls[x]"')

    monkeypatch.setattr(registry, "load", load)
    router = ConfidenceRouter(["x", fallback()])
    assert first_step(router) == ("unavailable", 'Install it with: pip install "smolcls[x]"')
    assert first_step(router)[0] == "breaker-open"
    assert loads == ["x"]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_load_that_fails_for_now_is_tried_again(monkeypatch: pytest.MonkeyPatch, timeout: float | None) -> None:
    results: list[Classifier | Exception] = [MemoryError("full"), FakeClassifier("prompt")]

    def load(spec: str, **options: Any) -> Classifier:
        found = results.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(registry, "load", load)
    router = ConfidenceRouter([Stage("x", timeout=timeout), fallback()])
    assert first_step(router) == ("failed", "raised MemoryError: full")
    assert router.predict(["a", "b"]) == ["prompt", "prompt"]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_loaded_classifier_with_other_labels_is_closed_again(
    monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    made = Stranger(predicting(), task=Task(["a", "b"]))
    monkeypatch.setattr(registry, "load", lambda spec, **options: made)
    router = ConfidenceRouter([Stage("x", timeout=timeout), fallback()])
    assert first_step(router) == (
        "unavailable",
        "The stage 'x' has the labels a, b; the router's are command, prompt, workflow.",
    )
    assert made.closed == 1
    assert router.breakers[0] == "open"


def test_close_closes_what_was_made_and_leaves_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = Stranger(predicting()), Stranger(predicting())
    monkeypatch.setattr(registry, "load", lambda spec, **options: made)
    with ConfidenceRouter([Stage("x", threshold=0.9), Stage("never asked", threshold=0.9), given]) as router:
        router.classify("a")
        assert made.closed == 0
    assert (made.closed, given.closed) == (2, 0), "each stage made one"
    router.close()
    assert made.closed == 2
    with pytest.raises(BackendError, match=r"^This router was closed; make a new one\.$"):
        router.classify("a")
    with pytest.raises(InputError):
        router.classify("")


def test_one_that_fails_to_close_does_not_keep_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(Stranger):
        def close(self) -> None:
            super().close()
            raise RuntimeError("stuck")

    made: dict[str, Stranger] = {name: Stubborn(predicting()) for name in ("x", "y", "z")}
    monkeypatch.setattr(registry, "load", lambda spec, **options: made[spec])
    router = ConfidenceRouter([Stage(name, threshold=0.9) for name in made])
    router.classify("a")
    with pytest.raises(RuntimeError, match="stuck"):
        router.close()
    assert [classifier.closed for classifier in made.values()] == [1, 1, 1]


def test_close_waits_for_no_call_and_the_call_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    def answer(texts: list[str]) -> object:
        gate()
        return predicting()(texts)

    made = Stranger(answer)
    monkeypatch.setattr(registry, "load", lambda spec, **options: made)
    router = ConfidenceRouter(["x"])
    answers: list[str | None] = []
    caller = threading.Thread(target=lambda: answers.append(router.classify("a").label))
    caller.start()
    until(lambda: gate.waited == 1)
    router.close()
    assert made.closed == 0, "a model must not be freed under a call"
    gate.open()
    caller.join(PATIENCE)
    assert (answers, made.closed) == (["prompt"], 1)


# Slow loads


def test_a_slow_first_load_is_no_failure_and_is_used_later(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    Loads(gate, FakeClassifier("prompt"), monkeypatch)
    router = ConfidenceRouter([Stage("x", timeout=SHORT, failures=1), fallback()])
    for _ in range(12):
        outcome, reason = first_step(router)
        assert outcome == "timed-out"
        assert reason.startswith("still loading after ")
        assert reason.endswith(" s; it goes on in the background")
    assert len(stage_threads()) == 1, "one load, and nobody who waits for it in vain"
    gate.open()
    until(lambda: not stage_threads())
    assert gate.waited == 1
    assert router.breakers[0] == "closed"
    until(lambda: router.classify("a").label == "prompt")
    assert gate.waited == 1


def test_a_load_that_was_too_slow_once_is_not_waited_for_again(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    Loads(gate, FakeClassifier("prompt"), monkeypatch)
    router = ConfidenceRouter([Stage("x", timeout=0.3), fallback()])
    assert router.classify("a").trace[0].latency_ms >= 250
    waits = [router.classify("a").trace[0].latency_ms for _ in range(5)]
    assert min(waits) < 150


def test_a_load_within_the_time_out_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Gate()
    opened.open()
    Loads(opened, FakeClassifier("prompt"), monkeypatch)
    router = ConfidenceRouter([Stage("x", timeout=PATIENCE), fallback()])
    at_once(16, lambda number: router.classify("a"))
    assert router.predict(["a"]) == ["prompt"]
    assert opened.waited == 1, "sixteen first calls load once"


def test_first_calls_without_a_time_out_load_once(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    Loads(gate, FakeClassifier("prompt"), monkeypatch)
    router = ConfidenceRouter(["x", fallback()])

    def work(number: int) -> None:
        if number == 0:
            until(lambda: gate.waited == 1)
            time.sleep(SHORT)  # time for the others to load as well, if they could
            gate.open()
        assert router.classify("a").label == "prompt"

    at_once(8, work)
    assert gate.waited == 1


def test_a_load_that_takes_most_of_the_time_is_no_failure(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Gate()
    opened.open()
    Loads(opened, FakeClassifier(gate), monkeypatch)
    router = ConfidenceRouter([Stage("x", timeout=0.5, failures=1), fallback()])
    assert first_step(router) == ("timed-out", "no answer within 0.5 s, of which loading took a part")
    assert router.breakers[0] == "closed"
    assert first_step(router) == ("timed-out", "no answer within 0.5 s")
    assert router.breakers[0] == "open"


def test_a_load_that_fails_in_the_background_is_reported_by_the_next_call(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    Loads(gate, MissingExtraError("not installed"), monkeypatch)
    router = ConfidenceRouter([Stage("x", timeout=SHORT), fallback()])
    assert first_step(router)[0] == "timed-out"
    gate.open()
    until(lambda: not stage_threads())
    assert first_step(router) == ("unavailable", "not installed")
    assert router.breakers[0] == "open"
    assert gate.waited == 1


def test_close_does_not_wait_for_a_load_and_the_load_closes(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Stranger(predicting())
    Loads(gate, made, monkeypatch)
    router = ConfidenceRouter([Stage("x", timeout=SHORT), fallback()])
    first_step(router)
    until(lambda: gate.waited == 1)
    router.close()
    assert made.closed == 0
    gate.open()
    until(lambda: made.closed == 1)


def test_close_does_not_wait_for_a_hanging_call(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Stranger(lambda texts: predicting(label=gate())(texts))
    monkeypatch.setattr(registry, "load", lambda spec, **options: made)
    router = ConfidenceRouter([Stage("x", timeout=0.2), fallback()])
    until(lambda: bool(first_step(router)) and gate.waited > 0)
    router.close()
    router.close()
    assert made.closed == 0, "a model must not be freed under a call"
    gate.open()
    until(lambda: made.closed == 1)
    until(lambda: not stage_threads())
    assert made.closed == 1
