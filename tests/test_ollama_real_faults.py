"""The Ollama backend where a real server fails: one clear error alone, in a router the next stage's answer."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

pytest.importorskip("ollama")

from real_ollama import PATIENCE, WORKFLOW, Process, free_address

from smolcls import ConfidenceRouter, Stage
from smolcls.backends._ollama_http import Server
from smolcls.backends.fake import FakeClassifier
from smolcls.backends.ollama import OllamaClassifier
from smolcls.errors import BackendError, BackendTimeoutError, BackendUnavailableError, ModelError, SmolclsError

pytest_plugins = ["real_ollama"]
pytestmark = [pytest.mark.ollama, pytest.mark.usefixtures("no_proxies")]

SLACK = 3.0  # seconds that a busy machine may take for what takes none


def alone(host: str, model: str, kind: type[SmolclsError], message: str, timeout: float = 1.0) -> float:
    """A request that fails so; returns its seconds."""
    with OllamaClassifier(model, host=host, timeout=timeout) as classifier:
        started = time.monotonic()
        with pytest.raises(kind, match=message) as caught:
            classifier.classify(WORKFLOW)
        took = time.monotonic() - started
    assert took < timeout + SLACK
    assert type(caught.value) is kind
    return took


def routed(host: str, model: str, outcome: str, timeout: float = 1.0) -> float:
    """The same where a stage stands behind it, whose answer comes within the time-out; returns its seconds."""
    with (
        OllamaClassifier(model, host=host, timeout=timeout) as classifier,
        ConfidenceRouter([Stage(classifier, timeout=timeout), Stage(FakeClassifier("workflow"))]) as router,
    ):
        started = time.monotonic()
        prediction = router.classify(WORKFLOW)
        took = time.monotonic() - started
    assert took < timeout + SLACK
    assert prediction.label == "workflow"
    assert [step.outcome for step in prediction.trace] == [outcome, "accepted"]
    return took


def load(server: Process, model: str) -> None:
    """Have the server answer, which takes a first request its time."""
    with OllamaClassifier(model, host=server.address, timeout=PATIENCE) as classifier:
        assert classifier.classify(WORKFLOW).label == "workflow"


def test_no_server_and_no_such_host() -> None:
    host = free_address()
    alone(host, "three-type", BackendUnavailableError, rf"Expected Ollama at {host}; found no server there .*Start it")
    routed(host, "three-type", "failed")
    # A resolver may take its time to say that there is no such name.
    alone("smolcls.invalid", "three-type", BackendUnavailableError, r"found no host of that name .*Check host=", 20.0)
    routed("smolcls.invalid", "three-type", "failed", 20.0)


def test_no_such_model(ollama_host: str) -> None:
    message = r"Expected the model 'smolcls-none' in Ollama .*; found: model 'smolcls-none' not found\. Make it with"
    alone(ollama_host, "smolcls-none", ModelError, message, 10.0)
    routed(ollama_host, "smolcls-none", "unavailable", 10.0)


def test_a_slow_first_load(own_ollama: Process, own_model: str) -> None:
    # No model of 100 MB is loaded in 20 ms.
    message = r"Expected an answer .* within 0\.02 s; found none .*The first request loads the model: raise timeout="
    alone(own_ollama.address, own_model, BackendTimeoutError, message, 0.02)
    routed(own_ollama.address, own_model, "timed-out", 0.02)
    load(own_ollama, own_model)


def test_a_server_that_stands_still(own_ollama: Process, own_model: str) -> None:
    load(own_ollama, own_model)
    own_ollama.signal(signal.SIGSTOP)
    alone(own_ollama.address, own_model, BackendTimeoutError, r"within 1 s; found none \(timed out\)")
    routed(own_ollama.address, own_model, "timed-out")
    own_ollama.signal(signal.SIGCONT)
    load(own_ollama, own_model)


@pytest.mark.parametrize("router", [False, True], ids=["alone", "in a router"])
def test_a_server_that_is_killed_in_mid_request(
    own_ollama: Process, own_model: str, router: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Server.generate

    def begun(*given: Any, **named: Any) -> Any:
        threading.Timer(0.5, own_ollama.kill).start()
        return generate(*given, **named)

    load(own_ollama, own_model)
    for runner in own_ollama.runners():
        os.kill(runner, signal.SIGSTOP)  # so that the server has the request, and waits
    monkeypatch.setattr(Server, "generate", begun)
    if router:
        took = routed(own_ollama.address, own_model, "failed", 30.0)
    else:
        message = r"found the connection broken off .*`ollama serve` starts it again"
        took = alone(own_ollama.address, own_model, BackendError, message, 30.0)
    assert 0.5 <= took < 10.0


def test_a_runner_that_is_killed(own_ollama: Process, own_model: str) -> None:
    load(own_ollama, own_model)
    before = own_ollama.runners()
    for runner in before:
        os.kill(runner, signal.SIGKILL)
    load(own_ollama, own_model)  # the server starts another, and the caller sees nothing of it
    assert before
    assert not set(before) & set(own_ollama.runners())
