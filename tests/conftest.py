"""Every test runs as on a fresh machine: no settings of the user's, and a working folder of its own.

The cache of built models is left as it is, for building one takes seconds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract import write_tiny_gguf
from hanging import installed
from stages import Gate, stage_threads, until


@pytest.fixture(autouse=True)
def fresh_surroundings() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="smolcls-test-") as folder, pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "OLLAMA_HOST" or (name.startswith("SMOLCLS_") and name != "SMOLCLS_CACHE"):
                patch.delenv(name)
        work = Path(folder) / "work"
        work.mkdir()
        patch.chdir(work)
        patch.setenv("XDG_CONFIG_HOME", str(Path(folder) / "config"))
        yield


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """A router's threads end when what they wait for has come."""
    yield
    until(lambda: not stage_threads())


@pytest.fixture
def gate(no_thread_is_left: None) -> Iterator[Gate]:
    """A gate that is opened at the end of the test, so that nobody waits there for ever."""
    made = Gate("prompt")
    yield made
    made.open()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF of random weights."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def hanging_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installed for other processes: backends that hang in their import, their load, and a call."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with installed(tmp_path):
        yield


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """A tiny model is too small to share out; on a busy machine the threads would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go straight to the test's own server."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "OLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
