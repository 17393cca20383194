"""Asks every stage of a chain about every labelled row, once and alone: the arrays that `chain.py` searches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from smolcls.calibration import MIN_ROWS
from smolcls.classifier import check_labels, check_texts
from smolcls.errors import BackendError, InputError, SmolclsError, require
from smolcls.pool import fit_weights, pool_rows
from smolcls.prediction import Prediction
from smolcls.runner import StageRunner
from smolcls.stage import Stage
from smolcls.task import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[str, int, int], None]
Pool = Mapping[str, float]


class Labelled(Protocol):
    """A text with its label. Where it has a `family`, or `columns` with one, rows of one family resemble each other."""

    @property
    def text(self) -> str:
        """What is classified."""

    @property
    def label(self) -> str:
        """The name of its label."""


@dataclass(frozen=True)
class Opinions:
    """What each stage said to each row, for pools to be fitted on.

    Attributes:
        stages: the stages' names.
        probabilities: shape (stages, rows, labels).
        answered: shape (stages, rows): whether the stage gave a label; False where it abstained.
        accepted: shape (stages, labels): whether the stage may answer with the label.
        truth: shape (rows,): each row's label, by its place.
    """

    stages: tuple[str, ...]
    probabilities: NDArray[np.float64]
    answered: NDArray[np.bool_]
    accepted: NDArray[np.bool_]
    truth: NDArray[np.int64]

    def only(self, rows: list[int]) -> Opinions:
        """The rows at these positions."""
        return replace(
            self, probabilities=self.probabilities[:, rows], answered=self.answered[:, rows],
            truth=self.truth[rows],
        )  # fmt: skip

    def fit_pools(self) -> tuple[Pool | None, ...]:
        """For each stage the weights of its pool with the stages before it (`smolcls.pool`), or None.

        The first stage has none, nor has one in which no opinion counts, nor any where the rows are fewer than a
        calibration needs. A name that stood there before is asked again where others failed: it keeps its first pool.
        """
        found: list[Pool | None] = []
        for place, name in enumerate(self.stages):
            before = self.stages[:place]
            members = [before.index(other) for other in dict.fromkeys(before) if before.count(other) == 1]
            if name in before:
                first = found[before.index(name)]
                found.append(
                    first if first and all(other == name or before.count(other) == 1 for other in first) else None
                )
            elif not members or len(self.truth) < MIN_ROWS:
                found.append(None)
            else:
                weights = fit_weights(self.probabilities[[*members, place]], self.truth)
                names = [*(self.stages[member] for member in members), name]
                named = {other: round(float(weight), 3) for other, weight in zip(names, weights, strict=True)}
                kept = {other: weight for other, weight in named.items() if weight > 0 or other == name}
                found.append(kept if any(kept.values()) else None)
        return tuple(found)

    def confidence_and_right(self, pools: Sequence[Pool | None]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Both as in `Measured`, with the pools that the stages have."""
        import numpy as np

        said = self.probabilities.copy()
        for place, pool in enumerate(pools):
            if pool is not None:
                members = [place if name == self.stages[place] else self.stages.index(name) for name in pool]
                said[place] = pool_rows(self.probabilities[members], np.array(list(pool.values())))
        likeliest = said.argmax(axis=2)
        may = self.answered & np.take_along_axis(self.accepted, likeliest, axis=1)
        return np.where(may, said.max(axis=2), -math.inf), likeliest == self.truth


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
        opinions: what pools are fitted on; None where there shall be none.
    """

    stages: tuple[str, ...]
    confidence: NDArray[np.float64]
    right: NDArray[np.bool_]
    latency_ms: NDArray[np.float64]
    families: tuple[str, ...]
    opinions: Opinions | None = None

    def only(self, rows: list[int]) -> Measured:
        """The rows at these positions."""
        return Measured(
            self.stages, self.confidence[:, rows], self.right[:, rows], self.latency_ms[:, rows],
            tuple(self.families[row] for row in rows), None if self.opinions is None else self.opinions.only(rows),
        )  # fmt: skip

    def pooled(self, pools: Sequence[Pool | None]) -> Measured:
        """The same rows, answered with these pools, one a stage."""
        assert self.opinions is not None
        confidence, right = self.opinions.confidence_and_right(pools)
        return replace(self, confidence=confidence, right=right)


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
    said, answered, latency_ms = np.zeros((*shape, len(task.names))), np.zeros(shape, dtype=bool), np.zeros(shape)
    for number, stage in enumerate(stages):
        for place, (prediction, spent) in enumerate(_answers(stage, task, texts)):
            said[number, place] = [prediction.probabilities[name] for name in task.names]
            answered[number, place] = prediction.label is not None
            latency_ms[number, place] = spent
            if progress is not None:
                progress(f"{number + 1}. {stage.name}", place + 1, len(texts))
    names = tuple(stage.name for stage in stages)
    opinions = Opinions(
        names,
        said,
        answered,
        np.array([[stage.least_confidence(name) is not None for name in task.names] for stage in stages]),
        np.array([task.names.index(row.label) for row in rows]),
    )
    confidence, right = opinions.confidence_and_right([stage.pool for stage in stages])
    return Measured(names, confidence, right, latency_ms, families(rows), opinions)


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
