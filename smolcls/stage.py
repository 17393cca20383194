"""One stage of a router: which classifier it asks, what it accepts, and how patient it is.

Plain values, checked; `runner.py` does the work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from smolcls.classifier import Classifier, check_fraction
from smolcls.errors import ConfigError
from smolcls.task import check_count

_LARGEST_WEIGHT = 100.0
_LONGEST_TIME = 1e9  # seconds that an option may say; every system's clock bears it


@dataclass(frozen=True)
class Stage:
    """One stage of a `ConfidenceRouter`.

    Args:
        classifier: a specification for `smolcls.load`, made on first use, or a `Classifier`. The router
            closes what it made and leaves alone what it was given.
        threshold: least confidence at which the stage's answer is taken; one number, or one a label
            (labels that are not named need 0). 0 takes every answer.
        accept: labels whose answers are taken here, to their least confidence; answers with other labels
            go on to the next stage. A list of labels uses `threshold` for each.
        timeout: seconds a text may take, retries included; None waits as long as it takes.
        retries: further tries after a `BackendError`.
        backoff: seconds before the first retry, doubled for each further one, a minute at most.
        failures: failures in a row that open the stage's circuit breaker.
        cooldown: seconds the breaker stays open before one call probes the stage again.
        pool: weights, by the stages' names, of this stage's probabilities and of those that earlier stages gave for
            the same text: its answer is then the pool of them (`smolcls.pool`). Where one of them could not answer,
            the stage's own stands. `ConfidenceRouter.fit` finds weights.
        options: keyword arguments for `smolcls.load`.
        name: the stage's name in traces; the specification by default.

    Raises:
        ConfigError: a value is out of its range.
    """

    classifier: str | Classifier
    threshold: float | Mapping[str, float] = 0.0
    accept: Mapping[str, float] | Collection[str] | None = None
    timeout: float | None = None
    retries: int = 0
    backoff: float = 0.05
    failures: int = 3
    cooldown: float = 30.0
    pool: Mapping[str, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.classifier, (str, Classifier)):
            raise ConfigError(f"A stage takes a specification or a Classifier; found {self.classifier!r}.")
        _check_fractions(self.threshold, "threshold")
        if isinstance(self.accept, Mapping):
            _check_fractions(self.accept, "accept")
        elif self.accept is not None and not _are_names(self.accept):
            raise ConfigError(f"accept takes labels with their thresholds, or a list of labels; found {self.accept!r}.")
        if self.timeout is not None:
            _check_seconds(self.timeout, "timeout", zero=False)
        _check_seconds(self.backoff, "backoff")
        _check_seconds(self.cooldown, "cooldown")
        check_count(self.retries, "A stage's retries", least=0)
        check_count(self.failures, "A stage's failures", least=1)
        if not isinstance(self.options, Mapping) or not _are_names(self.options):
            raise ConfigError(f"A stage's options are keyword arguments by name; found {self.options!r}.")
        if not self.name:
            named = self.classifier if isinstance(self.classifier, str) else self.classifier.name
            object.__setattr__(self, "name", named)
        if self.pool is not None:
            self._check_pool(self.pool)

    def _check_pool(self, pool: Mapping[str, float]) -> None:
        if not isinstance(pool, Mapping) or not _are_names(pool) or self.name not in pool:
            raise ConfigError(
                f"A stage's pool has weights by the names of stages, its own {self.name!r} among them; found {pool!r}."
            )
        if not any(pool.values()):
            raise ConfigError(f"A stage's pool needs a weight above 0; found {pool!r}.")
        for name, weight in pool.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not 0 <= weight <= _LARGEST_WEIGHT:
                raise ConfigError(f"A stage's pool[{name!r}] must be a number from 0 to 100; found {weight!r}.")

    def least_confidence(self, label: str) -> float | None:
        """The confidence at which an answer with this label is taken, or None where it never is."""
        if self.accept is not None and label not in self.accept:
            return None
        if isinstance(self.accept, Mapping):
            least: float = self.accept[label]
            return least
        return self.threshold.get(label, 0.0) if isinstance(self.threshold, Mapping) else self.threshold

    def with_threshold(self, threshold: float) -> Stage:
        """This stage with one threshold for every label that it accepts."""
        if isinstance(self.accept, Mapping):
            return replace(self, accept=dict.fromkeys(self.accept, threshold))
        return replace(self, threshold=threshold)

    def labels(self) -> set[str]:
        """Every label that the stage's options name."""
        named = set(self.accept) if self.accept is not None else set()
        return named | (set(self.threshold) if isinstance(self.threshold, Mapping) else set())


def _are_names(found: object) -> bool:
    if isinstance(found, (str, bytes)) or not isinstance(found, Collection):
        return False
    return all(isinstance(name, str) for name in found)


def _check_fractions(found: float | Mapping[str, float], what: str) -> None:
    if not isinstance(found, Mapping):
        check_fraction(found, f"A stage's {what}")
        return
    for label, value in found.items():
        check_fraction(value, f"A stage's {what}[{label!r}]")


def _check_seconds(value: float, what: str, *, zero: bool = True) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= _LONGEST_TIME or (value == 0 and not zero):
        least = "of at least 0" if zero else "above 0"
        raise ConfigError(f"A stage's {what} must be a number of seconds {least}, at most 1e9; found {value!r}.")
