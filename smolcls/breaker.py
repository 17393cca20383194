"""The circuit breaker of a stage: closed, open, half-open (Nygard, "Release It!", 2007).

Closed lets every call through and counts failures in a row. At the limit it opens: calls are refused
until the cool-down has passed. Then it is half-open: one call is let through as a probe, and its
outcome closes the breaker or opens it again.

A call may be let through, take long, and report when the breaker has opened meanwhile. Such a report is
about the past: while the breaker is not closed, only the probe is heard. A call reports from the thread
that was let through, which is how the probe is told from the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """A thread-safe circuit breaker.

    Args:
        failures: failures in a row that open it, at least 1.
        cooldown: seconds it stays open.
        clock: a monotonic clock in seconds; tests give their own.
    """

    def __init__(self, failures: int, cooldown: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._cooldown = cooldown
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._opened_at: float | None = None
        self._prober: int | None = None  # the thread whose call probes now

    @property
    def state(self) -> State:
        """The state now."""
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "open" if self._left(self._opened_at) > 0 else "half-open"

    def seconds_left(self) -> float:
        """Seconds until a probe is let through; 0 unless open."""
        with self._lock:
            return 0.0 if self._opened_at is None else self._left(self._opened_at)

    def allow(self) -> bool:
        """Whether a call may go through now.

        One that may must report `succeeded`, `failed` or `cancelled`, from the same thread: until then a
        half-open breaker lets no other thread through.
        """
        me = threading.get_ident()
        with self._lock:
            if self._opened_at is None:
                return True
            # A prober that asks again has lost its last call to a Ctrl-C before it could report.
            if self._left(self._opened_at) > 0 or self._prober not in (None, me):
                return False
            self._prober = me
            return True

    def succeeded(self) -> None:
        """A call that was let through succeeded: close."""
        with self._lock:
            if self._is_heard():
                self._count, self._opened_at, self._prober = 0, None, None

    def failed(self, *, lasting: bool = False) -> None:
        """A call that was let through failed.

        Args:
            lasting: open at once: a missing package does not come back by itself.
        """
        with self._lock:
            if not self._is_heard():
                return
            self._count += 1
            if lasting or self._prober is not None or self._count >= self._limit:
                self._opened_at = self._clock()
            self._prober = None

    def cancelled(self) -> None:
        """A call that was let through ended without telling anything about the stage."""
        with self._lock:
            if self._is_heard():
                self._prober = None

    def _is_heard(self) -> bool:
        return self._opened_at is None or self._prober == threading.get_ident()

    def _left(self, opened_at: float) -> float:
        return max(0.0, opened_at + self._cooldown - self._clock())
