"""Stages that misbehave, for the tests of the router."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from smolcls import Classifier, ConfidenceRouter, Prediction, Scores, Task
from smolcls.backends.fake import FakeClassifier

PATIENCE = 30.0  # seconds after which a test gives up on something that is to happen at once
PROBABILITIES = {"command": 0.2, "prompt": 0.6, "workflow": 0.2}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Whoever passes waits until it is opened; used as the answers of a fake, or around a load."""

    def __init__(self, label: str = "prompt") -> None:
        self._label = label
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self.waited = 0

    def __call__(self, text: str = "") -> str:
        with self._lock:
            self.waited += 1
        assert self._opened.wait(PATIENCE), "nobody opened the gate"
        return self._label

    def open(self) -> None:
        self._opened.set()


class Stranger(Classifier):
    """A plugin that returns whatever `answer` says, checked by nobody."""

    name: ClassVar[str] = "stranger"

    def __init__(self, answer: Callable[[list[str]], object], *, task: Task | None = None) -> None:
        super().__init__(task=task)
        self._answer = answer
        self.closed = 0

    def classify_batch(self, texts: Iterable[str]) -> list[Prediction]:
        return self._answer(list(texts))  # type: ignore[return-value]

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        raise AssertionError("a router asks for predictions")

    def close(self) -> None:
        self.closed += 1


def predicting(**changes: Any) -> Callable[[list[str]], object]:
    """For a `Stranger`: a proper prediction a text, but for the changes."""
    values: dict[str, Any] = {"label": "prompt", "confidence": 0.6, "probabilities": PROBABILITIES, "backend": "x"}
    return lambda texts: [Prediction(**{**values, **changes}) for _ in texts]


def fallback() -> FakeClassifier:
    """A last stage that answers `workflow`, which no other stage of these tests does."""
    return FakeClassifier("workflow", confidence=0.5)


def raising(error: BaseException) -> Callable[[list[str]], object]:
    """For a `Stranger`: an error whatever it is asked."""

    def answer(texts: list[str]) -> object:
        raise error

    return answer


def first_step(router: ConfidenceRouter, text: str = "a") -> tuple[str, str]:
    """The outcome of the first stage and its reason, once the fallback has been seen to answer."""
    prediction = router.classify(text)
    assert prediction.label == "workflow"
    assert [step.outcome for step in prediction.trace[1:]] == ["accepted"]
    return prediction.trace[0].outcome, prediction.trace[0].reason


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other threads bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def stage_threads() -> list[threading.Thread]:
    """The threads that routers have running."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("smolcls-")]


def at_once(count: int, work: Callable[[int], object]) -> None:
    """Call `work(0)` … `work(count - 1)` in threads that begin together; an error in any is raised here."""
    ready = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            ready.wait(PATIENCE)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
