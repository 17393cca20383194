"""The Ollama backend against servers that fail, and every foreign error mapped."""

from __future__ import annotations

import inspect
import json
import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ollama")

import httpx
import ollama
from ollama_server import OllamaServer, Reply, as_json, error, generated, written

from smolcls.backends.ollama import OllamaClassifier
from smolcls.calibration import Calibration
from smolcls.errors import (
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    ConfigError,
    MissingExtraError,
    ModelError,
    SmolclsError,
)
from smolcls.task import Task

GOOD = [("workflow", 0.9), ("prompt", 0.06), ("command", 0.03)]
DONE = {"model": "three-type", "response": "workflow", "done": True}


pytestmark = pytest.mark.usefixtures("no_proxies")


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer(lambda body: generated(GOOD, body)) as running:
        yield running


def with_top(*entries: Any) -> Reply:
    """An answer whose list of log-probabilities holds these."""
    return as_json({**DONE, "logprobs": [{"token": "w", "logprob": -1.0, "top_logprobs": list(entries)}]})


def whole(body: object = DONE) -> bytes:
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (error(404, "model 'three-type' not found"), ModelError,
         r"Expected the model 'three-type' .* found: model 'three-type' not found\. .*`ollama create three-type -f"),
        (error(400, "invalid model name"), ModelError, r"found: invalid model name\. Make it with `smolcls build`"),
        (Reply(b"404 page not found", 404), BackendError, r"a refusal \(HTTP 404: 404 page not found\)\. Check"),
        (error(400, "prompt is longer than the context"), BackendError, r"HTTP 400: prompt is longer than the context"),
        (error(401, "unauthorized"), BackendError, r"no right to ask \(HTTP 401: unauthorized\)\. Set OLLAMA_API_KEY"),
        (error(418, ""), BackendError, r"a refusal \(HTTP 418: no reason given\)"),
        (error(429, "slow down"), BackendError, r"too many requests \(HTTP 429: slow down\)\. Try again later"),
        (error(500, "llama runner process has terminated: exit status 2"), BackendError,
         r"runner failed .*terminated: exit status 2\)\. See the server's log"),
        (error(500, "timed out waiting for llama runner to start"), BackendError, r"did not load .*timed out waiting"),
        (Reply(b"Bad Gateway", 502), BackendUnavailableError, r"HTTP 502: Bad Gateway\)\. Start the server"),
        (error(503, "server busy, please try again. maximum pending requests exceeded"), BackendError,
         r"its queue is full \(HTTP 503: server busy.*OLLAMA_MAX_QUEUE"),
        (Reply(b"", 504), BackendTimeoutError, r"HTTP 504: no reason given\)\. Raise timeout="),
        (as_json({"error": "unexpected EOF"}), BackendError, r"an error .* \(HTTP 200: unexpected EOF\)\. See"),
        (Reply(whole({"response": "w", "done": False}) + b"\n" + whole({"error": "out of memory"})), BackendError,
         r"\(HTTP 200: out of memory\)"),
        (Reply(b"[]", 500), BackendError, r"form of Ollama's interface .* Check that an Ollama server listens there"),
        (Reply(b"<html>hello</html>"), BackendError, r"form of Ollama's interface .* found something else"),
        (Reply(b""), BackendError, r"form of Ollama's interface"),
        (Reply(b"\xff\xfe{"), BackendError, r"form of Ollama's interface"),
        (Reply(b"[1, 2]"), BackendError, r"form of Ollama's interface"),
        (Reply(b"null"), BackendError, r"form of Ollama's interface"),
        (Reply(b"[" * 200_000), BackendError, r"form of Ollama's interface"),
        (Reply(whole() + b"\n" + whole()), BackendError, r"form of Ollama's interface .*Extra data"),
        (Reply(whole(), headers={"Content-Encoding": "gzip"}), BackendError, r"form of Ollama's interface"),
        (Reply(whole(), 302, {"Location": "/api/generate"}), BackendError, r"form of Ollama's interface .*redirects"),
        (Reply(whole(), 302, {"Location": "ftp://x/"}), BackendError, r"form of Ollama's interface .*ftp"),
        (Reply(b"x" * 65536, endless=True), BackendError, r"more than 8388608 bytes"),
        (Reply(whole(), cut=3), BackendError, r"connection broken off .*`ollama serve` starts it again"),
        (Reply(hang_up=True), BackendError, r"connection broken off"),
        (as_json({}), BackendError, r"Expected a finished answer with `response` and `done` .* found \{\}"),
        (as_json({**DONE, "done": False}), BackendError, r"Expected a finished answer"),
        (as_json({**DONE, "response": 5}), BackendError, r"form of Ollama's interface"),
        (as_json({**DONE, "logprobs": "none"}), BackendError, r"form of Ollama's interface"),
        (as_json({**DONE, "logprobs": [{"token": "a"}]}), BackendError, r"form of Ollama's interface"),
        (as_json(DONE), BackendError, r"Expected log-probabilities .* update Ollama, or take allow_unscored=True"),
        (as_json({**DONE, "logprobs": []}), BackendError, r"Expected log-probabilities"),
        (as_json({**DONE, "logprobs": None}), BackendError, r"Expected log-probabilities"),
        (as_json({**DONE, "logprobs": [{"token": "a", "logprob": -1.0}]}), BackendError, r"up to 20 .* found \[\]"),
        (with_top(), BackendError, r"Expected up to 20 log-probabilities"),
        (with_top({"token": "a", "logprob": None}), BackendError, r"form of Ollama's interface"),
        (with_top({"token": "a", "logprob": float("nan")}), BackendError, r"sum to at most 1 .* found \[nan\]"),
        (with_top({"token": "a", "logprob": 1e9}), BackendError, r"sum to at most 1 .* Update Ollama"),
        (with_top(*[{"token": str(n), "logprob": -0.1} for n in range(3)]), BackendError, r"sum to at most 1"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none(server: OllamaServer, reply: Reply, kind: type[SmolclsError], message: str) -> None:
    server.reply = lambda body: reply
    with OllamaClassifier(host=server.host) as classifier:
        with pytest.raises(kind, match=message) as caught:
            classifier.classify("fix it")
        special = (BackendTimeoutError, BackendUnavailableError)
        assert kind in special or not isinstance(caught.value, special)
        server.reply = lambda body: generated(GOOD, body)
        assert classifier.classify("fix it").label == "workflow"  # the connection is usable, or a new one is made


def foreign_errors() -> list[BaseException]:
    """One of every exception that httpx and the client export, and of those that a bad body makes."""
    request = httpx.Request("POST", "http://127.0.0.1/api/generate")
    special: dict[str, BaseException] = {
        "HTTPStatusError": httpx.HTTPStatusError("status", request=request, response=httpx.Response(500)),
        "ResponseError": ollama.ResponseError("wrong", 500),
    }
    found: list[BaseException] = []
    for module in (httpx, ollama):
        for name in module.__all__:
            made = getattr(module, name)
            if inspect.isclass(made) and issubclass(made, BaseException):
                words = [] if "__init__" in vars(made) and len(inspect.signature(made).parameters) == 0 else ["words"]
                found.append(special.get(name) or made(*words))
    builtin = (ConnectionError, TimeoutError, OSError, ValueError, TypeError, AttributeError, RecursionError)
    return [*found, *(kind("words") for kind in builtin)]


@pytest.mark.parametrize("foreign", foreign_errors(), ids=lambda error: type(error).__name__)
def test_every_foreign_error_is_mapped(foreign: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise foreign

    monkeypatch.setattr(ollama.Client, "generate", fail)
    with (
        OllamaClassifier() as classifier,
        pytest.raises(BackendError, match=r"^Expected .*Ollama at 127.0.0.1:11434") as caught,
    ):
        classifier.classify("fix it")
    assert caught.value.__cause__ is foreign
    assert isinstance(caught.value, BackendTimeoutError) == isinstance(foreign, (TimeoutError, httpx.TimeoutException))


def test_no_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        with OllamaClassifier(host=host) as classifier:
            try:
                raise socket.gaierror("what the caller was handling")
            except socket.gaierror:
                with pytest.raises(BackendUnavailableError) as caught:
                    classifier.classify("fix it")
    assert f"Expected Ollama at {host}; found no server there ([Errno" in str(caught.value)
    assert "refused). Start it with `ollama serve`, or say where it is with host= or OLLAMA_HOST." in str(caught.value)


def test_no_such_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with OllamaClassifier(host="no-such-host") as classifier, pytest.raises(BackendUnavailableError) as caught:
        classifier.classify("fix it")
    assert "found no host of that name ([Errno -2] Name or service not known). Check host=" in str(caught.value)


@pytest.mark.parametrize("reply", [Reply(delay=30), Reply(whole(), drip=0.05)], ids=["silent", "dripping"])
def test_a_time_out_holds(server: OllamaServer, reply: Reply) -> None:
    server.reply = lambda body: reply
    started = time.monotonic()
    with OllamaClassifier(host=server.host, timeout=0.3) as classifier:
        with pytest.raises(BackendTimeoutError, match=r"within 0\.3 s; found none .* raise timeout=.*`ollama run`"):
            classifier.classify("fix it")
        assert time.monotonic() - started < 1.5


def test_the_first_failure_ends_a_batch(server: OllamaServer) -> None:
    server.reply = lambda body: error(500, "runner died")
    with OllamaClassifier(host=server.host) as classifier, pytest.raises(BackendError, match="runner died"):
        classifier.classify_batch([f"text {n}" for n in range(100)])
    assert len(server.requests) <= 8


def test_closing_while_a_request_is_out_raises_no_foreign_error(server: OllamaServer) -> None:
    server.reply = lambda body: Reply(whole(), delay=0.5)
    classifier = OllamaClassifier(host=server.host, timeout=5)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            classifier.classify("fix it")
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    classifier.close()
    thread.join(10)
    assert [isinstance(error, BackendError) for error in caught] == [True]


def test_a_hanging_server_does_not_hold_a_program_that_is_interrupted(server: OllamaServer) -> None:
    server.reply = lambda body: Reply(delay=60)
    code = (
        "import sys; from smolcls.backends.ollama import OllamaClassifier\n"
        "OllamaClassifier(host=sys.argv[1], timeout=60).classify_batch(['a'] * 8)"
    )
    with subprocess.Popen([sys.executable, "-c", code, server.host], stderr=subprocess.PIPE, text=True) as program:
        while len(server.requests) < 4:
            assert program.poll() is None
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in program.communicate(timeout=20)[1]
    assert len(server.requests) == 4


@pytest.mark.parametrize("text", ["banana", "c o m m a n d", "workflow and prompt"])
def test_an_unscored_answer_must_be_a_label(server: OllamaServer, text: str) -> None:
    server.reply = lambda body: written(text, body)
    with (
        OllamaClassifier(host=server.host, allow_unscored=True) as classifier,
        pytest.raises(BackendError, match=rf"one of the labels command, prompt, workflow .* found '{text}'"),
    ):
        classifier.classify("fix it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": " "}, r"model must be the name of a model in Ollama; found ' '"),
        ({"timeout": 0}, r"timeout must be a number of seconds above 0; found 0"),
        ({"timeout": None}, r"timeout must be a number of seconds above 0; found None"),
        ({"timeout": math.inf}, r"timeout must be .* found inf"),
        ({"keep_alive": True}, r'keep_alive must be a number of seconds or a text such as "30m"; found True'),
        ({"workers": 0}, r"workers must be a whole number of at least 1; found 0"),
        ({"host": "http://[::1"}, r"Expected an address such as 127\.0\.0\.1:11434 .* found 'http://\[::1'"),
        ({"host": "name:port"}, r"Expected an address such as .* found 'name:port'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OllamaClassifier(**options)


def test_an_unscored_answer_cannot_be_calibrated() -> None:
    fitted = Calibration(1.5, Task.load("three-type").fingerprint, "", "ollama", 100, 0.5, 0.4)
    with pytest.raises(ConfigError, match="no probability to calibrate"):
        OllamaClassifier(calibration=fitted, allow_unscored=True)


def test_a_calibration_belongs_to_the_models_name() -> None:
    fitted = Calibration(1.5, Task.load("three-type").fingerprint, "three-type", "ollama", 100, 0.5, 0.4)
    for model in (None, "three-type:latest"):
        with OllamaClassifier(model, calibration=fitted) as classifier:
            assert classifier.calibration == fitted
    with pytest.raises(ConfigError, match=r"another model \(fingerprint three-type; this model's is other\)"):
        OllamaClassifier("other", calibration=fitted)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ollama", None)
    with pytest.raises(
        MissingExtraError, match=r'package `ollama`, which is not installed.* pip install "smolcls\[ollama\]"'
    ):
        OllamaClassifier()
    assert OllamaClassifier.why_unavailable() == 'ollama is not installed; pip install "smolcls[ollama]"'


def test_availability(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.host)
    server.reply = lambda body: as_json({"models": []})
    assert OllamaClassifier.why_unavailable() is None
    assert server.requests[0].path == "/api/tags"
    server.reply = lambda body: Reply(delay=30)
    assert "within 0.5 s" in str(OllamaClassifier.why_unavailable())
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    assert "Start it with `ollama serve`" in str(OllamaClassifier.why_unavailable())


def test_importing_the_backend_loads_no_client() -> None:
    code = "import sys, smolcls.backends.ollama; print({'ollama', 'httpx', 'pydantic'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
