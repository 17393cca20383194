"""The rounds: every backend once in each, in a process of its own, and the medians over them.

A machine that grows slower or is disturbed for a while touches all backends then, and a median does not move with one
round. Fresh processes give a cold start each, and what differs from one start to the next is in the figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smolcls.bench.busy import busy
from smolcls.bench.job import Job
from smolcls.bench.machine import machine
from smolcls.bench.process import measure
from smolcls.bench.timing import Figures, medians
from smolcls.classifier import check_labels, check_texts
from smolcls.errors import ConfigError, InputError, SmolclsError
from smolcls.task import Task, as_task, check_count

FORMAT = "smolcls-bench-1"
IDLE, BUSY = "idle", "busy"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often.

    Attributes:
        backends: their specifications; `chain` and `chain:CHAIN` are routers.
        task: the task's name or file, or None for the shipped one.
        rounds: how often each backend is started and measured.
        calls: single calls of a round, spread over the rows.
        batch_size: texts of a batch.
        busy: processes that spin beside it in a second measurement of each round; 0 leaves that out.
        timeout: seconds that one process may take, from its start to its end; the backend has failed then.

    Raises:
        ConfigError: no backend, or a number below its least.
    """

    backends: tuple[str, ...]
    task: str | None = None
    rounds: int = 5
    calls: int = 200
    batch_size: int = 32
    busy: int = 0
    timeout: int = 1800

    def __post_init__(self) -> None:
        if not self.backends:
            raise ConfigError("Expected the name of a backend to measure, such as rules; found none.")
        for name, least in (("rounds", 1), ("calls", 1), ("batch_size", 1), ("busy", 0), ("timeout", 1)):
            check_count(getattr(self, name), name, least=least)

    @property
    def conditions(self) -> dict[str, int]:
        """Idle, and busy where that is wanted, with the processes beside it."""
        return {IDLE: 0, BUSY: self.busy} if self.busy > 0 else {IDLE: 0}


@dataclass(slots=True)
class BackendResult:
    """One backend's figures.

    Attributes:
        name: its specification.
        model: which model answered, as far as the backend says.
        accuracy: share of the rows whose likeliest label is right; None for rows without labels.
        rounds: for each condition the figures of each round.
        failure: why it has no figures, or None.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    accuracy: float | None = None
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    failure: str | None = None

    def medians(self, condition: str) -> dict[str, float | None]:
        """The median of each figure under a condition, `idle` or `busy`."""
        return medians(self.rounds[condition])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        if self.failure is not None:
            return {"failure": self.failure}
        return {
            "model": dict(self.model),
            "accuracy": self.accuracy,
            **{condition: self.medians(condition) for condition in self.rounds},
            "rounds": {condition: [dict(item) for item in items] for condition, items in self.rounds.items()},
        }


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All backends, and what they were measured on and with."""

    conditions: Mapping[str, Any]
    backends: tuple[BackendResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        backends = {item.name: item.to_dict() for item in self.backends}
        return {"format": FORMAT, "conditions": dict(self.conditions), "backends": backends}


def bench(
    plan: Plan, texts: Sequence[str], labels: Sequence[str] | None = None, progress: Progress | None = None
) -> BenchResult:
    """Measure backends on texts. One that fails has its failure as its result; the others go on.

    Args:
        labels: one a text, or None: then no accuracy is measured.
        progress: is called with the hundredths done, 100, and what is being done.

    Raises:
        InputError: no texts, a blank one, or a label that the task does not have.
        ConfigError: there is no such task.
    """
    texts = check_texts(texts)
    if not texts:
        raise InputError("Expected texts to measure on; found none.")
    task = as_task(None if plan.task is None else Task.load(plan.task))
    if labels is not None:
        if len(labels) != len(texts):
            raise InputError(f"Expected one label a text; found {len(texts)} texts and {len(labels)} labels.")
        check_labels(task.names, labels)
    conditions = {
        **machine(), "task": task.name, "rows": len(texts), "rounds": plan.rounds, "calls": plan.calls,
        "batch_size": plan.batch_size, "busy": plan.busy,
    }  # fmt: skip
    results = tuple(BackendResult(name) for name in dict.fromkeys(plan.backends))
    tell = _Percent(len(results) * (1 + plan.rounds * len(plan.conditions)), progress)
    for result in results:
        with tell.step(result.name):
            _answer(result, plan, texts, labels, tell)
    chosen = spread(texts, plan.calls)
    for number in range(1, plan.rounds + 1):
        for condition, count in plan.conditions.items():
            with busy(count):
                for result in results:
                    with tell.step(f"{result.name}, round {number}, {condition}"):
                        _measure(result, plan, chosen, condition, tell)
    return BenchResult(conditions, results)


def spread(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """So many of the texts, evenly over all of them; each again and again where there are fewer."""
    if count >= len(texts):
        return tuple(texts[index % len(texts)] for index in range(count))
    return tuple(texts[index * len(texts) // count] for index in range(count))


class _Percent:
    """The share of all steps that is done, told whenever it changes.

    Args:
        steps: how many there are.
        progress: is told, or None.
    """

    def __init__(self, steps: int, progress: Progress | None) -> None:
        self._steps, self._progress = steps, progress
        self._done = 0
        self._note = ""

    @contextlib.contextmanager
    def step(self, note: str) -> Iterator[None]:
        """One step, which is done when the block ends."""
        self._note = note
        self.within(0.0)
        yield
        self._done += 1
        self.within(0.0)

    def within(self, share: float) -> None:
        """Say how much of the step is done."""
        if self._progress is not None:
            self._progress(int(100 * (self._done + share) / self._steps), 100, self._note)


def _answer(
    result: BackendResult, plan: Plan, texts: Sequence[str], labels: Sequence[str] | None, tell: _Percent
) -> None:
    """Let a backend answer every row once, or one where nothing says what is right.

    It comes first: what cannot answer is known at once, the embedded model is built, and the files are in the system's
    cache for the first cold start as for the last.
    """
    asked = tuple(texts) if labels is not None else (texts[0],)
    try:
        found = measure(Job(result.name, plan.task, asked), tell.within, plan.timeout)
    except SmolclsError as error:
        result.failure = str(error)
        return
    result.model = found["model"]
    if labels is not None:
        right = sum(given == label for given, label in zip(found["labels"], labels, strict=True))
        result.accuracy = right / len(labels)


def _measure(result: BackendResult, plan: Plan, texts: tuple[str, ...], condition: str, tell: _Percent) -> None:
    if result.failure is not None:
        return
    try:
        figures = measure(Job(result.name, plan.task, texts, plan.batch_size), tell.within, plan.timeout)
    except SmolclsError as error:
        result.failure = str(error)
        return
    result.rounds.setdefault(condition, []).append(figures)
