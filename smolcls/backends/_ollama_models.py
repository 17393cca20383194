"""The models of an Ollama server: what is there, and how one comes and goes. Imported late, as the client is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ollama

from smolcls.backends._ollama_http import FOREIGN, Server, translate

_CHUNK = 1 << 20
#: Told of a transfer's bytes: how many of how many are done.
Transfer = Callable[[int, int], None]


class ModelServer(Server):
    """The backend's client for long work: each step of a transfer has the time limit, not the whole of it.

    Every method raises SmolclsError of the kind that fits, as `generate` does.
    """

    def __init__(self, host: str | None, timeout: float) -> None:
        super().__init__(host, timeout)
        # They bound an answer's size and the whole request's time.
        self._client._client.event_hooks = {}

    def version(self) -> str:
        """What the server calls itself; "0.0.0" where it was built without a number."""
        return str(self._asked("", "GET", "/api/version").json()["version"])

    def find(self, model: str) -> ollama.ListResponse.Model | None:
        """The entry of a model, or None where the server does not have it."""
        entry: ollama.ListResponse.Model | None = self._entry(self._client.list, model)
        return entry

    def loaded(self, model: str) -> ollama.ProcessResponse.Model | None:
        """The entry of a model among those in memory, or None."""
        entry: ollama.ProcessResponse.Model | None = self._entry(self._client.ps, model)
        return entry

    def has_blob(self, digest: str) -> bool:
        """Whether the server has a file of this digest."""
        try:
            self._client._request_raw("HEAD", f"/api/blobs/{digest}")  # type: ignore[no-untyped-call]
        except ollama.ResponseError as error:
            if error.status_code == 404:
                return False
            raise translate(error, self, "") from error
        except FOREIGN as error:
            raise translate(error, self, "") from error
        return True

    def upload(self, path: Path, digest: str, progress: Transfer) -> None:
        """Send a file; the server checks the digest."""
        total = path.stat().st_size

        def chunks() -> Iterator[bytes]:
            done = 0
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
                    done += len(chunk)
                    progress(done, total)

        self._asked("", "POST", f"/api/blobs/{digest}", content=chunks())

    def create(self, model: str, request: Mapping[str, Any]) -> None:
        """Make a model of what was uploaded; one of that name is replaced."""
        try:
            for _ in self._client.create(model=model, stream=True, **request):
                pass
        except FOREIGN as error:
            raise translate(error, self, model) from error

    def delete(self, model: str) -> None:
        """Remove a model."""
        try:
            self._client.delete(model)
        except FOREIGN as error:
            raise translate(error, self, model) from error

    def push(self, model: str, progress: Transfer) -> None:
        """Have the server send a model to its registry; one layer's bytes after another's."""
        try:
            for part in self._client.push(model, stream=True):
                if part.total:
                    progress(part.completed or 0, part.total)
        except FOREIGN as error:
            raise translate(error, self, model) from error

    def _entry(self, listing: Callable[[], Any], model: str) -> Any:
        try:
            found = listing().models
        except FOREIGN as error:
            raise translate(error, self, model) from error
        return next((entry for entry in found if entry.model in (model, f"{model}:latest")), None)

    def _asked(self, model: str, method: str, path: str, **request: Any) -> Any:
        # The client has no public call for these; its protected one maps errors as its public ones do.
        try:
            return self._client._request_raw(method, path, **request)  # type: ignore[no-untyped-call]
        except FOREIGN as error:
            raise translate(error, self, model) from error
