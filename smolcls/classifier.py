"""The interface of every backend: texts in, predictions out.

A backend implements one method, `score_batch`, and leaves checking, calibration, abstention, timing
and scikit-learn's method names to this module. It knows nothing of models, prompts or routers.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from smolcls.calibration import Calibration, apply_temperature, misfit
from smolcls.conformal import Conformal, least_probability
from smolcls.errors import BackendError, ConfigError, InputError
from smolcls.prediction import Prediction
from smolcls.prompt import clean
from smolcls.task import Task, as_task

log = logging.getLogger("smolcls")

_AGAIN = "Fit it again with: smolcls calibrate"


@dataclass(frozen=True, slots=True)
class Scores:
    """What a backend found out about one text, before calibration.

    Attributes:
        log_probabilities: natural logarithms, one a label in the task's order, normalised over the labels.
        truncated: whether the text was shortened.
        label_mass: the model's probability of the labels' tokens before normalisation, if known.
        rule: name of the rule that decided, for rules.
    """

    log_probabilities: tuple[float, ...]
    truncated: bool = False
    label_mass: float | None = None
    rule: str | None = None


class Classifier(ABC):
    """Base class of every backend and of the router.

    Args:
        task: the task, its name or file; None is the shipped three-type task.
        calibration: a fitted temperature, or the path of its file. It is an error where it belongs to another
            task, backend or model; one that is merely found beside a model is then left aside, with a warning.
        min_confidence: below this confidence the label is None (abstention); 0 never abstains.

    Subclasses set `name` (their registry name) and implement `score_batch`; one with a model file implements
    `model_fingerprint` and `locate` and calls `_settle_calibration` as well. One instance may be called from several
    threads; a subclass whose library cannot bear that holds a lock.
    """

    name: ClassVar[str] = "classifier"
    #: Whether this backend's probabilities are measured frequencies without a fitted temperature.
    inherently_calibrated: ClassVar[bool] = False
    #: Whether the model's own file holds a calibration that was fitted in training.
    holds_calibration: ClassVar[bool] = False
    #: Where the calibration of a model of the user's own is looked for, and kept; None where there is no such place.
    calibration_path: Path | None = None
    _closed = False

    def __init__(
        self,
        *,
        task: Task | str | Path | None = None,
        calibration: Calibration | str | Path | None = None,
        min_confidence: float = 0.0,
    ) -> None:
        self.task = as_task(task)
        self.min_confidence = check_fraction(min_confidence, "min_confidence")
        self.calibration = self._given(calibration)

    @classmethod
    def from_spec(cls, argument: str | None, **options: Any) -> Classifier:
        """Make the classifier that the specification `name:argument` stands for.

        Args:
            argument: what follows the colon, or None where there is none.
            options: keyword arguments of the constructor.
        """
        return cls(**options) if argument is None else cls(argument, **options)  # type: ignore[call-arg]

    @classmethod
    def locate(cls, argument: str | None, **options: Any) -> Path | None:
        """The file or folder of the model that `from_spec` would load, without loading or building it, or a network.

        None where there is none to look at, as where the model is a server's; errors are those of the constructor.
        """
        return None

    @classmethod
    def why_unavailable(cls) -> str | None:
        """None where the backend can be used, else the reason and the command that mends it."""
        return None

    @abstractmethod
    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Score checked, non-empty texts, in order. Raises only `SmolclsError`s."""

    def classify(self, text: str) -> Prediction:
        """Classify one text: `classify_batch([text])[0]`."""
        return self.classify_batch([text])[0]

    def classify_batch(self, texts: Iterable[str]) -> list[Prediction]:
        """Classify texts, in order; an empty list gives an empty list.

        Raises:
            InputError: an item is not a string, or is empty or blank; none is classified then.
            SmolclsError: the backend could not answer; the message says why and what to do.
        """
        if self._closed:
            raise BackendError("This classifier was closed; make a new one.")
        items = check_texts(texts)
        if not items:
            return []
        start = time.perf_counter()
        scores = self.score_batch(items)
        if len(scores) != len(items):
            raise BackendError(f"{self.name} was to score {len(items)} texts; it returned {len(scores)} scores.")
        latency_ms = (time.perf_counter() - start) * 1000.0 / len(items)
        return [self._predict(score, latency_ms) for score in scores]

    @property
    def classes_(self) -> list[str]:
        """The labels' names in the order of `predict_proba`'s columns (scikit-learn's name)."""
        return list(self.task.names)

    def predict(self, texts: Iterable[str]) -> list[str | None]:
        """The label of each text (scikit-learn's name)."""
        return [prediction.label for prediction in self.classify_batch(texts)]

    def predict_proba(self, texts: Iterable[str]) -> list[list[float]]:
        """The probabilities, shape (texts, labels), columns as in `classes_` (scikit-learn's name)."""
        return [list(prediction.probabilities.values()) for prediction in self.classify_batch(texts)]

    def model_fingerprint(self) -> str:
        """What tells this model from others: its file's fingerprint, or its name on a server; "" where unknown."""
        return ""

    def fit_conformal(self, texts: Iterable[str], labels: Sequence[str], *, coverage: float) -> Conformal:
        """Label sets of a stated coverage, fitted on held-out texts with their labels; see `smolcls.conformal`.

        Each text is asked alone, as `classify` does: batches move the probabilities of quantised models.

        Raises:
            InputError: a label that the task does not have, not one a text, or too few rows for the coverage.
            ConfigError: the coverage is not above 0 and below 1.
        """
        items = check_texts(texts)
        if len(items) != len(labels):
            raise InputError(f"Expected one label a text; found {len(items)} texts and {len(labels)} labels.")
        check_labels(self.task.names, labels)
        least_probability([1.0] * len(items), coverage)  # too few rows are said before the work
        true = [self.classify(text).probabilities[label] for text, label in zip(items, labels, strict=True)]
        return Conformal(
            coverage, least_probability(true, coverage), self.task.names, self.task.fingerprint,
            self.model_fingerprint(), self.name, self._temperature, len(true),
        )  # fmt: skip

    def predict_set(self, texts: Iterable[str], conformal: Conformal) -> list[tuple[str, ...]]:
        """For each text the labels of its set, the likeliest first.

        Raises:
            ConfigError: the sets were fitted for another task, backend, model or temperature.
        """
        reason = misfit(conformal, task=self.task.fingerprint, backend=self.name, model=self.model_fingerprint)
        if reason is None and conformal.temperature != self._temperature:
            reason = f"another temperature ({conformal.temperature:g}; this classifier's is {self._temperature:g})"
        if reason is not None:
            raise ConfigError(f"The label sets were fitted for {reason}. Fit them again with fit_conformal.")
        return [conformal.predict_set(prediction) for prediction in self.classify_batch(texts)]

    def close(self) -> None:
        """Free what the backend holds. Calling it twice does no harm; classifying afterwards is an error."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _temperature(self) -> float:
        return 1.0 if self.calibration is None else self.calibration.temperature

    def _predict(self, scores: Scores, latency_ms: float) -> Prediction:
        names = self.task.names
        values = scores.log_probabilities
        if len(values) != len(names) or not all(value <= 1e-6 for value in values) or max(values) == -math.inf:
            raise BackendError(
                f"{self.name} was to score the labels {', '.join(names)} with log-probabilities; it returned {values}."
            )
        probabilities = dict(zip(names, apply_temperature(values, self._temperature), strict=True))
        label, confidence = max(probabilities.items(), key=lambda item: item[1])
        return Prediction(
            label=label if confidence >= self.min_confidence else None,
            confidence=confidence,
            probabilities=probabilities,
            backend=self.name,
            calibrated=self.calibration is not None or self.inherently_calibrated,
            truncated=scores.truncated,
            latency_ms=latency_ms,
            label_mass=scores.label_mass,
            rule=scores.rule,
        )

    def _given(self, calibration: Calibration | str | Path | None) -> Calibration | None:
        """A calibration that the user named, checked against all but the model."""
        if calibration is None:
            return None
        fitted = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        # The model is not known yet; str() is "".
        reason = misfit(fitted, task=self.task.fingerprint, backend=self.name, model=str)
        if reason is not None:
            raise ConfigError(f"The calibration was fitted for {reason}. {_AGAIN}")
        return fitted

    def _settle_calibration(self, beside: Path | None) -> None:
        """Check the calibration that was given against the model too, else take the one beside the model if it fits.

        Args:
            beside: the file to look for; None where there is no place for one.
        """
        given = self.calibration
        fitted = Calibration.load(beside) if given is None and beside is not None and beside.is_file() else given
        if fitted is None:
            return
        reason = misfit(fitted, task=self.task.fingerprint, backend=self.name, model=self.model_fingerprint)
        if reason is None:
            self.calibration = fitted
        elif given is not None:
            raise ConfigError(f"The calibration was fitted for {reason}. {_AGAIN}")
        else:
            log.warning("%s was fitted for %s and is not applied. %s", beside, reason, _AGAIN)


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list, each checked to be a non-blank string.

    Raises:
        InputError: naming the first item that is not.
    """
    if isinstance(texts, (str, bytes)):
        raise InputError("Expected a list of texts; found a single one. For one text call classify().")
    if not isinstance(texts, Iterable):
        raise InputError(f"Expected a list of texts; found {type(texts).__name__}.")
    items = list(texts)
    for position, text in enumerate(items):
        try:
            clean(text)
        except InputError as error:
            place = f"Text {position + 1} of {len(items)}: " if len(items) > 1 else ""
            raise InputError(f"{place}{error}") from None
    return items


def check_fraction(value: float, what: str) -> float:
    """`value` as a float between 0 and 1, or `ConfigError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise ConfigError(f"{what} must be a number between 0 and 1; found {value!r}.")
    return float(value)


def check_labels(names: Sequence[str], labels: Iterable[str]) -> None:
    """Check the labels of rows, in order.

    Raises:
        InputError: one is not among `names`.
    """
    for position, label in enumerate(labels, start=1):
        if label not in names:
            raise InputError(f"Row {position}: expected one of the labels {', '.join(names)}; found {label!r}.")
