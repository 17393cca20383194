"""The Ollama backend and its model against a real server: the same answers by every way."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("ollama")

from real_ollama import PATIENCE, WORKFLOW
from stages import at_once

from smolcls import ConfidenceRouter, Prediction, Stage, Task, prompt
from smolcls.backends._ollama_http import Server
from smolcls.backends.fake import FakeClassifier
from smolcls.backends.llamacpp import LlamaCppClassifier
from smolcls.backends.ollama import OllamaClassifier
from smolcls.build import Built

pytest_plugins = ["real_ollama"]
pytestmark = [pytest.mark.ollama, pytest.mark.usefixtures("no_proxies")]

TEXTS = [
    "/help",
    "/model qwen3:8b",
    "/save 'notes of today'",
    "  /?",
    "/cmopact",
    "hey there",
    "yes please",
    "what is a semaphore?",
    "how would I squash three commits into one?",
    "write a binary search in ocaml",
    "regex for an ISO date",
    "translate 'see you tomorrow' into Portuguese",
    "/usr/lib is huge, why?",
    "what does /clear do?",
    "explain what a lockfile is for",
    "TypeError: undefined is not a function",
    WORKFLOW,
    "rename parseRow to readRow in the whole project",
    "read CHANGES.md and write a summary into news.md",
    "the nightly job fails, sort it out",
    "npm run lint",
    "set up a REST API with login for the shop",
    "schreib Tests für den Parser und führ sie aus",
    "which of our endpoints has no test?",
]


@pytest.fixture(scope="module")
def local(embedded: Built) -> Iterator[LlamaCppClassifier]:
    """The same file in llama.cpp, its calibration left aside."""
    with LlamaCppClassifier(embedded.model) as classifier:
        classifier.calibration = None
        yield classifier


@pytest.fixture(scope="module")
def scored(remote: OllamaClassifier) -> list[Prediction]:
    """Its answers to the texts, sent four at a time."""
    return remote.classify_batch(TEXTS)


@pytest.fixture
def post(ollama_host: str, ollama_model: str) -> Callable[..., Any]:
    """Asks the server for the model's answer as any HTTP client would."""
    base = ollama_host if "://" in ollama_host else f"http://{ollama_host}"

    def asked(path: str, **body: object) -> Any:
        data = json.dumps({"model": ollama_model, "stream": False, **body}).encode()
        with urllib.request.urlopen(urllib.request.Request(base + path, data), timeout=PATIENCE) as response:
            return json.load(response)

    return asked


def assert_close(found: Prediction, expected: Prediction, text: str) -> None:
    assert found.label == expected.label, text
    for name, probability in expected.probabilities.items():
        assert found.probabilities[name] == pytest.approx(probability, abs=0.05), text


# Scores


def test_the_same_file_answers_the_same_in_llama_cpp(scored: list[Prediction], local: LlamaCppClassifier) -> None:
    expected = [local.classify(text) for text in TEXTS]
    assert {prediction.label for prediction in expected} == {"command", "prompt", "workflow"}
    for text, one, other in zip(TEXTS, scored, expected, strict=True):
        assert_close(one, other, text)
        assert one.label_mass is not None
        assert one.label_mass > 0.5, text


def test_a_label_that_begins_another_takes_a_further_request(
    ollama_host: str, remote: OllamaClassifier, local: LlamaCppClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The instruction that the model was trained on, so that its answer is one of these labels.
    task = Task(["command", "command line", "prompt", "workflow"], instruction=remote.task.instruction)
    asked = answers(monkeypatch)
    with (
        OllamaClassifier(remote.model, task=task, host=ollama_host, timeout=PATIENCE) as theirs,
        LlamaCppClassifier(local.model_path, task=task) as ours,
    ):
        ours.calibration = None
        for text in ("/help", WORKFLOW):
            assert_close(theirs.classify(text), ours.classify(text), text)
    begun = [text.rpartition("assistant\n")[2] for text, _ in asked]
    assert begun.count("") == 2
    assert "command" in begun


def test_a_long_text_is_shortened_here_and_never_cut_there(
    remote: OllamaClassifier, local: LlamaCppClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch)
    long = " ".join(f"step {number}: look at file_{number}.py;" for number in range(1000))
    assert len(local.tokenize(long)) > 2 * 2048
    assert not remote.classify("hello").truncated
    prediction = remote.classify(long)
    assert prediction.truncated
    counts = [answer.prompt_eval_count for _, answer in asked]
    kept = prompt.render(remote.task, long).text
    assert counts[1] - counts[0] == len(local.tokenize(kept)) - len(local.tokenize("hello"))
    assert_close(prediction, local.classify(long), "the long text")


def test_32_requests_at_once(remote: OllamaClassifier, scored: list[Prediction]) -> None:
    with ConfidenceRouter([Stage(remote, timeout=PATIENCE), Stage(FakeClassifier("workflow"))]) as router:

        def ask(number: int) -> None:
            index = number % len(TEXTS)
            one = remote if number % 2 else router
            assert one.classify(TEXTS[index]).label == scored[index].label

        at_once(32, ask)


def answers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every prompt that is sent from now on, with the server's answer."""
    seen: list[tuple[str, Any]] = []
    generate = Server.generate

    @functools.wraps(generate)
    def noted(self: Server, model: str, prompt: str, **request: Any) -> Any:
        answer = generate(self, model, prompt, **request)
        seen.append((prompt, answer))
        return answer

    monkeypatch.setattr(Server, "generate", noted)
    return seen


# Without smolcls


def test_ollama_run_prints_the_label(ollama_host: str, ollama_model: str, ollama_program: str | None) -> None:
    if ollama_program is None:
        pytest.skip("Ollama's own command is not installed here")
    done = subprocess.run(
        [ollama_program, "run", ollama_model, WORKFLOW],
        env={**os.environ, "OLLAMA_HOST": ollama_host},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.strip("\n") == "workflow"


def test_the_template_makes_the_prompt_of_the_backend(
    post: Callable[..., Any], remote: OllamaClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch)
    for text in ("/help", "what is a semaphore?", WORKFLOW):
        label = remote.classify(text).label
        generated = post("/api/generate", prompt=text)
        chat = post("/api/chat", messages=[{"role": "user", "content": text}])
        assert (generated["response"], chat["message"]["content"]) == (label, label)
        assert {generated["prompt_eval_count"], chat["prompt_eval_count"]} == {asked[-1][1].prompt_eval_count}
