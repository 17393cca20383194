"""The local server's program: `python -m soaking.local_server PORT`. Its answers depend on the prompt alone."""

from __future__ import annotations

import hashlib
import sys
import threading
from typing import Any

from ollama_server import OllamaServer, Reply, as_json, generated

_LABELS = ("command", "prompt", "workflow")


def distribution(prompt: str) -> list[tuple[str, float]]:
    """Probabilities of the labels, drawn from the prompt's digest: the first one has 0.5 to 1."""
    digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
    first = 0.5 + digest[0] / 520
    second = (1.0 - first) * (0.55 + digest[1] / 600)
    turn = digest[2] % 3
    names = [_LABELS[(turn + place) % 3] for place in range(3)]
    return list(zip(names, (first, second, 1.0 - first - second), strict=True))


def serve(port: int) -> None:
    """Serve until the process is killed."""

    def reply(body: dict[str, Any]) -> Reply:
        server.requests.clear()  # the tests' server keeps them all
        return generated(distribution(body["prompt"]), body) if "prompt" in body else as_json({"version": "0.34.0"})

    with OllamaServer(reply, port=port) as server:
        threading.Event().wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
