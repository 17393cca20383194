"""The circuit breaker, on a clock that the tests move."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from stages import PATIENCE, Clock, at_once

from smolcls import CircuitBreaker


@pytest.fixture
def clock() -> Clock:
    return Clock()


def state(breaker: CircuitBreaker) -> str:
    """Asked through a function, for it changes between two lines."""
    return breaker.state


def opened(clock: Clock, cooldown: float = 30.0) -> CircuitBreaker:
    breaker = CircuitBreaker(1, cooldown, clock)
    assert breaker.allow()
    breaker.failed()
    assert state(breaker) == "open"
    return breaker


def elsewhere(call: Callable[[], bool]) -> bool:
    """What a call gives in another thread."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_opens_at_the_limit_of_failures_in_a_row(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 30.0, clock)
    for _ in range(2):
        assert breaker.allow()
        breaker.failed()
        assert state(breaker) == "closed"
    assert breaker.allow()
    breaker.failed()
    assert state(breaker) == "open"
    assert not breaker.allow()


def test_a_success_between_starts_the_count_anew(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 30.0, clock)
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert state(breaker) == "closed"
    breaker.failed()
    breaker.failed()
    assert state(breaker) == "open"


def test_a_cancelled_call_neither_counts_nor_clears(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 30.0, clock)
    breaker.failed()
    breaker.cancelled()
    assert state(breaker) == "closed"
    breaker.failed()
    assert state(breaker) == "open"


def test_a_lasting_failure_opens_at_once(clock: Clock) -> None:
    breaker = CircuitBreaker(100, 30.0, clock)
    breaker.failed(lasting=True)
    assert state(breaker) == "open"


def test_half_open_exactly_when_the_cooldown_has_passed(clock: Clock) -> None:
    breaker = opened(clock, cooldown=30.0)
    assert breaker.seconds_left() == 30.0
    clock.now += 29.5
    assert state(breaker) == "open"
    assert breaker.seconds_left() == 0.5
    assert not breaker.allow()
    clock.now += 0.5
    assert state(breaker) == "half-open"
    assert breaker.seconds_left() == 0.0
    assert breaker.allow()


def test_seconds_left_is_zero_while_closed(clock: Clock) -> None:
    assert CircuitBreaker(1, 30.0, clock).seconds_left() == 0.0


def test_a_probe_that_succeeds_closes(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 30.0
    assert breaker.allow()
    breaker.succeeded()
    assert state(breaker) == "closed"
    assert elsewhere(breaker.allow) is True


def test_after_closing_the_count_starts_at_zero(clock: Clock) -> None:
    breaker = CircuitBreaker(2, 30.0, clock)
    breaker.failed()
    breaker.failed()
    clock.now += 30.0
    assert breaker.allow()
    breaker.succeeded()
    breaker.failed()
    assert state(breaker) == "closed"


def test_a_probe_that_fails_opens_for_a_whole_cooldown(clock: Clock) -> None:
    breaker = CircuitBreaker(3, 30.0, clock)
    breaker.failed(lasting=True)
    clock.now += 45.0
    assert breaker.allow()
    breaker.failed()
    assert state(breaker) == "open"
    assert breaker.seconds_left() == 30.0


def test_a_cancelled_probe_lets_the_next_one_through(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 30.0
    assert breaker.allow()
    assert elsewhere(breaker.allow) is False
    breaker.cancelled()
    assert state(breaker) == "half-open"
    assert elsewhere(breaker.allow) is True


def test_one_probe_at_a_time_under_sixteen_threads(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 30.0
    allowed: list[int] = []
    everyone_asked = threading.Barrier(16)

    def ask(number: int) -> None:
        may = breaker.allow()
        everyone_asked.wait(PATIENCE)
        if may:
            allowed.append(number)
            breaker.failed()

    at_once(16, ask)
    assert len(allowed) == 1
    assert state(breaker) == "open"


@pytest.mark.parametrize("report", ["succeeded", "failed", "cancelled"])
def test_a_late_report_of_an_older_call_does_not_move_an_open_breaker(clock: Clock, report: str) -> None:
    breaker = CircuitBreaker(1, 30.0, clock)
    assert breaker.allow()
    assert breaker.allow()
    breaker.failed()
    clock.now += 20.0
    getattr(breaker, report)()
    assert state(breaker) == "open"
    assert breaker.seconds_left() == 10.0


@pytest.mark.parametrize("report", ["succeeded", "failed", "cancelled"])
def test_a_late_report_of_an_older_call_does_not_end_the_probe(clock: Clock, report: str) -> None:
    breaker = opened(clock)
    clock.now += 30.0
    assert elsewhere(breaker.allow) is True
    getattr(breaker, report)()
    assert state(breaker) == "half-open"
    assert not breaker.allow()


def test_a_prober_that_lost_its_call_may_probe_again(clock: Clock) -> None:
    breaker = opened(clock)
    clock.now += 30.0
    assert breaker.allow()
    assert breaker.allow(), "a Ctrl-C before the report would refuse everyone for ever"
    assert elsewhere(breaker.allow) is False


def test_a_cooldown_of_zero_probes_at_once(clock: Clock) -> None:
    breaker = CircuitBreaker(1, 0.0, clock)
    breaker.failed()
    assert state(breaker) == "half-open"
    assert breaker.allow()
    breaker.succeeded()
    assert state(breaker) == "closed"


def test_the_usual_clock_runs() -> None:
    breaker = CircuitBreaker(1, 1e-6)
    breaker.failed()
    while state(breaker) == "open":
        pass
    assert state(breaker) == "half-open"
