"""A chain of classifiers that answers by calibrated confidence and survives their failures.

Each stage sees only what the stages before it did not accept. The router is a `Classifier` itself, so
routers nest. It knows thresholds and failures, and nothing of models.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from smolcls.classifier import Classifier, Scores, check_texts
from smolcls.errors import (
    BackendError,
    BackendTimeoutError,
    CircuitOpenError,
    ConfigError,
    MissingExtraError,
    ModelError,
    SmolclsError,
)
from smolcls.pool import pool
from smolcls.prediction import Prediction, StageTrace
from smolcls.runner import StageRunner
from smolcls.stage import Stage
from smolcls.task import Task

if TYPE_CHECKING:
    from smolcls.chain import ChainFit
    from smolcls.measured import Labelled, Progress

# A stage with a time-out gets so many texts at once: its limit grows with them, and a hanging stage
# must not hold a large batch for long.
_TIMED_CHUNK = 16


class ConfidenceRouter(Classifier):
    """Stages in order; the first that is confident enough answers.

    Args:
        stages: `Stage`s, specifications or classifiers. The last one always answers: its thresholds are
            not asked. If it fails, the most confident answer that an earlier stage gave is taken.
        task: the task that every stage has; None is the shipped three-type task.
        min_confidence: below this confidence of the final answer the label is None.
        clock: a monotonic clock in seconds for the circuit breakers; tests give their own.

    Attributes:
        chain_fit: what `fit` found out about this router, for one that it made.

    Raises:
        ConfigError: no stages; a stage names a label that the task does not have, was given a classifier with other
            labels, or pools a stage that is not one before it.
    """

    name: ClassVar[str] = "router"
    chain_fit: ChainFit | None = None

    def __init__(
        self,
        stages: Iterable[Stage | str | Classifier],
        *,
        task: Task | str | Path | None = None,
        min_confidence: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(task=task, min_confidence=min_confidence)
        if isinstance(stages, (str, Stage, Classifier)):
            raise ConfigError(f"A router takes a list of stages; found a single one: {stages!r}.")
        made = [stage if isinstance(stage, Stage) else Stage(stage) for stage in stages]
        if not made:
            raise ConfigError("A router needs at least one stage; found none.")
        for stage in made:
            for label in sorted(stage.labels() - set(self.task.names)):
                raise ConfigError(
                    f"The stage {stage.name!r} names the label {label!r} in accept or threshold; "
                    f"the task's are {', '.join(self.task.names)}."
                )
        _check_pools(made)
        self._runners = [StageRunner(stage, self.task, clock) for stage in made]

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order."""
        return [runner.stage for runner in self._runners]

    @property
    def breakers(self) -> list[str]:
        """The state of each stage's circuit breaker: `closed`, `open` or `half-open`."""
        return [runner.breaker.state for runner in self._runners]

    def classify_batch(self, texts: Iterable[str]) -> list[Prediction]:
        """Classify texts, in order; each goes down the chain until a stage accepts it.

        Raises:
            InputError: an item is not a string, or is empty or blank.
            BackendError: no stage could answer; the message names each with its reason. Or the router was closed
                before the call.
        """
        calls = [_Call(text) for text in check_texts(texts)]
        ahead: deque[StageRunner] = deque()
        try:
            for runner in self._runners:  # all before the first is asked: a close must not take a later one away
                if not runner.enter():
                    raise BackendError("This router was closed; make a new one.")
                ahead.append(runner)
            while ahead:
                waiting = [call for call in calls if call.answer is None]
                if waiting:
                    _run_stage(ahead[0], waiting, last=len(ahead) == 1)
                ahead.popleft().leave()
        finally:
            for runner in ahead:
                runner.leave()
        return [self._finish(call) for call in calls]

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """The final probabilities as scores, so that a router can stand wherever a classifier does."""
        return [
            Scores(
                tuple(math.log(max(p, 1e-300)) for p in prediction.probabilities.values()),
                prediction.truncated,
                prediction.label_mass,
                prediction.rule,
            )
            for prediction in self.classify_batch(texts)
        ]

    def close(self) -> None:
        """Close the classifiers that the router made, without waiting for the calls under way.

        Those end as they would have: each stage is kept, or made yet, until the last call that may ask it is past it.
        A stage that hangs therefore keeps itself and the later ones; no call that begins afterwards is answered.
        """
        super().close()
        with ExitStack() as stack:  # one that fails to close does not keep the others open
            for runner in self._runners:
                stack.callback(runner.close)

    def fit(
        self,
        rows: Sequence[Labelled],
        *,
        max_error: float | None = None,
        target_accuracy: float | None = None,
        max_latency_ms: float | None = None,
        confidence: float = 0.95,
        pool: bool = True,
        progress: Progress | None = None,
    ) -> ConfidenceRouter:
        """A new router with this one's stages, thresholds and pools fitted on held-out rows, for one of three aims.

        See `smolcls.chain` for the method. Thresholds of a stage by label become one for all; the labels in
        `accept` stay the ones that it takes. The result is in `chain_fit`, with a bound on the accuracy.

        Args:
            rows: texts with labels that no stage was trained on; with a `family` where they resemble each other.
            max_error: the fastest chain whose error stays within this, with probability `confidence`.
            target_accuracy: the fastest chain that is so accurate on the rows that propose it.
            max_latency_ms: the most accurate chain whose mean latency is within this.
            confidence: probability that the bound holds.
            pool: let what earlier stages said about a text count in each stage's answer, with weights fitted on the
                rows; else the stages keep the pools that they have.
            progress: called with the stage that is measured, the rows done, and the rows in all.

        Raises:
            ConfigError: none or several of the aims, or one out of its range.
            InputError: the rows cannot be used, are too few for the bound, or no chain reaches the aim.
            BackendError: a stage does not answer.
        """
        from smolcls import chain  # late: answering needs none of it
        from smolcls.measured import measure

        aim = chain.Aim(max_error, target_accuracy, max_latency_ms, confidence)
        found = chain.choose(chain.explore(measure(self.stages, self.task, rows, progress), pool=pool), aim)
        return self.with_fit(found)

    def with_fit(self, found: ChainFit) -> ConfidenceRouter:
        """A new router with the stages of this one and the thresholds and pools of a fit."""
        stages = [stage.with_threshold(cut) for stage, cut in zip(self.stages, found.thresholds, strict=True)]
        if found.pools is not None:
            stages = [replace(stage, pool=pool) for stage, pool in zip(stages, found.pools, strict=True)]
        fitted = ConfidenceRouter(stages, task=self.task, min_confidence=self.min_confidence)
        fitted.chain_fit = found
        return fitted

    def _finish(self, call: _Call) -> Prediction:
        best = call.best()
        if best is None:
            reasons = "; ".join(f"{step.stage}: {step.reason.rstrip('.')}" for step in call.trace)
            raise BackendError(f"No stage of the router could answer. {reasons}.")
        names = self.task.names
        label = best.label
        if label is None:  # the stage abstained by a limit of its own; here the router's counts
            label = max(names, key=lambda name: best.probabilities[name])
        return replace(
            best,
            label=label if best.confidence >= self.min_confidence else None,
            probabilities={name: best.probabilities[name] for name in names},
            latency_ms=call.spent_ms,
            trace=tuple(call.trace),
        )


def _check_pools(stages: Sequence[Stage]) -> None:
    for place, stage in enumerate(stages):
        before = [other.name for other in stages[:place]]
        for name in stage.pool or ():
            if name != stage.name and before.count(name) != 1:
                raise ConfigError(
                    f"The stage {stage.name!r} pools {name!r}, which must name one stage before it; those are "
                    f"{', '.join(before) or 'none'}. Name one of them, or give each stage a name of its own."
                )


class _Call:
    """One text on its way down the chain."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.trace: list[StageTrace] = []
        self.spent_ms = 0.0
        self.answer: Prediction | None = None
        self.proposals: list[Prediction] = []
        self._opinions: dict[str, Mapping[str, float]] = {}  # by stage

    def consider(self, prediction: Prediction, stage: Stage, latency_ms: float, *, last: bool) -> None:
        """Take a stage's prediction as the answer, or note why not."""
        prediction, others = self._pool(prediction, stage)
        outcome, reason = judge(prediction, stage, last=last)
        if others:
            reason += f", pooled with {', '.join(others)}"
        self._note(StageTrace(stage.name, outcome, reason, prediction.label, prediction.confidence, latency_ms))
        self.trace += [replace(step, stage=f"{stage.name}/{step.stage}") for step in prediction.trace]
        if outcome == "accepted":
            self.answer = prediction
        else:
            self.proposals.append(prediction)

    def failed(self, error: SmolclsError, stage: Stage, latency_ms: float) -> None:
        """Note that a stage could not answer."""
        self._note(StageTrace(stage.name, _outcome(error), str(error), latency_ms=latency_ms))

    def best(self) -> Prediction | None:
        """The answer, else the most confident proposal (the earliest of equals), else None."""
        if self.answer is not None:
            return self.answer
        return max(self.proposals, key=lambda prediction: prediction.confidence, default=None)

    def _pool(self, prediction: Prediction, stage: Stage) -> tuple[Prediction, list[str]]:
        """The prediction with the stage's pool in it, and the other stages that speak in it."""
        self._opinions[stage.name] = prediction.probabilities
        counting = {name: weight for name, weight in (stage.pool or {}).items() if weight > 0}
        if not counting or not set(counting) <= set(self._opinions):
            return prediction, []
        found = pool(self._opinions, counting)
        likeliest = max(found, key=found.__getitem__)
        label = None if prediction.label is None else likeliest  # one that abstains gives no label with others' help
        pooled = replace(prediction, label=label, confidence=found[likeliest], probabilities=found)
        return pooled, [name for name in counting if name != stage.name]

    def _note(self, step: StageTrace) -> None:
        self.trace.append(step)
        self.spent_ms += step.latency_ms


def _run_stage(runner: StageRunner, waiting: list[_Call], *, last: bool) -> None:
    """Let one stage answer the texts that are left; a failure is noted for all that it has not answered."""
    size = len(waiting) if runner.stage.timeout is None else _TIMED_CHUNK
    for begin in range(0, len(waiting), size):
        chunk = waiting[begin : begin + size]
        start = time.perf_counter()
        try:
            predictions = runner.run([call.text for call in chunk])
        except SmolclsError as error:
            unanswered = waiting[begin:]
            spent = (time.perf_counter() - start) * 1000.0 / len(unanswered)
            for call in unanswered:
                call.failed(error, runner.stage, spent)
            return
        spent = (time.perf_counter() - start) * 1000.0 / len(chunk)
        for call, prediction in zip(chunk, predictions, strict=True):
            call.consider(prediction, runner.stage, spent, last=last)


def judge(prediction: Prediction, stage: Stage, *, last: bool) -> tuple[str, str]:
    """Whether a stage's prediction is the answer: the outcome as a `StageTrace` names it, and the reason."""
    label, confidence = prediction.label, prediction.confidence
    if last:
        return "accepted", "the last stage always answers"
    if label is None:
        return "abstained", f"it abstained at confidence {confidence:.2f}"
    least = stage.least_confidence(label)
    if least is None:
        return "not-accepted-label", f"answers with the label {label} are not taken here"
    if confidence < least:
        return "below-threshold", f"confidence {confidence:.2f} is below {least:.2f}"
    return "accepted", f"confidence {confidence:.2f} reaches {least:.2f}"


def _outcome(error: SmolclsError) -> str:
    if isinstance(error, CircuitOpenError):
        return "breaker-open"
    if isinstance(error, BackendTimeoutError):
        return "timed-out"
    return "unavailable" if isinstance(error, (MissingExtraError, ModelError, ConfigError)) else "failed"
