"""A stage that hangs holds nobody; many threads share one router."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from stages import (
    PATIENCE,
    Clock,
    Gate,
    Stranger,
    at_once,
    fallback,
    first_step,
    raising,
    stage_threads,
    until,
)

from smolcls import BackendError, Classifier, ConfidenceRouter, Stage, registry
from smolcls.backends.fake import FakeClassifier

pytestmark = pytest.mark.usefixtures("no_thread_is_left")

SHORT = 0.05


# Hanging calls


def test_a_hanging_stage_is_left_behind_and_the_next_one_answers(gate: Gate) -> None:
    primary = FakeClassifier(gate)
    router = ConfidenceRouter([Stage(primary, timeout=SHORT, retries=5, failures=2), fallback()])
    prediction = router.classify("a")  # returns although the gate is shut
    assert (prediction.label, prediction.trace[0].outcome) == ("workflow", "timed-out")
    assert prediction.trace[0].reason == "no answer within 0.05 s"
    assert prediction.trace[0].latency_ms >= 1000 * SHORT
    assert router.breakers[0] == "closed"
    first_step(router)
    assert router.breakers[0] == "open"
    assert first_step(router)[0] == "breaker-open"
    gate.open()
    until(lambda: not stage_threads())
    assert primary.asked == ["a", "a"], "a time-out leaves no time for a retry"


def test_a_hanging_only_stage_is_an_error(gate: Gate) -> None:
    router = ConfidenceRouter([Stage(FakeClassifier(gate), timeout=SHORT)])
    with pytest.raises(BackendError, match=r"No stage of the router could answer\. fake: no answer within 0\.05 s\.$"):
        router.classify("a")


def test_a_stage_within_its_time_answers() -> None:
    router = ConfidenceRouter([Stage(FakeClassifier("prompt", delay=0.01), timeout=1e9), fallback()])
    assert router.predict(["a"] * 16) == ["prompt"] * 16, "longer than a system can wait"


def test_a_probe_that_hangs_opens_again(gate: Gate) -> None:
    clock = Clock()
    router = ConfidenceRouter([Stage(FakeClassifier(gate), timeout=SHORT, failures=1), fallback()], clock=clock)
    assert first_step(router)[0] == "timed-out"
    clock.now += 30
    assert first_step(router)[0] == "timed-out"
    assert router.breakers[0] == "open"
    gate.open()

    def healed() -> bool:
        clock.now += 30
        return router.classify("a").label == "prompt"

    until(healed)
    assert router.breakers[0] == "closed"


def test_calls_left_behind_are_bounded_and_the_stage_comes_back(gate: Gate) -> None:
    primary = FakeClassifier(gate)
    router = ConfidenceRouter([Stage(primary, timeout=SHORT, failures=1000), fallback()])
    for _ in range(8):
        assert first_step(router)[1] == "no answer within 0.05 s"
    for _ in range(4):
        assert first_step(router) == ("timed-out", "8 earlier calls still hang")
    assert len(stage_threads()) == 8
    gate.open()
    until(lambda: not stage_threads())
    assert len(primary.asked) == 8
    until(lambda: router.classify("a").label == "prompt")


def test_more_calls_at_once_than_may_hang_are_no_hanging_calls(gate: Gate) -> None:
    router = ConfidenceRouter([Stage(FakeClassifier(gate), timeout=PATIENCE, failures=1), fallback()])
    labels: list[str | None] = []

    def work(number: int) -> None:
        until(lambda: gate.waited >= number)  # one after the other, while all before are still waiting
        if number == 12:
            gate.open()
        else:
            labels.append(router.classify("a").label)

    at_once(13, work)
    assert labels == ["prompt"] * 12
    assert router.breakers[0] == "closed"


def test_a_timed_stage_gets_a_batch_in_parts_and_stops_at_the_first_that_hangs(gate: Gate) -> None:
    texts = [f"text {number}" for number in range(40)]
    primary = FakeClassifier(lambda text: gate() if text == "text 20" else "prompt")
    last = fallback()
    router = ConfidenceRouter([Stage(primary, timeout=SHORT), last])
    begin = time.perf_counter()
    predictions = router.classify_batch(texts)
    spent = 1000 * (time.perf_counter() - begin)
    assert primary.asked == texts[:32], "the third part was not tried"
    assert [p.label for p in predictions] == ["prompt"] * 16 + ["workflow"] * 24
    assert {p.trace[0].reason for p in predictions[16:]} == {"no answer within 0.8 s"}, "16 texts have 16 times as long"
    assert last.asked == texts[16:]
    assert sum(p.latency_ms for p in predictions) <= spent, "no time is counted twice"


@pytest.mark.parametrize("backoff", [0.01, 100.0])
def test_retries_stay_within_the_time_out(backoff: float) -> None:
    primary = FakeClassifier(lambda text: BackendError("down"))
    router = ConfidenceRouter([Stage(primary, timeout=0.3, retries=10**6, backoff=backoff), fallback()])
    outcome, reason = first_step(router)
    assert (outcome, reason) in {("failed", "down"), ("timed-out", "no answer within 0.3 s")}
    # 0.01 + 0.02 + 0.04 + 0.08 + 0.16 s are more than there is, and so are 100 s.
    assert len(primary.asked) <= (5 if backoff < 1 else 1)


def test_a_thread_that_cannot_begin_is_a_failure_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    router = ConfidenceRouter([Stage(FakeClassifier("prompt"), timeout=PATIENCE), fallback()])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert first_step(router) == ("failed", "raised RuntimeError: can't start new thread")
    assert router.classify("a").label == "prompt"


@pytest.mark.skipif(os.name == "nt", reason="a Windows process cannot send itself a Ctrl-C alone")
def test_ctrl_c_ends_the_wait_and_leaves_the_call_behind(gate: Gate) -> None:
    router = ConfidenceRouter([Stage(FakeClassifier(gate), timeout=PATIENCE, failures=1), fallback()])
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        until(lambda: gate.waited == 1)
        signal.pthread_kill(main, signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        router.classify("a")
    finger.join()
    assert len(stage_threads()) == 1
    assert router.breakers[0] == "closed"
    gate.open()
    assert router.classify("a").label == "prompt"


# Many threads


def test_sixteen_threads_of_two_hundred_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = registry.load

    def counting(spec: str, **options: Any) -> Classifier:
        loaded.append(spec)
        return load(spec, **options)

    monkeypatch.setattr(registry, "load", counting)

    def answer(text: str) -> tuple[str, float]:
        return ("command", 0.99) if text.startswith("/") else ("prompt", 0.6 + 0.3 * (int(text[-1]) % 2))

    flaky = Stranger(raising(RuntimeError("boom")))
    stages = [
        Stage("fake", options={"answers": answer}, accept={"command": 0.9}),
        Stage(flaky, cooldown=1e6),
        Stage("fake", options={"answers": answer}, threshold=0.8, timeout=PATIENCE, name="timed"),
        Stage("fake:workflow"),
    ]
    wanted = {"/0": ("command", 1), "a1": ("prompt", 3), "a2": ("workflow", 4)}

    with ConfidenceRouter(stages) as router:

        def work(number: int) -> None:
            for turn in range(200):
                texts = [("/0", "a1", "a2")[(number + turn) % 3], "/0"]
                first, second = router.classify_batch(texts) if turn % 4 == 0 else [router.classify(t) for t in texts]
                assert (first.label, len(first.trace)) == wanted[texts[0]]
                assert (second.label, len(second.trace)) == wanted["/0"]

        at_once(16, work)
        assert router.breakers == ["closed", "open", "closed", "closed"]
    assert sorted(loaded) == ["fake", "fake", "fake:workflow"]
