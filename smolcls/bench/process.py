"""Child processes that end with their parent, whichever way it goes.

They are in a session of their own, so that Ctrl-C reaches the parent alone, which ends them; and they hold the other
end of a pipe from it, so that they notice where it was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from smolcls.bench.job import Job
from smolcls.errors import BackendError

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
    """Python running `code`, its standard output a pipe; it is killed at the end if it has not ended.

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
        process.kill()
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


def measure(job: Job, progress: Callable[[float], None]) -> dict[str, Any]:
    """What a worker, in a process of its own, finds out about a job.

    Args:
        progress: is called with the share that is done.

    Raises:
        BackendError: the backend could not answer, or its process died; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="smolcls-bench-") as folder, tempfile.TemporaryFile() as errors:
        path = Path(folder) / "job.json"
        job.write(path)
        with child(_WORKER, str(path), errors=errors) as process:
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                if "result" in message:
                    return dict(message["result"])
                if "error" in message:
                    raise BackendError(message["error"])
                progress(message["done"])
            code = process.wait()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip().splitlines()
    raise BackendError(
        f"Its process ended with code {code} and no answer: {said[-1] if said else 'it said nothing'}. See whether "
        f"the backend works alone: smolcls classify --backend {job.backend} hello"
    )
