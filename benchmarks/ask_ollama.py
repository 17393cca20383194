"""One model by every way to ask it: do Ollama and llama.cpp agree, and what does an answer cost?

    python3 scripts/serve_ollama.py run python benchmarks/ask_ollama.py rows.jsonl --limit 300

Makes a model of its own on the server that OLLAMA_HOST names, from the embedded GGUF file or the one given, and removes
it at the end. Every text is asked by each way, twenty texts by one and then by the next: a text that was asked a moment
ago would be answered from the server's cache, and a machine that grows slower must not count against the last way.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import ollama

import smolcls
from smolcls import build, publish
from smolcls.backends.llamacpp import LlamaCppClassifier
from smolcls.backends.ollama import OllamaClassifier
from smolcls.bench.timing import latencies
from smolcls.data.rows import read_rows

CHUNK, WARM_UP = 20, 5
TIMEOUT = 300.0

#: What a way to ask gives for a text: the label, and the probabilities where it has some.
Answer = tuple[str, dict[str, float]]
Way = Callable[[str], Answer]


def scored(classifier: smolcls.Classifier) -> Way:
    """A backend of smolcls."""

    def ask(text: str) -> Answer:
        prediction = classifier.classify(text)
        return str(prediction.label), dict(prediction.probabilities)

    return ask


def written(model: str, labels: Sequence[str], host: str | None = None) -> dict[str, Way]:
    """The client's own ways, whose answer is what the model writes."""
    client = ollama.Client(host, timeout=TIMEOUT)
    schema = {"type": "object", "properties": {"label": {"enum": list(labels)}}, "required": ["label"]}

    def generate(text: str) -> Answer:
        return str(client.generate(model, text).response), {}

    def chat(text: str) -> Answer:
        return str(client.chat(model, [{"role": "user", "content": text}]).message.content), {}

    def chat_schema(text: str) -> Answer:
        messages = [{"role": "user", "content": text}]
        answer = client.chat(model, messages, format=schema, options={"num_predict": 32})  # room for the braces
        try:
            return str(json.loads(answer.message.content or "")["label"]), {}
        except (ValueError, KeyError, TypeError):
            return "", {}

    return {"client generate": generate, "client chat": chat, "client chat, schema": chat_schema}


def ask_all(ways: dict[str, Way], texts: Sequence[str]) -> tuple[dict[str, list[Answer]], dict[str, list[float]]]:
    """The answers of each way, and their seconds."""
    answers: dict[str, list[Answer]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        for text in texts[:WARM_UP]:
            way(text)
    for begin in range(0, len(texts), CHUNK):
        for name, way in ways.items():
            for text in texts[begin : begin + CHUNK]:
                began = time.perf_counter()
                answers[name].append(way(text))
                seconds[name].append(time.perf_counter() - began)
        print(f"{min(begin + CHUNK, len(texts))} of {len(texts)}", file=sys.stderr)
    return answers, seconds


def agreement(one: Sequence[Answer], other: Sequence[Answer]) -> str:
    """How many labels are the same, and how far probabilities differ."""
    same = sum(a[0] == b[0] for a, b in zip(one, other, strict=True))
    furthest = sorted(
        max(abs(a[1][name] - b[1][name]) for name in a[1])
        for a, b in zip(one, other, strict=True)
        if a[1] and b[1]
    )  # fmt: skip
    text = f"{same} of {len(one)} labels ({same / len(one):.1%})"
    if furthest:
        beyond = sum(difference > 0.05 for difference in furthest)
        text += f"; probabilities differ by {furthest[-1]:.4f} at most, by more than 0.05 on {beyond} texts"
    return text


def report(answers: dict[str, list[Answer]], seconds: dict[str, list[float]], labels: Sequence[str]) -> None:
    """Print what each way gets right, and its latency, also as a multiple of the first way's."""
    found = {name: latencies(taken) for name, taken in seconds.items()}
    first = next(iter(found))
    width = max(map(len, found))
    print(f"{'way':<{width}}   right  p50 (ms)  p95 (ms)  p50 / {first}'s")
    for name, times in found.items():
        right = sum(answer[0] == label for answer, label in zip(answers[name], labels, strict=True)) / len(labels)
        p50, p95 = times["p50_ms"], times["p95_ms"]
        print(f"{name:<{width}}  {right:>6.1%}  {p50:>8.1f}  {p95:>8.1f}  {p50 / found[first]['p50_ms']:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="a JSONL file of texts and labels of the three-type task")
    parser.add_argument("--limit", type=int, default=300, help="how many of its first rows")
    parser.add_argument("--modelfile", type=Path, help="a Modelfile beside its model.gguf; else the embedded model")
    given = parser.parse_args()
    rows = read_rows(given.rows)[: given.limit]
    file = given.modelfile or build.build().modelfile
    model = f"smolcls-benchmark-{uuid.uuid4().hex[:8]}"
    publish.create(model, file)
    try:
        with (
            OllamaClassifier(model, timeout=TIMEOUT) as remote,
            LlamaCppClassifier(file.with_name(build.MODEL)) as local,
        ):
            local.calibration = None  # the server's answers have none
            ways = {"ollama:": scored(remote), "llama.cpp": scored(local), **written(model, remote.task.names)}
            answers, seconds = ask_all(ways, [row.text for row in rows])
        raw = answers["ollama:"]
        for name, others in answers.items():
            if others is not raw:
                print(f"ollama: and {name}: {agreement(raw, others)}")
        print()
        report(answers, seconds, [row.label for row in rows])
    finally:
        publish.remove(model)


if __name__ == "__main__":
    main()
