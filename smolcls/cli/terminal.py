"""A run's progress and remarks on standard error: bars for people, remarks for logs too."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self

import click

from smolcls.train import Watcher


class Terminal(Watcher):
    """One bar a step, with the loss and the time left; remarks stand above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._step = ""

    def progress(self, step: str, done: int, total: int, note: str = "") -> None:
        """Show how far a step is; a new step begins a new bar."""
        from tqdm import tqdm

        if step != self._step:
            self._finish()
            self._step = step
            # `initial` keeps the time left right in a resumed run, which does not begin at nought.
            begun = max(0, done - 1)
            self._bar = tqdm(
                total=total, initial=begun, desc=step, file=sys.stderr, disable=not sys.stderr.isatty(), leave=True
            )
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def say(self, remark: str) -> None:
        """Print a remark without tearing the bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            click.echo(remark, err=True)

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
