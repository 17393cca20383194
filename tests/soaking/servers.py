"""The server behind the chain's `ollama` stage: a real Ollama of its own, or a local one that speaks its interface.

Both can be killed, and started again at the same address, which is what a chain keeps.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import Protocol

from real_ollama import Process, free_address, serve_ollama

from smolcls import publish

_TESTS = Path(__file__).parents[1]
_START_SECONDS = 60.0


def program(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a module of this folder as a program, whose output is read by the caller."""
    known = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_TESTS), *([known] if known else [])])}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


class ModelServer(Protocol):
    """A server with one model."""

    address: str
    model: str
    kind: str

    def start(self) -> None:
        """Start it, and wait until it answers."""

    def kill(self) -> None:
        """End it at once."""

    def close(self) -> None:
        """End it, and leave nothing behind."""


class LocalServer:
    """Ollama's interface without a model, in a process of its own."""

    kind = "a local server that speaks Ollama's interface"
    model = "three-type"

    def __init__(self) -> None:
        self.address = free_address()
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        self._process = program("soaking.local_server", port)
        _await(self.address, self._process)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    close = kill


class RealServer:
    """The Ollama that scripts/serve_ollama.py has built, with the model of a Modelfile."""

    kind = "a real Ollama server"

    def __init__(self, modelfile: Path) -> None:
        self.model = f"smolcls-soak-{uuid.uuid4().hex[:12]}"
        self.address = free_address()
        self._process: Process | None = None
        self.start()
        publish.create(self.model, modelfile, host=self.address)

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the script keeps only its process's number
            self._process = Process(*serve_ollama().start(self.address))

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        self.kill()
        self.start()
        publish.remove(self.model, host=self.address)
        self.kill()


def started(chain: str, modelfile: Path) -> ModelServer:
    """The server for a chain: a real one for the embedded model, where one has been built."""
    if chain == "embedded" and serve_ollama().binary().is_file():
        return RealServer(modelfile)
    return LocalServer()


def _await(address: str, process: subprocess.Popen[str]) -> None:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            return
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"The local server did not listen at {address} within {_START_SECONDS:g} s.")
