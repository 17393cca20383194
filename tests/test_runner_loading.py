"""How a stage's classifier is made, tried again, and closed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from stages import PATIENCE, Gate, Stranger, fallback, first_step, predicting, raising, until

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


def test_a_load_that_fails_for_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[Classifier | Exception] = [MemoryError("full"), FakeClassifier("prompt")]

    def load(spec: str, **options: Any) -> Classifier:
        found = results.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(registry, "load", load)
    router = ConfidenceRouter(["x", fallback()])
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
