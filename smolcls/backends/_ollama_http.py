"""Ollama's HTTP interface through its client: one request, and every way in which it fails.

Foreign errors are mapped here and nowhere else. This module imports the client and is itself imported
late; it knows nothing of tasks, prompts or labels.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import ollama

from smolcls.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigError,
    ModelError,
    SmolclsError,
)

DEFAULT_ADDRESS = "127.0.0.1:11434"
_MAX_BYTES = 8 * 1024 * 1024  # an answer takes a few kilobytes; a stream without an end is cut here
_DEADLINE = "smolcls.deadline"

#: What the client, httpx and a body of the wrong shape raise. `ValueError` covers JSON, pydantic's
#: validation and text encodings; `TypeError` and `AttributeError` come from the client where a body is JSON
#: but no object; `RuntimeError` from httpx where the client was closed.
FOREIGN: tuple[type[Exception], ...] = (
    ollama.RequestError,
    ollama.ResponseError,
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.CookieConflict,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
)

# Status to kind, meaning and remedy. -1 is the client's number for an error that came under HTTP 200.
_STATUSES: Mapping[int, tuple[type[BackendError], str, str]] = {
    -1: (BackendError, "an error in place of an answer", "See the server's log."),
    401: (BackendError, "no right to ask", "Set OLLAMA_API_KEY to a key that this server takes."),
    403: (BackendError, "no right to ask", "Set OLLAMA_API_KEY to a key that this server takes."),
    408: (BackendTimeoutError, "that the request took too long", "Raise timeout=, or try again later."),
    429: (BackendError, "too many requests", "Try again later, or send fewer at once (workers=)."),
    500: (
        BackendError,
        "that the model's runner failed or did not load",
        "See the server's log, and whether its machine has the memory for the model.",
    ),
    502: (BackendUnavailableError, "that nothing stands behind it", "Start the server: ollama serve"),
    503: (BackendError, "that its queue is full", "Try again later, or raise OLLAMA_MAX_QUEUE on the server."),
    504: (BackendTimeoutError, "that the server behind it took too long", "Raise timeout=, or try again later."),
}


class Server:
    """One Ollama server. Several threads may share it: httpx's client is made for that, and nothing else is kept.

    Args:
        host: address in the client's terms; None takes OLLAMA_HOST, else 127.0.0.1:11434.
        timeout: seconds that one request may take.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(self, host: str | None, timeout: float) -> None:
        self.address = host or os.environ.get("OLLAMA_HOST") or DEFAULT_ADDRESS
        self.timeout = timeout
        try:
            self._client = ollama.Client(
                self.address,
                timeout=timeout,
                mounts=_past_proxies(self.address),
                event_hooks={"request": [self._set_deadline], "response": [_check_body]},
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"Expected an address such as {DEFAULT_ADDRESS} or https://name:port in host= or OLLAMA_HOST; "
                f"found {self.address!r}: {error}."
            ) from error

    def generate(self, model: str, prompt: str, **request: Any) -> ollama.GenerateResponse:
        """One finished answer to a raw prompt.

        Raises:
            SmolclsError: of the kind that fits, saying what was expected, what was found, and what to do.
        """
        try:
            answer = self._client.generate(model=model, prompt=prompt, raw=True, stream=False, **request)
        except FOREIGN as error:
            raise translate(error, self, model) from error
        if answer.done is not True or answer.response is None:
            raise BackendError(
                f"Expected a finished answer with `response` and `done` from Ollama at {self.address}; found "
                f"{_short(answer.model_dump_json(exclude_none=True))}. Check that an Ollama server listens there."
            )
        return answer

    def ping(self) -> None:
        """Ask for the list of models, the cheapest proof that Ollama answers.

        Raises:
            SmolclsError: as `generate` does.
        """
        try:
            self._client.list()
        except FOREIGN as error:
            raise translate(error, self, "") from error

    def close(self) -> None:
        """Close the connections; twice does no harm."""
        self._client.close()  # type: ignore[no-untyped-call]

    def _set_deadline(self, request: httpx.Request) -> None:
        # Kept over redirects: the limit is the whole request's.
        request.extensions.setdefault(_DEADLINE, time.monotonic() + self.timeout)


def translate(error: Exception, server: Server, model: str) -> SmolclsError:
    """The error of this library for one that the client, httpx or the answer's form raised."""
    where = f"Ollama at {server.address}"
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return BackendTimeoutError(
            f"Expected an answer from {where} within {server.timeout:g} s; found none ({_reason(error)}). The first "
            "request loads the model: raise timeout=, or load it before with `ollama run`."
        )
    if isinstance(error, ollama.ResponseError):
        return _from_status(error, where, model)
    if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
        return BackendUnavailableError(
            f"Expected {where}; found no host of that name ({_reason(error)}). Check host= and OLLAMA_HOST."
        )
    if isinstance(error, (httpx.ConnectError, httpx.ProxyError)) or (
        isinstance(error, OSError) and not isinstance(error, httpx.HTTPError)
    ):
        return BackendUnavailableError(
            f"Expected {where}; found no server there ({_reason(error)}). Start it with `ollama serve`, or say where "
            "it is with host= or OLLAMA_HOST."
        )
    if isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError)):
        return BackendError(
            f"Expected an answer from {where}; found the connection broken off ({_reason(error)}). See the server's "
            "log; `ollama serve` starts it again."
        )
    return BackendError(
        f"Expected an answer in the form of Ollama's interface from {where}; found something else "
        f"({_reason(error)}). Check that an Ollama server listens there, and host= and OLLAMA_HOST."
    )


def _from_status(error: ollama.ResponseError, where: str, model: str) -> SmolclsError:
    said = _short(str(error.error)) or "no reason given"
    unknown = error.status_code == 404 and "model" in said.lower()
    if unknown or "invalid model name" in said.lower():
        return ModelError(
            f"Expected the model {model!r} in {where}; found: {said}. Make it with `smolcls build` and "
            f"`ollama create {model} -f Modelfile`; `ollama list` shows what is there."
        )
    kind, meaning, remedy = _STATUSES.get(
        error.status_code,
        (BackendError, "a refusal", "Check that an Ollama server listens there, and host= and OLLAMA_HOST."),
    )
    code = "HTTP 200" if error.status_code == -1 else f"HTTP {error.status_code}"
    return kind(f"Expected an answer from {where}; it says {meaning} ({code}: {said}). {remedy}")


class _Bounded(httpx.SyncByteStream):
    """A body that may take until a deadline and no more than `_MAX_BYTES`.

    A read time-out runs anew with every byte; a server that drips would never meet it.
    """

    def __init__(self, stream: httpx.SyncByteStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > _MAX_BYTES:
                raise httpx.DecodingError(f"more than {_MAX_BYTES} bytes")
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("the answer came in too slowly")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _check_body(response: httpx.Response) -> None:
    """Read the body within its bounds, and raise an error that it carries under a status of success.

    The client looks at the status alone and drops the fields it does not know, `error` among them.
    """
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(response.stream, response.request.extensions[_DEADLINE])
    body = response.read()
    if not response.is_success or b'"error"' not in body:
        return
    for line in body.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            continue  # the client meets it again and says so
        if isinstance(content, dict) and content.get("error"):
            raise ollama.ResponseError(str(content["error"]))


def _past_proxies(address: str) -> dict[str, None]:
    """httpx's mounts that keep a server on this machine from being asked through HTTP_PROXY or ALL_PROXY."""
    name = urlsplit(address if "://" in address else f"//{address}").hostname or "127.0.0.1"
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        local = name == "localhost" or name.endswith(".localhost")
    else:
        # 0.0.0.0 is what a server listens on; as an address to ask it means this machine.
        local = number.is_loopback or number.is_unspecified
    return {f"all://[{name}]" if ":" in name else f"all://{name}": None} if local else {}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from; the client hides httpx's behind `from None`.

    A context that is not hidden is left alone: it may be whatever the caller was handling.
    """
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__context__ if current.__suppress_context__ and not current.__cause__ else current.__cause__


def _reason(error: BaseException) -> str:
    """The words of the innermost error: the client's own say only that it is not there."""
    *_, innermost = _causes(error)
    return _short(str(innermost)) or type(innermost).__name__


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:197] + "..."
