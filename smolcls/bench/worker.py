"""One backend in this process and nothing beside it: what it answers, or how it starts and what its calls cost.

Run by `process.measure`, to which it writes lines of JSON: the share that is done, and at last the result or the error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from smolcls import registry, settings
from smolcls.bench.imports import ImportClock
from smolcls.bench.job import Job
from smolcls.bench.memory import peak_megabytes
from smolcls.bench.process import end_with_parent
from smolcls.bench.timing import alternate, latencies, rate, speed_ratio
from smolcls.classifier import Classifier
from smolcls.errors import SmolclsError
from smolcls.task import Task, as_task

_WARM_UP = 10  # calls before the first that is timed
# Texts, and batches, that one way is asked before it is the other's turn.
_CALLS_IN_TURN, _BATCHES_IN_TURN = 10, 2

Progress = Callable[[float], None]


class RawRuntime(Protocol):
    """The runtime below a backend, without the backend."""

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens and wait for the end."""

    def close(self) -> None:
        """Free what it holds."""


@runtime_checkable
class ReadsTokens(Protocol):
    """A backend that can say which tokens it evaluates for a text."""

    def prompt_tokens(self, text: str) -> list[int]:
        """Their ids."""


@runtime_checkable
class Describes(Protocol):
    """A backend that can say what its model is."""

    def model_description(self) -> str:
        """The model's family, size and quantisation."""


@runtime_checkable
class HasRuntime(ReadsTokens, Protocol):
    """A backend whose runtime can be asked without it."""

    def raw_runtime(self) -> RawRuntime:
        """The runtime, on the same model with as many threads."""


def main(path: str, package_seconds: float) -> None:
    """Work on the job in a file.

    Args:
        package_seconds: what importing the package has taken.
    """
    # Libraries may print what they like: it goes to standard error, and the parent reads JSON alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        end_with_parent()

        def send(**message: Any) -> None:
            print(json.dumps(message), file=out, flush=True)

        try:
            job = Job.read(Path(path))
            work = _measured if job.batch_size > 0 else _answered
            send(result=work(job, package_seconds, lambda share: send(done=share)))
        except SmolclsError as error:
            send(error=str(error))


def _answered(job: Job, _: float, progress: Progress) -> dict[str, Any]:
    """The likeliest label of each text, asked for alone, and which model it was."""
    labels = []
    with _make(job) as classifier:
        for number, text in enumerate(job.texts, start=1):
            spread = classifier.classify(text).probabilities
            labels.append(max(spread, key=lambda name: spread[name]))
            progress(number / len(job.texts))
        return {"labels": labels, "model": _model(classifier)}


def _measured(job: Job, package_seconds: float, progress: Progress) -> dict[str, float | None]:
    """The figures of one round."""
    classifier, found = _cold_start(job, package_seconds)
    with classifier:
        progress(0.1)
        _warm_up(classifier, job)
        runtime = None
        if isinstance(classifier, HasRuntime):
            found["peak_mb"] = peak_megabytes()  # before the runtime loads the model a second time
            runtime = classifier.raw_runtime()
        progress(0.2)
        try:
            found |= _singles(classifier, runtime, job.texts)
            progress(0.6)
            found |= _batches(classifier, runtime, job)
        finally:
            if runtime is not None:
                runtime.close()
    found.setdefault("peak_mb", peak_megabytes())
    return found


def _cold_start(job: Job, package_seconds: float) -> tuple[Classifier, dict[str, float | None]]:
    """The classifier after its first answer, and the milliseconds of each step; imports on the way are counted apart.

    A backend imports its library when it is made, and a chain makes its stages for the first text.
    """
    with ImportClock() as clock:
        began = time.perf_counter()
        classifier = _make(job)
        made, imported = time.perf_counter(), clock.seconds
        classifier.classify(job.texts[0])
        ended = time.perf_counter()
    seconds = {
        "import_ms": package_seconds + clock.seconds,
        "load_ms": made - began - imported,
        "first_ms": ended - made - (clock.seconds - imported),
    }
    return classifier, {name: max(0.0, value) * 1000.0 for name, value in seconds.items()}


def _warm_up(classifier: Classifier, job: Job) -> None:
    """Calls that nobody times, and the largest batch, so that memory has reached what it will."""
    for text in job.texts[:_WARM_UP]:
        classifier.classify(text)
    classifier.classify_batch(sorted(job.texts, key=len)[-job.batch_size :])


def _singles(classifier: Classifier, runtime: RawRuntime | None, texts: Sequence[str]) -> dict[str, float | None]:
    tokens = [classifier.prompt_tokens(text) for text in texts] if isinstance(classifier, ReadsTokens) else None
    ways: list[Callable[[int], object]] = [lambda index: classifier.classify(texts[index])]
    if runtime is not None and tokens is not None:
        ways.append(lambda index: runtime.evaluate(tokens[index]))
    seconds = alternate(len(texts), ways, _CALLS_IN_TURN)
    return latencies(seconds[0]) | _token_rates("call", tokens, seconds)


def _batches(classifier: Classifier, runtime: RawRuntime | None, job: Job) -> dict[str, float | None]:
    groups = [job.texts[begin : begin + job.batch_size] for begin in range(0, len(job.texts), job.batch_size)]
    tokens = None
    if isinstance(classifier, ReadsTokens):
        tokens = [[token for text in group for token in classifier.prompt_tokens(text)] for group in groups]
    ways: list[Callable[[int], object]] = [lambda index: classifier.classify_batch(groups[index])]
    if runtime is not None and tokens is not None:
        ways.append(lambda index: runtime.evaluate(tokens[index]))
    seconds = alternate(len(groups), ways, _BATCHES_IN_TURN)
    return {"texts_per_second": rate(len(job.texts), seconds[0])} | _token_rates("batch", tokens, seconds)


def _token_rates(
    kind: str, tokens: Sequence[Sequence[int]] | None, seconds: Sequence[Sequence[float]]
) -> dict[str, float | None]:
    """Prompt tokens per second of the backend and of its runtime, and the one as a share of the other."""
    own = raw = share = None
    if tokens is not None:
        count = sum(map(len, tokens))
        own = rate(count, seconds[0])
        if len(seconds) > 1:
            raw, share = rate(count, seconds[1]), speed_ratio(*seconds)
    return {f"{kind}_tokens_per_second": own, f"{kind}_raw_tokens_per_second": raw, f"{kind}_of_raw": share}


def _make(job: Job) -> Classifier:
    kind, _, chain = job.backend.partition(":")
    task = as_task(None if job.task is None else Task.load(job.task))
    if kind != "chain":
        return registry.load(job.backend, task=task)
    return settings.router_from(chain, task) if chain else settings.default_router(task)


def _model(classifier: Classifier) -> dict[str, Any]:
    """Which model answered, as far as the backend says."""
    path = getattr(classifier, "model_path", None)
    found: dict[str, Any] = {"fingerprint": classifier.model_fingerprint() or None}
    if path is not None:
        found |= {"file": str(path), "bytes": path.stat().st_size}
    if isinstance(classifier, Describes):
        found["description"] = classifier.model_description()
    return found
