"""How good label probabilities are: accuracy, by label, and how far confidences can be trusted.

It sees numbers alone: probabilities, and the index of each true label. A confidence is the probability of the
likeliest label, which is the answer; of equal ones the first. scikit-learn and SciPy do the mathematics they offer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from smolcls.errors import InputError, require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BINS = 15
SURE = 0.99
_EXTRA = "evaluate"
_PURPOSE = "Measuring a classifier"


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that covers the true share in 95 of 100 samples."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LabelMetrics:
    """One label: how many rows have it, and how well it was found. Where nothing can be divided, 0."""

    rows: int
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows of like confidence: their mean confidence, and the share of them that is right."""

    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """What is answered when only rows of at least this confidence are, and how much of it is right."""

    confidence: float
    coverage: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of one classifier on labelled rows.

    Attributes:
        rows: how many.
        accuracy: share of right answers, with its Wilson interval at 95 %.
        macro_f1: mean F1 over the labels that a row has or an answer names.
        by_label: each label's own metrics, in the order of the probabilities.
        confusion: counts, a line for each true label, a column for each answer.
        ece: expected calibration error of the answer in 15 bins of equal mass.
        brier: mean squared distance to the truth, summed over the labels: 0 to 2 (Brier 1950).
        nll: mean negative log-likelihood of the true label, in nats.
        sure_errors: wrong answers with a confidence above 0.99.
        sure_error_share: their share of the wrong answers; 0 where none is wrong.
    """

    rows: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    by_label: Mapping[str, LabelMetrics]
    confusion: tuple[tuple[int, ...], ...]
    ece: float
    brier: float
    nll: float
    sure_errors: int
    sure_error_share: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {**asdict(self), "confusion": [list(line) for line in self.confusion]}


def measure(names: Sequence[str], probabilities: Sequence[Sequence[float]], truth: Sequence[int]) -> Metrics:
    """Metrics of scored rows.

    Args:
        names: the labels, in the order of the probabilities.
        probabilities: shape (rows, labels), each row summing to 1; at least one row.
        truth: index of the true label of each row.

    Raises:
        InputError: there are no rows, or not one true label a row.
        MissingExtraError: scikit-learn is not installed.
    """
    metrics = require("sklearn.metrics", extra=_EXTRA, purpose=_PURPOSE)
    table, true, right, confidences = _arrays(probabilities, truth)
    answers, every = table.argmax(axis=1), range(len(names))
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        true, answers, labels=every, zero_division=0.0
    )
    seen = sorted({*true.tolist(), *answers.tolist()})
    hits, wrong = int(right.sum()), int((~right).sum())
    distance = table.copy()
    distance[range(len(true)), true] -= 1.0
    sure = int((~right & (confidences > SURE)).sum())
    return Metrics(
        rows=len(true),
        accuracy=hits / len(true),
        accuracy_interval=wilson(hits, len(true)),
        macro_f1=float(f1[seen].mean()),
        by_label={
            name: LabelMetrics(int(support[i]), float(recall[i]), float(precision[i]), float(f1[i]))
            for i, name in enumerate(names)
        },
        confusion=tuple(map(tuple, metrics.confusion_matrix(true, answers, labels=every).tolist())),
        ece=_ece(reliability(probabilities, truth)),
        brier=float((distance**2).sum(axis=1).mean()),
        nll=float(metrics.log_loss(true, table, labels=every)),
        sure_errors=sure,
        sure_error_share=sure / wrong if wrong > 0 else 0.0,
    )


def check_installed() -> None:
    """Raise `MissingExtraError` where scikit-learn is not installed."""
    require("sklearn.metrics", extra=_EXTRA, purpose=_PURPOSE)


def wilson(hits: int, rows: int) -> Interval:
    """The Wilson score interval of a share at 95 % (Wilson 1927)."""
    stats = require("scipy.stats", extra=_EXTRA, purpose=_PURPOSE)
    found = stats.binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    return Interval(float(found.low), float(found.high))


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
        gained: rows that only the new classifier has right.
        lost: rows that only the old one has right.
    """
    if gained + lost == 0:
        return 1.0
    stats = require("scipy.stats", extra=_EXTRA, purpose=_PURPOSE)
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def reliability(probabilities: Sequence[Sequence[float]], truth: Sequence[int], bins: int = BINS) -> list[Bin]:
    """Rows in bins of equal mass by confidence, from the least confident on.

    The bins' limits are quantiles, and rows of the same confidence share a bin, so that neither their order nor
    chance parts them: there are fewer bins where a backend has few confidences (Nixon et al. 2019, section 3).
    """
    numpy = require("numpy", extra=_EXTRA, purpose=_PURPOSE)
    _, _, right, confidences = _arrays(probabilities, truth)
    limits = numpy.quantile(confidences, numpy.linspace(0.0, 1.0, bins + 1)[1:-1], method="inverted_cdf")
    places = numpy.searchsorted(numpy.unique(limits), confidences)
    found = []
    for place in range(bins):
        inside = places == place
        if inside.any():
            found.append(Bin(int(inside.sum()), float(confidences[inside].mean()), float(right[inside].mean())))
    return found


def coverage_curve(probabilities: Sequence[Sequence[float]], truth: Sequence[int]) -> list[CoveragePoint]:
    """Accuracy against coverage, a point for each confidence that comes, from the highest on."""
    numpy = require("numpy", extra=_EXTRA, purpose=_PURPOSE)
    _, _, right, confidences = _arrays(probabilities, truth)
    order = numpy.argsort(-confidences, kind="stable")
    ranked, hits = confidences[order], right[order].cumsum()
    last = [*(ranked[1:] < ranked[:-1]).nonzero()[0].tolist(), len(ranked) - 1]
    return [CoveragePoint(float(ranked[end]), (end + 1) / len(ranked), float(hits[end]) / (end + 1)) for end in last]


def _ece(bins: Sequence[Bin]) -> float:
    """Mean gap between confidence and accuracy, weighted by rows (Guo et al. 2017, section 2)."""
    rows = sum(item.rows for item in bins)
    return sum(item.rows * abs(item.confidence - item.accuracy) for item in bins) / rows


def _arrays(
    probabilities: Sequence[Sequence[float]], truth: Sequence[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """The probabilities, the truth, whether the likeliest label is true, and its probability."""
    if len(probabilities) != len(truth) or not len(truth):
        raise InputError(
            f"Expected one true label a row, and one row at least; found {len(probabilities)} rows and {len(truth)} "
            "labels."
        )
    numpy = require("numpy", extra=_EXTRA, purpose=_PURPOSE)
    table, true = numpy.asarray(probabilities, dtype=float), numpy.asarray(truth, dtype=int)
    # Equal confidences of different rows differ in their last digits, which are the arithmetic's and not the model's.
    return table, true, table.argmax(axis=1) == true, table.max(axis=1).round(9)
