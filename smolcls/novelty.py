"""How far a text lies from the training rows: a signal for texts that are out of the task's scope.

It is measured on spellings alone, beside whatever a classifier says, and works with any of them. A high value says
that nothing like this was trained on, not that the answer is wrong. `Prediction.label_mass` is the other such signal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from smolcls.classifier import check_texts
from smolcls.errors import BackendError, InputError, require

_PURPOSE = "Measuring the distance to training rows"
_AT_ONCE = 256  # texts compared with all rows together; bounds the memory
_LENGTHS = (2, 5)  # of the n-grams, in characters


class Novelty:
    """1 - the largest cosine similarity to a training row, of TF-IDF vectors of character n-grams inside words.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        text = require("sklearn.feature_extraction.text", extra="evaluate", purpose=_PURPOSE)
        # Vectors of unit length, so that their product is the cosine.
        self._vectorizer = text.TfidfVectorizer(analyzer="char_wb", ngram_range=_LENGTHS, sublinear_tf=True)
        self._rows: Any = None

    def fit(self, texts: Iterable[str]) -> Self:
        """Remember the training rows.

        Raises:
            InputError: there are none, or one is no text or blank.
        """
        items = check_texts(texts)
        if not items:
            raise InputError("Expected the texts of training rows; found none.")
        self._rows = self._vectorizer.fit_transform(items).T.tocsr()
        return self

    def score(self, texts: Iterable[str]) -> list[float]:
        """For each text its distance to the nearest training row: 0 for one of them, 1 where no n-gram is shared.

        Raises:
            InputError: one is no text or blank.
            BackendError: `fit` was not called.
        """
        if self._rows is None:
            raise BackendError("Expected training rows to compare with; found none. Call fit(texts) first.")
        items = check_texts(texts)
        found: list[float] = []
        for begin in range(0, len(items), _AT_ONCE):
            cosines = self._vectorizer.transform(items[begin : begin + _AT_ONCE]) @ self._rows
            nearest = cosines.max(axis=1).toarray().ravel().tolist()
            found += [min(1.0, max(0.0, 1.0 - value)) for value in nearest]
        return found
