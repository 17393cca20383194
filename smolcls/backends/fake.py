"""A classifier without a model, for the tests of programs that use smolcls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from smolcls.classifier import Classifier, Scores, check_fraction
from smolcls.errors import ConfigError, SmolclsError
from smolcls.task import Task

_LEAST = 1e-300  # a probability of 0 has no finite logarithm; beside this one, 1.0 stays 1.0

Answer = str | tuple[str, float] | SmolclsError


class FakeClassifier(Classifier):
    """Answers what it is told, and remembers what it was asked.

    Args:
        answers: a label for every text, the task's first by default; or a mapping of texts to answers; or
            a function of the text, which may raise or wait as well. An answer is a label, a pair of label
            and confidence, or a `SmolclsError`, which is raised. The specification `fake:workflow`
            answers `workflow` to everything.
        task: the task; None is the shipped three-type task.
        min_confidence: below this confidence the label is None.
        confidence: the confidence of answers that give none; the rest is shared by the other labels. It
            must be above theirs, for the confidence is that of the likeliest label.
        delay: seconds that each batch takes, for tests of time-outs.

    Raises:
        ConfigError: on construction or on a call, that an answer cannot be given.

    Attributes:
        asked: every text scored so far, in order.
    """

    name: ClassVar[str] = "fake"
    inherently_calibrated: ClassVar[bool] = True

    def __init__(
        self,
        answers: str | Mapping[str, Answer] | Callable[[str], Answer] | None = None,
        *,
        task: Task | str | Path | None = None,
        min_confidence: float = 0.0,
        confidence: float = 0.99,
        delay: float = 0.0,
    ) -> None:
        super().__init__(task=task, min_confidence=min_confidence)
        self._answers = self.task.names[0] if answers is None else answers
        self._confidence = check_fraction(confidence, "confidence")
        self._delay = delay
        self.asked: list[str] = []

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """The scores that make the wanted answers."""
        if self._delay > 0:
            time.sleep(self._delay)
        self.asked.extend(texts)
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> Scores:
        label, confidence = self._answer(text)
        names = self.task.names
        if label not in names:
            raise ConfigError(f"The fake classifier was told to answer {label!r}; the labels are {', '.join(names)}.")
        rest = (1.0 - confidence) / (len(names) - 1)
        if confidence <= rest:
            raise ConfigError(
                f"The fake classifier was told to answer {label!r} with confidence {confidence:g}; "
                f"with {len(names)} labels it must be above {1 / len(names):.3g}."
            )
        return Scores(tuple(math.log(max(confidence if name == label else rest, _LEAST)) for name in names))

    def _answer(self, text: str) -> tuple[str, float]:
        answer = self._looked_up(text)
        if isinstance(answer, SmolclsError):
            # The same object may be raised many times, and would drag the frames of all of them along.
            raise answer.with_traceback(None)
        if isinstance(answer, str):
            return answer, self._confidence
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ConfigError(
                f"A fake answer is a label, a pair of label and confidence, or a SmolclsError; found {answer!r}."
            )
        return answer[0], check_fraction(answer[1], "a fake answer's confidence")

    def _looked_up(self, text: str) -> Answer:
        if isinstance(self._answers, str):
            return self._answers
        if callable(self._answers):
            return self._answers(text)
        if text not in self._answers:
            raise ConfigError(f"The fake classifier has no answer for {text[:60]!r}.")
        return self._answers[text]
