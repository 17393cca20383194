"""Near-copies of texts, found exactly: pairs whose character 4-grams overlap by a threshold.

Overlap is the Jaccard index of the sets of 4-grams. Comparing each text with each is avoided by prefix
filtering (Bayardo, Ma and Srikant 2007, "Scaling Up All Pairs Similarity Search"): of two sets that overlap
by the share t, both hold a common gram among the rarest |set| - ⌈t·|set|⌉ + 1 of each. Nothing is hashed
and no pair is missed, as MinHash would miss some.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

GRAM = 4
#: Changing one word of k letters in a text of n changes k + 3 of its n - 3 grams, so that 0.6 is reached where
#: n ≥ 4k + 15: a five-letter word in 35 letters, which is half a sentence. Below that length two texts that
#: differ in a word are two texts (`run the tests`, `ran the tests?`); above it they are a template, filled twice.
THRESHOLD = 0.6
#: Sets of fewer grams (texts below eight characters) are copies only where they are equal: in them one letter
#: is half of the grams.
MIN_GRAMS = 5

_SENTENCE_END = re.compile(r"(?<=\w)[.,;:!?…]+(?=\s|$)")
_NO_WORD = re.compile(r"[^\w/]+")


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """Two texts by their positions, `first` < `second`, and their overlap, 0 to 1."""

    first: int
    second: int
    overlap: float


def normalise(text: str) -> str:
    """The text without what does not make it another one: case, runs of blanks, punctuation after words.

    Signs that stand alone or lead a word stay: `/help` is not `help`.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _SENTENCE_END.sub("", plain)


def grams(text: str) -> frozenset[str]:
    """The 4-grams of a text without case and signs other than the slash; a short text is one gram."""
    plain = normalise(text)
    words = _NO_WORD.sub(" ", plain).strip() or plain
    return frozenset(words[start : start + GRAM] for start in range(max(1, len(words) - GRAM + 1)))


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard index of two sets."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)


class Joined:
    """Groups, by number, that grow together; a set of them goes by its lowest number."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, group: int) -> int:
        """The number that stands for all that were joined with this one."""
        parent = self._parent
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    def join(self, one: int, other: int) -> bool:
        """Make two sets one; whether they were two."""
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first
        return first != second


def links(texts: Sequence[str], groups: Sequence[int], joined: Joined, threshold: float = THRESHOLD) -> Iterator[Pair]:
    """Near-copies in groups that were not joined yet; each one found joins its two.

    So there are fewer links than groups, however many copies a template makes; and where a set of joined groups
    lies on two sides of anything, one of its links does.

    Args:
        groups: the group of each text, a number below the count that `joined` was made for.
    """
    seen: dict[str, int] = {}
    sets: dict[int, frozenset[str]] = {}
    for position, text in enumerate(texts):
        found = grams(text)
        if len(found) >= MIN_GRAMS:
            sets[position] = found
            continue
        first = seen.setdefault(normalise(text), position)
        if joined.join(groups[first], groups[position]):
            yield Pair(first, position, 1.0)
    frequency = Counter(gram for found in sets.values() for gram in found)
    postings: dict[str, list[int]] = defaultdict(list)
    # Shortest first: then no later set is too short for an earlier one, and one bound on the size is enough.
    for position in sorted(sets, key=lambda item: len(sets[item])):
        found, group = sets[position], groups[position]
        rarest = sorted(found, key=lambda gram: (frequency[gram], gram))[: _prefix(len(found), threshold)]
        least = threshold * len(found)
        for other in sorted({other for gram in rarest for other in postings[gram]}):
            if len(sets[other]) < least or joined.root(groups[other]) == joined.root(group):
                continue
            share = overlap(found, sets[other])
            if share >= threshold:
                joined.join(group, groups[other])
                yield Pair(min(position, other), max(position, other), share)
        for gram in rarest:
            postings[gram].append(position)


class NearIndex:
    """Texts that grow one by one, each to be asked for before it is added.

    Args:
        texts: those that are there at the beginning.
        threshold: the least overlap of a near-copy.
    """

    def __init__(self, texts: Iterable[str] = (), threshold: float = THRESHOLD) -> None:
        self._threshold = threshold
        self._texts: list[str] = []
        self._sets: list[frozenset[str]] = []
        self._postings: dict[str, list[int]] = defaultdict(list)
        self._short: dict[str, int] = {}
        for text in texts:
            self.add(text)

    def find(self, text: str) -> str | None:
        """A text that is there and that this one is a near-copy of, or None."""
        found = grams(text)
        if len(found) < MIN_GRAMS:
            position = self._short.get(normalise(text))
            return None if position is None else self._texts[position]
        candidates = {other for gram in self._rarest(found) for other in self._postings.get(gram, ())}
        near = (other for other in candidates if overlap(found, self._sets[other]) >= self._threshold)
        position = next(near, None)
        return None if position is None else self._texts[position]

    def add(self, text: str) -> None:
        """Add a text."""
        found = grams(text)
        position = len(self._texts)
        self._texts.append(text)
        self._sets.append(found)
        if len(found) < MIN_GRAMS:
            self._short.setdefault(normalise(text), position)
            return
        for gram in self._rarest(found):
            self._postings[gram].append(position)

    def _rarest(self, found: frozenset[str]) -> list[str]:
        # Any order that all sets share will do. What is rare is not known yet, but grams with a blank in them
        # (the ends of common words) are the frequent ones.
        return sorted(found, key=lambda gram: (" " in gram, gram))[: _prefix(len(found), self._threshold)]


def _prefix(size: int, threshold: float) -> int:
    """How many of a set's first grams two sets must share one of; a little is taken off against rounding."""
    return size - math.ceil(threshold * size - 1e-9) + 1
