"""Handing a finished model to an Ollama server, over HTTP: the file as a blob, and what the Modelfile says."""

from __future__ import annotations

from smolcls import prompt
from smolcls.errors import require
from smolcls.export import modelfile
from smolcls.train.run import Run

_TIMEOUT = 600.0  # seconds; the server reads the whole file before it answers


def create(run: Run, name: str, *, host: str | None = None) -> None:
    """Make the run's model known to an Ollama server, under a name; one of that name is replaced.

    Args:
        host: the server's address; None takes OLLAMA_HOST, else 127.0.0.1:11434.

    Raises:
        MissingExtraError: the package ollama is not installed.
        SmolclsError: the server is not there, or refuses.
    """
    ollama = require("ollama", extra="ollama", purpose="Handing a model to Ollama")
    from smolcls.backends._ollama_http import FOREIGN, Server, translate

    task = run.task()
    server = Server(host, _TIMEOUT)
    client = ollama.Client(server.address, timeout=_TIMEOUT)
    try:
        digest = client.create_blob(run.model)
        client.create(
            model=name,
            # Without `from`, which would pull a name from the registry.
            files={run.model.name: digest},
            template=modelfile.template(),
            system=prompt.system_message(task),
            parameters=modelfile.parameters(task),
            license=modelfile.LICENCE,
        )
    except FOREIGN as error:
        raise translate(error, server, name) from error
    finally:
        client.close()
        server.close()
