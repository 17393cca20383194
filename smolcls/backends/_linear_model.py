"""The linear model: a text's n-grams, their weights, and the labels' logits. Needs no package at all.

Features are those of scikit-learn's TfidfVectorizer (sublinear term frequency, smoothed idf, unit length, one
vector for words and one for characters), so that it trains what is computed here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import mul

from smolcls.calibration import Calibration

_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORDS = 3  # the longest n-gram of words
_CHARACTERS = (2, 5)  # the shortest and longest of characters
#: Stands before the first word, for what a text begins with says most about it.
_START = "\x02"


def word_grams(text: str) -> list[str]:
    """N-grams of one to three words or signs, the text's beginning counting as a word."""
    words = [_START, *_TOKEN.findall(text.lower())]
    return [" ".join(words[at : at + size]) for size in range(1, _WORDS + 1) for at in range(len(words) - size + 1)]


def character_grams(text: str) -> list[str]:
    """N-grams of two to five characters inside words, with a blank at each end (scikit-learn's `char_wb`)."""
    shortest, longest = _CHARACTERS
    found = []
    for word in text.lower().split():
        padded = f" {word} "
        length = len(padded)
        for size in range(shortest, longest + 1):
            if size >= length:
                found.append(padded)  # a word that is no longer counts once
                break
            found += [padded[at : at + size] for at in range(length - size + 1)]
    return found


#: The two vectors of a text, each of unit length, by the name of their vocabulary in the file.
BLOCKS: Mapping[str, Callable[[str], list[str]]] = {"words": word_grams, "characters": character_grams}


@dataclass(frozen=True)
class LinearModel:
    """Weights of n-grams for labels.

    Attributes:
        labels: the labels' names, in the order of the columns.
        grams: for each of `BLOCKS` its n-grams; their numbers run on from one block to the next.
        documents: number of rows it was trained on.
        frequencies: for each n-gram the number of those rows that hold it.
        weights: whole numbers, one a label for each n-gram.
        scales: what a weight of each label is multiplied with.
        intercepts: each label's logit of a text without a known n-gram.
        calibration: fitted on this model, or None.
    """

    labels: tuple[str, ...]
    grams: Mapping[str, Sequence[str]]
    documents: int
    frequencies: Sequence[int]
    weights: Sequence[int]
    scales: Sequence[float]
    intercepts: Sequence[float]
    calibration: Calibration | None = None

    def logits(self, text: str) -> list[float]:
        """The labels' logits for a text."""
        sums = [0.0] * len(self.labels)
        for block, grams in BLOCKS.items():
            numbers, values = self._vector(block, grams(text))
            for label, column in enumerate(self._columns):
                sums[label] += sum(map(mul, values, map(column.__getitem__, numbers)))
        parts = zip(self.intercepts, self.scales, sums, strict=True)
        return [intercept + scale * value for intercept, scale, value in parts]

    def _vector(self, block: str, grams: Iterable[str]) -> tuple[list[int], list[float]]:
        """Numbers of the known n-grams of a text, and their values, which have the length 1 together."""
        idf = self._idf
        counts = Counter(number for number in map(self._numbers[block].get, grams) if number is not None)
        values = [
            idf[number] if count == 1 else (1.0 + math.log(count)) * idf[number] for number, count in counts.items()
        ]
        length = math.hypot(*values)
        return list(counts), [value / length for value in values]

    @cached_property
    def _columns(self) -> list[Sequence[int]]:
        """Each label's weights: whole columns are summed without a loop in Python."""
        return [self.weights[label :: len(self.labels)] for label in range(len(self.labels))]

    @cached_property
    def _numbers(self) -> dict[str, dict[str, int]]:
        found, first = {}, 0
        for block in BLOCKS:
            grams = self.grams[block]
            found[block] = dict(zip(grams, range(first, first + len(grams)), strict=True))
            first += len(grams)
        return found

    @cached_property
    def _idf(self) -> list[float]:
        """ln((1 + documents) / (1 + documents with the n-gram)) + 1, scikit-learn's smoothed idf."""
        value = {count: math.log((1 + self.documents) / (1 + count)) + 1.0 for count in set(self.frequencies)}
        return [value[count] for count in self.frequencies]
