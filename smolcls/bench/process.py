"""Child processes that end with their parent, whichever way it goes.

They are in a session of their own, so that Ctrl-C reaches the parent alone, which ends them; and they hold the other
end of a pipe from it, so that they notice where it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from smolcls.bench.job import Job
from smolcls.errors import BackendError, BackendTimeoutError

# Smolcls alone is timed: what this package needs is not the backend's to pay for.
_WORKER = """
import sys, time
began = time.perf_counter()
import smolcls
taken = time.perf_counter() - began
from smolcls.bench.worker import main
main(sys.argv[1], taken)
"""


@contextlib.contextmanager
def child(
    code: str, *arguments: str, errors: IO[bytes] | int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Python running `code`, its standard output a pipe; it is killed at the end, with its children, if it runs still.

    Args:
        errors: where its standard error goes.
    """
    process = subprocess.Popen(
        # -P: no module of the working folder's is taken for one of the library's.
        [sys.executable, "-P", "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill(process)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def end_with_parent() -> None:
    """To be called in a child: end this process as soon as the parent's end of the pipe is closed."""

    def follow() -> None:
        # Not sys.stdin: a daemon thread in its lock would abort the interpreter's end.
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def measure(job: Job, progress: Callable[[float], None], timeout: float) -> dict[str, Any]:
    """What a worker, in a process of its own, finds out about a job.

    Args:
        progress: is called with the share that is done.
        timeout: seconds after which the process is killed with its children.

    Raises:
        BackendTimeoutError: the process had not ended by then.
        BackendError: the backend could not answer, or its process died; the message says why.
    """
    done = 0.0
    with tempfile.TemporaryDirectory(prefix="smolcls-bench-") as folder, tempfile.TemporaryFile() as errors:
        path = Path(folder) / "job.json"
        job.write(path)
        with child(_WORKER, str(path), errors=errors) as process, _limit(process, timeout) as late:
            assert process.stdout is not None
            for line in process.stdout:
                if late.is_set():  # the line may be half of one
                    break
                message = json.loads(line)
                if "result" in message:
                    return dict(message["result"])
                if "error" in message:
                    raise BackendError(message["error"])
                done = message["done"]
                progress(done)
            code = process.wait()
        errors.seek(0)
        lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    alone = f"See whether the backend works alone: smolcls classify --backend {job.backend} hello"
    if late.is_set():
        raise BackendTimeoutError(
            f"Its process had not ended after {timeout:g} s and was killed, {done:.0%} of its work done: {said}. Where "
            f"it is slow and does not hang, raise the limit with --timeout. {alone}"
        )
    raise BackendError(f"Its process ended with code {code} and no answer: {said}. {alone}")


@contextlib.contextmanager
def _limit(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kill a child if the block has not ended after so many seconds; the event says whether that was done."""
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and whatever it has started in its session, unless it has been waited for."""
    if hasattr(os, "killpg") and process.returncode is None:  # else its number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the second where it has ended, on macOS
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
