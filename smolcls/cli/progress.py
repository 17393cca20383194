"""Progress bars on standard error, shown only to people."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class FileBar:
    """How much of a file is done: its share, the time left, and the lines a second.

    Args:
        size: bytes of the file; 0 where it has no size, as a pipe.
        quiet: show nothing.
    """

    def __init__(self, size: int, *, quiet: bool) -> None:
        self._size = size
        self._quiet = quiet
        self._bar: Any = None
        self._first = 0

    def update(self, read: int, rows: int) -> None:
        """Show that so many bytes and lines are done; the first call says where this run begins."""
        from tqdm import tqdm

        if self._bar is None:
            self._first = rows
            self._bar = tqdm(
                total=self._size if self._size > 0 else None, initial=read, unit="B", unit_scale=True,
                file=sys.stderr, disable=self._quiet,
            )  # fmt: skip
        elif not self._quiet:
            rate = (rows - self._first) / max(self._bar.format_dict["elapsed"], 1e-9)
            self._bar.set_postfix_str(f"{rows:,} lines, {rate:,.0f} a second", refresh=False)
        self._bar.update(read - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


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
