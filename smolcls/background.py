"""Work that may hang, in daemon threads: neither its caller nor the end of the program has to wait for it.

A native call or a socket cannot be interrupted from outside; it can only be left behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """A call that begins at once in a daemon thread of its own.

    Args:
        work: what is called.
        name: the thread's name, for people who look at a hanging program.

    Raises:
        RuntimeError: the system gives no more threads.
    """

    def __init__(self, work: Callable[[], Result], name: str) -> None:
        self._work = work
        self._began = time.monotonic()
        self._end = threading.Event()
        self._result: Result
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait for the end, but no longer than this."""
        self._end.wait(max(0.0, seconds))

    def ended(self) -> bool:
        """Whether it has returned or raised."""
        return self._end.is_set()

    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def result(self) -> Result:
        """What the work returned, or its error raised; to be asked once it has ended."""
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            self._error = error
        finally:
            self._end.set()


class TimeLimit:
    """Seconds that something may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = min(seconds, threading.TIMEOUT_MAX / 2)  # longer waits raise
        self._end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds left; 0 once the time is up."""
        return max(0.0, self._end - time.monotonic())
