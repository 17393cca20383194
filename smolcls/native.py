"""Native libraries as guests in the process: llama.cpp's binding, and what torch needs as much as it does.

The binding is loaded once and quietly; spinning is bounded, and a fork is noticed before it hangs.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

from smolcls.errors import BackendError, require

log = logging.getLogger("smolcls.llamacpp")

# OpenMP's workers spin while they wait for each other. Without a bound, two busy processes beside us
# stretch a 50 ms call to seconds; with none at all (OMP_WAIT_POLICY=passive) an idle machine is
# nearly twice as slow. A bounded spin keeps both short; 300 is too few, 10,000 varies.
_SPIN_COUNT = "3000"
_SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

_lock = threading.Lock()
_recent: deque[str] = deque(maxlen=8)
_callback: Any = None  # llama.cpp keeps the bare pointer: the object must outlive every call


def llama() -> Any:
    """The module `llama_cpp`, its log turned into records of the logger `smolcls.llamacpp`.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
    """
    with _lock:
        return _load()


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def trim_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it: glibc does, thread by thread.

    Without it, each thread that loads a model and frees it costs the process the model's size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class ForkGuard:
    """Notices that this process was forked from one in which a library has computed.

    Args:
        library: the library's name, for the message.
    """

    def __init__(self, library: str) -> None:
        self._library = library
        self._process: int | None = None

    def computing_here(self) -> None:
        """To be called before every computation, which the library shares out to threads of this process.

        Raises:
            BackendError: this process was forked from one that has computed. Its threads do not live on
                here, and OpenMP's first parallel loop would wait for them for ever.
        """
        if self._process is None:
            self._process = os.getpid()
        if self._process != os.getpid():
            raise BackendError(
                f"{self._library} cannot compute in a process that was forked after it was used. Start worker "
                "processes with the method 'spawn' or 'forkserver', or classify for the first time after the fork."
            )


#: llama.cpp's, whose threads all of its contexts share.
forks = ForkGuard("llama.cpp")


def recent_log() -> str:
    """llama.cpp's last warnings and errors since `forget_log`, in one line for a message about a failure."""
    return "; ".join(_recent) or "it gives no reason"


def forget_log() -> None:
    """Let `recent_log` begin anew: what an earlier model was warned of does not explain a failure of this one."""
    _recent.clear()


@cache
def _load() -> Any:
    with bounded_spin():
        binding = require("llama_cpp", extra="llamacpp", purpose="Running a GGUF model")

    def forward(level: int, text: bytes, _data: Any) -> None:
        message = text.decode("utf-8", "replace").strip()
        if message and level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            _recent.append(message)
        log.debug("%s", message)

    global _callback
    _callback = binding.llama_log_callback(forward)
    binding.llama_log_set(_callback, ctypes.c_void_p(0))
    binding.llama_backend_init()
    return binding


@contextlib.contextmanager
def bounded_spin() -> Iterator[None]:
    """Set the spin bound while libgomp loads, which reads it once; never over the user's own setting."""
    if any(name in os.environ for name in _SPIN_VARIABLES):
        yield
        return
    os.environ[_SPIN_VARIABLES[0]] = _SPIN_COUNT
    try:
        yield
    finally:
        os.environ.pop(_SPIN_VARIABLES[0], None)
