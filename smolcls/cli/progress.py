"""Progress bars on standard error, shown only to people."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class StepBars:
    """One progress bar a step; give `update` to what reports (step, done, total)."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._step = ""

    def update(self, step: str, done: int, total: int, note: str = "") -> None:
        """Show a step's progress, with a note behind it; a new step begins a new bar."""
        from tqdm import tqdm

        if step != self._step:
            self._finish()
            self._step = step
            # `initial` keeps the time left right in resumed work, which does not begin at nought.
            begun = max(0, done - 1)
            self._bar = tqdm(total=total, initial=begun, desc=step, file=sys.stderr, disable=not sys.stderr.isatty())
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
