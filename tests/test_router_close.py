"""A router that is closed under calls: they end as they would have, and what they used is closed behind them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from stages import PATIENCE, Gate, Stranger, at_once, predicting, raising, until
from tiny import run

from smolcls import BackendError, Classifier, ConfidenceRouter, Prediction, Stage, registry, router, runner

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

CLOSED = r"^This router was closed; make a new one\.$"


class Made:
    """Stands for `registry.load`: the strangers that a router makes, by their specifications."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._answers: dict[str, Callable[[list[str]], object]] = {}
        self.strangers: dict[str, list[Stranger]] = {}
        monkeypatch.setattr(registry, "load", self._load)

    def answering(self, spec: str, answer: Callable[[list[str]], object]) -> None:
        self._answers[spec] = answer

    def closed(self, spec: str) -> list[int]:
        """How often each one that was made was closed."""
        return [made.closed for made in self.strangers.get(spec, [])]

    def _load(self, spec: str, **options: Any) -> Classifier:
        made = Stranger(self._answers.get(spec, predicting()))
        self.strangers.setdefault(spec, []).append(made)
        return made


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    found = Made(monkeypatch)
    found.answering("last", predicting(label="workflow", confidence=0.5))
    return found


def three_stages(timeout: float | None = None) -> ConfidenceRouter:
    """Two that propose what is not taken, and one that always answers, less sure than they were."""
    return ConfidenceRouter([*(Stage(spec, threshold=0.9, timeout=timeout) for spec in ("first", "second")), "last"])


def outcomes(prediction: Prediction) -> list[str]:
    return [step.outcome for step in prediction.trace]


WHOLE = ["below-threshold", "below-threshold", "accepted"]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_call_under_way_reaches_the_stages_that_it_had_before_it(
    made: Made, gate: Gate, timeout: float | None
) -> None:
    made.answering("first", lambda texts: predicting(label=gate())(texts))
    chain = three_stages(timeout)
    answers: list[Prediction] = []
    caller = threading.Thread(target=lambda: answers.extend(chain.classify_batch(["a", "b"])))
    caller.start()
    until(lambda: gate.waited == 1)
    chain.close()  # the later stages' classifiers are not made yet
    with pytest.raises(BackendError, match=CLOSED):
        chain.classify("c")
    chain.close()
    assert made.closed("first") == [0]
    gate.open()
    caller.join(PATIENCE)
    assert [(answer.label, outcomes(answer)) for answer in answers] == [("workflow", WHOLE)] * 2
    assert [made.closed(spec) for spec in ("first", "second", "last")] == [[1], [1], [1]]
    assert chain.breakers == ["closed"] * 3


def test_a_stage_that_hangs_keeps_none_that_is_behind_the_call(made: Made, gate: Gate) -> None:
    made.answering("second", lambda texts: predicting(label=gate())(texts))
    chain = three_stages()
    caller = threading.Thread(target=chain.classify, args=("a",))
    caller.start()
    until(lambda: gate.waited == 1)
    chain.close()
    assert (made.closed("first"), made.closed("second")) == ([1], [0])
    gate.open()
    caller.join(PATIENCE)
    assert (made.closed("first"), made.closed("second"), made.closed("last")) == ([1], [1], [1])


def test_closed_from_within_a_stage(made: Made) -> None:
    def answer(texts: list[str]) -> object:
        with chain:  # and twice
            chain.close()
        return predicting()(texts)

    made.answering("first", answer)
    chain = three_stages()
    assert outcomes(chain.classify("a")) == WHOLE
    assert [made.closed(spec) for spec in ("first", "second", "last")] == [[1], [1], [1]]


def test_a_call_that_is_broken_off_closes_too(made: Made) -> None:
    def answer(texts: list[str]) -> object:
        chain.close()
        return raising(KeyboardInterrupt())(texts)

    made.answering("second", answer)
    chain = three_stages()
    with pytest.raises(KeyboardInterrupt):
        chain.classify("a")
    assert [made.closed(spec) for spec in ("first", "second", "last")] == [[1], [1], []]


def classify_interrupted(chain: ConfidenceRouter, line: int) -> tuple[Prediction | str, bool]:
    """A call that is closed at its so many-th line of the router's own: what came of it, and whether it had so many."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in {router.__file__, runner.__file__}:
            return None
        left -= event == "line"
        if left == 0 and event == "line":
            chain.close()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return chain.classify("a"), left <= 0
    except BackendError as error:
        return str(error), left <= 0
    finally:
        sys.settrace(before)


def test_closed_at_any_line_by_a_signal_or_a_finaliser(made: Made) -> None:
    """The call is answered by all stages or refused before the first, and nothing that was made stays open."""
    found: list[bool] = []  # of the call that was closed at each line, whether it was answered

    def close_at_each_line() -> None:
        while True:
            chain = three_stages()
            outcome, reached = classify_interrupted(chain, len(found) + 1)
            if not reached:
                return
            assert {times for spec in made.strangers for times in made.closed(spec)} <= {1}
            made.strangers.clear()
            found.append(isinstance(outcome, Prediction))
            if isinstance(outcome, Prediction):
                assert outcomes(outcome) == WHOLE, f"closed at line {len(found)}"
            else:
                assert outcome == "This router was closed; make a new one."

    at_once(1, lambda number: close_at_each_line())  # a thread can be given up where it waits for itself
    assert found.count(False) > 5
    assert found == sorted(found), "once a call has begun, it is answered"
    assert found.count(True) > 100


def test_what_cannot_be_closed_behind_a_call_costs_it_nothing(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Stranger):
        def close(self) -> None:
            super().close()
            raise RuntimeError("stuck")

    def answer(texts: list[str]) -> object:
        chain.close()
        return predicting()(texts)

    stubborn = Stubborn(answer)
    chain = three_stages()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load", lambda spec, **options: stubborn)
        assert outcomes(chain.classify("a")) == WHOLE
    assert stubborn.closed == 3
    assert caplog.messages == [
        f"The stage {name} could not be closed: RuntimeError: stuck" for name in ("first", "second", "last")
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_waits_for_no_thread_that_it_does_not_have() -> None:
    ended = run(
        """
        import os, signal, threading, warnings
        import smolcls
        from smolcls.backends.fake import FakeClassifier

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        inside, opened = threading.Event(), threading.Event()

        def answer(text):
            if text == "waits":
                inside.set()
                opened.wait()
            return "prompt"

        chain = smolcls.ConfidenceRouter([FakeClassifier(answer)])
        caller = threading.Thread(target=lambda: print(chain.classify("waits").label))
        caller.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os.write(1, (str(chain.classify("b").label) + "\\n").encode())
            chain.close()
            try:
                chain.classify("b")
            except smolcls.BackendError as error:
                os.write(1, f"{error}\\n".encode())
            os._exit(0)
        os.waitpid(child, 0)
        opened.set()
        caller.join()
        chain.close()
        """
    )
    assert ended.stdout == "prompt\nThis router was closed; make a new one.\nprompt\n", ended.stderr
