"""Models on an Ollama server: made from a Modelfile, looked at, removed, pushed.

All of it goes over HTTP, so that the server may be another machine's; the Modelfile says what the model is, and
the file that it names is sent where the server does not have it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcls.backends.ollama import OllamaClassifier
from smolcls.errors import SmolclsError, require
from smolcls.export import modelfile
from smolcls.files import sha256
from smolcls.task import Task, as_task

if TYPE_CHECKING:
    from smolcls.backends._ollama_models import ModelServer, Transfer

_TRANSFER_TIMEOUT = 600.0  # seconds for each step of it; the server reads a whole file before it answers
_STATUS_TIMEOUT = 5.0
_LOAD_TIMEOUT = 60.0
# Below this share the model writes something else than the labels: it was made for another task, or for none.
_LEAST_MASS = 0.5


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What can be said of an Ollama server and one model on it.

    Attributes:
        address: where it was looked for.
        version: what the server calls itself, or None where none answers.
        model: the model's name.
        size_bytes, quantisation: of the model, or None where it is not there.
        loaded: whether it was in the server's memory before it was asked.
        label_mass: the probability that stands on the task's labels, 0 to 1, or None where that cannot be told.
        latency_ms: time of one answer of the loaded model.
        problem: what is wrong and what to do, or None where all is well.
    """

    address: str
    version: str | None = None
    model: str = ""
    size_bytes: int | None = None
    quantisation: str | None = None
    loaded: bool = False
    label_mass: float | None = None
    latency_ms: float | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def create(name: str, file: str | Path, *, host: str | None = None, progress: Transfer | None = None) -> bool:
    """Make the model that a Modelfile describes known to an Ollama server; one of that name is replaced.

    Args:
        name: the model's name there.
        file: the Modelfile.
        host: the server's address; None takes OLLAMA_HOST, else 127.0.0.1:11434.
        progress: told of the bytes sent.

    Returns:
        Whether the model's file had to be sent.

    Raises:
        MissingExtraError: the package ollama is not installed.
        ConfigError: the Modelfile says what cannot be handed on.
        ModelError: the file that it names is not there.
        SmolclsError: the server is not there, or refuses.
    """
    said = modelfile.read(Path(file))
    digest = f"sha256:{sha256(said.model)}"
    with _server(host, _TRANSFER_TIMEOUT) as server:
        missing = not server.has_blob(digest)
        if missing:
            server.upload(said.model, digest, progress or (lambda done, total: None))
        # Without `from`, which would pull a name from the registry.
        server.create(name, {"files": {said.model.name: digest}, **said.request()})
    return missing


def remove(name: str, *, host: str | None = None) -> None:
    """Remove a model from an Ollama server.

    Raises:
        MissingExtraError: the package ollama is not installed.
        SmolclsError: the server is not there, or has no such model.
    """
    with _server(host, _STATUS_TIMEOUT) as server:
        server.delete(name)


def push(name: str, *, host: str | None = None, progress: Transfer | None = None) -> None:
    """Have an Ollama server send a model to the registry that its name belongs to.

    Raises:
        MissingExtraError: the package ollama is not installed.
        SmolclsError: the server is not there, has no such model, or may not push.
    """
    with _server(host, _TRANSFER_TIMEOUT) as server:
        server.push(name, progress or (lambda done, total: None))


def status(model: str | None = None, *, task: Task | str | Path | None = None, host: str | None = None) -> ServerStatus:
    """Whether a server answers, has the model, gives log-probabilities, and what to do where not.

    A model that is there is asked twice, which loads it.

    Args:
        model: the model's name; None is the task's name.
        task: the task that it should answer; None is the shipped three-type task.
        host: the server's address; None takes OLLAMA_HOST, else 127.0.0.1:11434.

    Raises:
        MissingExtraError: the package ollama is not installed.
        ConfigError: the address is none, or the task cannot be read.
    """
    made = as_task(task)
    name = made.name if model is None else model
    with _server(host, _STATUS_TIMEOUT) as server:
        found: dict[str, Any] = {"address": server.address, "model": name}
        try:
            found["version"] = server.version()
            entry = server.find(name)
            if entry is None:
                problem = f"The server has no model {name!r}. Make it with: smolcls ollama create {name}"
                return ServerStatus(**found, problem=problem)
            found["size_bytes"] = None if entry.size is None else int(entry.size)
            found["quantisation"] = None if entry.details is None else entry.details.quantization_level
            found["loaded"] = server.loaded(name) is not None
            return ServerStatus(**found, **_answer(name, made, host))
        except SmolclsError as error:
            return ServerStatus(**found, problem=str(error))


def _answer(name: str, task: Task, host: str | None) -> dict[str, Any]:
    with OllamaClassifier(name, task=task, host=host, timeout=_LOAD_TIMEOUT) as classifier:
        classifier.classify("hello")  # which loads the model
        prediction = classifier.classify("hello there")
    mass = prediction.label_mass
    problem = None
    if mass is not None and mass < _LEAST_MASS:
        problem = (
            f"Only {mass:.1%} of the model's probability stands on the labels of the task {task.name}: it was made for "
            "another task. Name that task with --task, or make the model anew with: smolcls ollama create"
        )
    return {"label_mass": mass, "latency_ms": prediction.latency_ms, "problem": problem}


@contextlib.contextmanager
def _server(host: str | None, timeout: float) -> Iterator[ModelServer]:
    require("ollama", extra="ollama", purpose="Asking an Ollama server")
    from smolcls.backends._ollama_models import ModelServer

    server = ModelServer(host, timeout)
    try:
        yield server
    finally:
        server.close()
