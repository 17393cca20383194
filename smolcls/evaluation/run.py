"""One classifier over labelled rows: its probabilities and latencies, and what follows from them."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from smolcls.calibration import apply_temperature
from smolcls.classifier import Classifier, check_texts
from smolcls.data.tables import LabelledText, label_indices
from smolcls.errors import BackendError, InputError
from smolcls.metrics import Metrics, check_installed, measure


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock milliseconds a text, asked for one at a time."""

    mean_ms: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one row: the likeliest label and its probability."""

    row: LabelledText
    label: str
    confidence: float

    @property
    def right(self) -> bool:
        """Whether it is the row's label."""
        return self.label == self.row.label


@dataclass(frozen=True)
class Evaluation:
    """One classifier's answers to labelled rows.

    The answer is the likeliest label; a classifier's `min_confidence` is not asked, for what abstaining costs
    and saves is what the coverage curve shows.

    Attributes:
        name: what the classifier is called in tables.
        labels: the task's labels, in the order of the probabilities.
        rows: the rows, in order.
        probabilities: the probabilities of each row, calibrated where the classifier is.
        uncalibrated: the same at temperature 1; None where no temperature was applied.
        latencies_ms: wall-clock milliseconds of each row.
    """

    name: str
    labels: tuple[str, ...]
    rows: tuple[LabelledText, ...]
    probabilities: tuple[tuple[float, ...], ...]
    uncalibrated: tuple[tuple[float, ...], ...] | None
    latencies_ms: tuple[float, ...]

    @cached_property
    def truth(self) -> tuple[int, ...]:
        """Index of each row's label."""
        return tuple(label_indices(self.labels, self.rows))

    @cached_property
    def metrics(self) -> Metrics:
        """Metrics of the probabilities."""
        return measure(self.labels, self.probabilities, self.truth)

    @cached_property
    def metrics_before(self) -> Metrics | None:
        """Metrics before calibration, or None where there was none."""
        return None if self.uncalibrated is None else measure(self.labels, self.uncalibrated, self.truth)

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """The likeliest label of each row; of equal ones the first."""
        found = []
        for row, spread in zip(self.rows, self.probabilities, strict=True):
            confidence = max(spread)
            found.append(Answer(row, self.labels[spread.index(confidence)], confidence))
        return tuple(found)

    @property
    def latency(self) -> Latency:
        """Mean, median and 95th percentile."""
        ordered = sorted(self.latencies_ms)
        return Latency(statistics.fmean(ordered), statistics.median(ordered), ordered[round(0.95 * (len(ordered) - 1))])

    def errors(self, most: int | None = None) -> list[Answer]:
        """Wrong answers, the most confident first; at most so many."""
        wrong = [answer for answer in self.answers if not answer.right]
        return sorted(wrong, key=lambda answer: -answer.confidence)[:most]


def evaluate(
    classifier: Classifier,
    rows: Iterable[LabelledText | tuple[str, str]],
    *,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Let a classifier answer labelled rows, one text at a time as `classify` does: batches move probabilities.

    Args:
        rows: the rows, or pairs of text and label.
        name: what the classifier is called in tables; None is its backend's name.
        progress: is called with the rows done and the rows in all.

    Raises:
        InputError: there are no rows, or one has a blank text or a label that the task does not have.
        MissingExtraError: scikit-learn is not installed.
        SmolclsError: the classifier could not answer.
    """
    check_installed()  # rather than after the last row
    items = tuple(row if isinstance(row, LabelledText) else LabelledText(*row) for row in rows)
    if not items:
        raise InputError("Expected labelled rows to evaluate on; found none.")
    names = classifier.task.names
    label_indices(names, items)
    texts = check_texts(row.text for row in items)
    _score(classifier, texts[0])  # the first call loads the model, and some find their calibration with it
    temperature = 1.0 if classifier.calibration is None else classifier.calibration.temperature
    scored, latencies = [], []
    for done, text in enumerate(texts, start=1):
        start = time.perf_counter()
        scored.append(_score(classifier, text))
        latencies.append((time.perf_counter() - start) * 1000.0)
        if progress is not None:
            progress(done, len(texts))
    return Evaluation(
        name=classifier.name if name is None else name,
        labels=names,
        rows=items,
        probabilities=_at(temperature, scored),
        uncalibrated=None if classifier.calibration is None else _at(1.0, scored),
        latencies_ms=tuple(latencies),
    )


def majority(labels: Sequence[str], rows: Sequence[LabelledText]) -> Evaluation:
    """The line to beat: each label as likely as it is frequent in the rows, so the most frequent is the answer."""
    counts = Counter(row.label for row in rows)
    shares = tuple(counts[label] / len(rows) for label in labels)
    return Evaluation("majority", tuple(labels), tuple(rows), (shares,) * len(rows), None, (0.0,) * len(rows))


def _score(classifier: Classifier, text: str) -> tuple[float, ...]:
    found = classifier.score_batch([text])
    if len(found) != 1 or len(found[0].log_probabilities) != len(classifier.task.names):
        raise BackendError(f"{classifier.name} was to score {len(classifier.task.names)} labels; it returned {found}.")
    return found[0].log_probabilities


def _at(temperature: float, scored: Iterable[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(apply_temperature(values, temperature)) for values in scored)
