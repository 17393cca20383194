"""Asks every stage of a chain about every labelled row, once and alone: the arrays that `chain.py` searches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from smolcls.classifier import check_labels, check_texts
from smolcls.errors import BackendError, InputError, SmolclsError, require
from smolcls.prediction import Prediction
from smolcls.runner import StageRunner
from smolcls.stage import Stage
from smolcls.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[str, int, int], None]


class Labelled(Protocol):
    """A text with its label. Where it has a `family`, or `columns` with one, rows of one family resemble each other."""

    @property
    def text(self) -> str:
        """What is classified."""

    @property
    def label(self) -> str:
        """The name of its label."""


@dataclass(frozen=True)
class Measured:
    """What each stage answered to each row, and how long it took.

    Attributes:
        stages: the stages' names.
        confidence: shape (stages, rows), 0 to 1; -inf where a stage before the last cannot answer: a label that it
            does not accept, or an abstention of its own.
        right: shape (stages, rows): whether the stage's likeliest label is the row's.
        latency_ms: shape (stages, rows).
        families: one a row; rows of one family resemble each other.
    """

    stages: tuple[str, ...]
    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    latency_ms: NDArray[np.float64]
    families: tuple[str, ...]

    def only(self, rows: list[int]) -> Measured:
        """The rows at these positions."""
        families = tuple(self.families[row] for row in rows)
        return Measured(self.stages, self.confidence[:, rows], self.right[:, rows], self.latency_ms[:, rows], families)


def measure(
    stages: Sequence[Stage], task: Task, rows: Sequence[Labelled], progress: Progress | None = None
) -> Measured:
    """Ask each stage about each row, one by one as a user does, without its time-out and retries.

    Args:
        progress: called with the stage, the rows done, and the rows in all.

    Raises:
        InputError: no rows, a blank text, or a label that the task does not have.
        MissingExtraError: numpy or scipy is not installed.
        BackendError: a stage does not answer: thresholds would come to stand for its failures.
    """
    require("scipy.stats", extra="evaluate", purpose="Fitting a chain")
    import numpy as np

    texts = check_texts(row.text for row in rows)
    if not texts:
        raise InputError("A chain is fitted on labelled rows; found none.")
    check_labels(task.names, (row.label for row in rows))
    shape = (len(stages), len(texts))
    confidence, right, latency_ms = np.full(shape, -math.inf), np.zeros(shape, dtype=bool), np.zeros(shape)
    for number, stage in enumerate(stages):
        for place, (prediction, spent) in enumerate(_answers(stage, task, texts)):
            if prediction.label is not None and stage.least_confidence(prediction.label) is not None:
                confidence[number, place] = prediction.confidence
            likeliest = max(task.names, key=lambda name: prediction.probabilities[name])
            right[number, place] = likeliest == rows[place].label
            latency_ms[number, place] = spent
            if progress is not None:
                progress(f"{number + 1}. {stage.name}", place + 1, len(texts))
    return Measured(tuple(stage.name for stage in stages), confidence, right, latency_ms, families(rows))


def _answers(stage: Stage, task: Task, texts: Sequence[str]) -> Iterator[tuple[Prediction, float]]:
    """The stage's prediction for each text, with the milliseconds it took; loading is not counted."""
    runner = StageRunner(replace(stage, timeout=None, retries=0), task)
    try:
        runner.run([texts[0]])
        for text in texts:
            start = time.perf_counter()
            [prediction] = runner.run([text])
            yield prediction, (time.perf_counter() - start) * 1000.0
    except SmolclsError as error:
        raise BackendError(
            f"Every stage has to answer while a chain is fitted; {stage.name!r} does not: {error} "
            "Mend it, or leave the stage out."
        ) from error
    finally:
        runner.close()


def families(rows: Sequence[Labelled]) -> tuple[str, ...]:
    """Each row's family; one that names none is a family of its own."""
    named = [getattr(row, "family", getattr(row, "columns", {}).get("family")) for row in rows]
    return tuple(f"row {place}" if name in (None, "") else f"family {name}" for place, name in enumerate(named))
