"""Processes that keep processor cores busy while something is measured beside them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from smolcls.bench.process import child, end_with_parent

_SPIN = "from smolcls.bench.busy import spin; spin()"


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Let so many processes spin, each on one core; all do when the block begins, and none does after it."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child(_SPIN)) for _ in range(count)]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes


def spin() -> None:
    """Compute nothing for ever, or for as long as the parent lives."""
    end_with_parent()
    print("spinning", flush=True)
    while True:
        pass
