"""What must hold: gates such as `accuracy>=0.95` or `recall.workflow>=0.9`, for a build to fail on."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from smolcls.errors import InputError
from smolcls.evaluation.run import Evaluation

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_FORM = re.compile(r"\s*([a-z0-9_]+)(?:\.(.+?))?\s*(>=|<=|>|<)\s*([^\s<>=]+)\s*", re.DOTALL)

_METRICS: Mapping[str, Callable[[Evaluation], float]] = {
    "accuracy": lambda found: found.metrics.accuracy,
    "accuracy_low": lambda found: found.metrics.accuracy_interval.low,
    "macro_f1": lambda found: found.metrics.macro_f1,
    "ece": lambda found: found.metrics.ece,
    "brier": lambda found: found.metrics.brier,
    "nll": lambda found: found.metrics.nll,
    "sure_error_share": lambda found: found.metrics.sure_error_share,
    "mean_ms": lambda found: found.latency.mean_ms,
    "p50_ms": lambda found: found.latency.p50_ms,
    "p95_ms": lambda found: found.latency.p95_ms,
}
_OF_LABELS = ("recall", "precision", "f1")


@dataclass(frozen=True, slots=True)
class Gate:
    """A metric, a comparison and a number.

    Attributes:
        metric: its name, such as `accuracy`, `ece`, `p95_ms` or `recall`.
        label: the label that it is asked of, for `recall`, `precision` and `f1`; else None.
        comparison: `>=`, `<=`, `>` or `<`.
        limit: what it is compared with.
    """

    metric: str
    label: str | None
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str, labels: Sequence[str]) -> Self:
        """The gate that a text such as `recall.workflow>=0.9` states.

        Raises:
            InputError: the text is not of that form, or names no metric or label that there is.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InputError(
                f"Expected a gate such as accuracy>=0.95 or recall.{labels[0]}>=0.9 (>=, <=, > or <); found {text!r}."
            )
        metric, label, comparison, number = found.groups()
        if metric not in (*_METRICS, *_OF_LABELS):
            raise InputError(
                f"The gate {text!r} asks for the metric {metric!r}; known are {', '.join(_METRICS)}, and of a label "
                f"{', '.join(_OF_LABELS)}."
            )
        if metric in _METRICS and label is not None:
            raise InputError(f"The gate {text!r} names the label {label!r}; {metric} is not a label's. Leave it out.")
        if metric in _OF_LABELS and label not in labels:
            raise InputError(
                f"The gate {text!r} must name one of the labels {', '.join(labels)}, as in {metric}.{labels[0]}>=0.9."
            )
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise InputError(f"The gate {text!r} must end with a number, such as 0.95; found {number!r}.")
        return cls(metric, label, comparison, limit)

    def value(self, evaluation: Evaluation) -> float:
        """What the metric is."""
        if self.label is None:
            return _METRICS[self.metric](evaluation)
        found: Any = getattr(evaluation.metrics.by_label[self.label], self.metric)
        return float(found)

    def failure(self, evaluation: Evaluation) -> str | None:
        """None where the gate holds, else what was required and what was found."""
        found = self.value(evaluation)
        if _OPERATORS[self.comparison](found, self.limit):
            return None
        return f"{evaluation.name}: required {self}; found {found:.4f}"

    def __str__(self) -> str:
        of = "" if self.label is None else f".{self.label}"
        return f"{self.metric}{of}{self.comparison}{self.limit:g}"
