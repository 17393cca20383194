"""A backend of one's own: the label whose name and description share most words with the text."""

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from smolcls import Classifier, Scores


class OverlapClassifier(Classifier):
    """Counts shared words; `score_batch` is all that a backend has to implement."""

    name: ClassVar[str] = "overlap"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # task, calibration and min_confidence are the base class's business
        self._known = [_words(f"{label.name} {label.description}") for label in self.task.labels]

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        """Log-probabilities in the order of the task's labels, normalised over them."""
        return [self._score(_words(text)) for text in texts]

    def _score(self, words: set[str]) -> Scores:
        weights = [1 + 4 * len(words & known) for known in self._known]
        return Scores(tuple(math.log(weight / sum(weights)) for weight in weights))


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}
