"""Label probabilities from token texts: the walk for a server that names the likeliest tokens only.

Ollama answers with the 20 likeliest next tokens, as texts and without ids, and a request scores one
place. So the trie of the labels is discovered while it is walked: at each place the texts that some
label goes on with are the ways onward, their probabilities are normalised over each other, and a way
that several labels share is walked further. Where labels have one spelling each that is exactly what
`smolcls.scoring` computes from logits; here every spelling counts. Three things are approximate, all
bounded:

- A label that the tokens do not show gets the most it can have: the least probability shown, or its
  part of what is left to 1, whichever is smaller. That can only lower the probability of a label that is shown.
- A shared way taken with a probability under `NEGLIGIBLE` is divided evenly instead of being asked for.
- A label ends where the end of the turn comes. That token writes nothing, and others that write nothing
  (control tokens, parts of characters) look the same; it is one of them, so it gets the largest of them.

This module knows texts and probabilities, and neither prompts nor servers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smolcls.prompt import END_OF_TURN

NEGLIGIBLE = 1e-4
#: Least probability of a label: a server's rounding must not rule one out.
FLOOR = 1e-9


@dataclass(frozen=True, slots=True)
class Token:
    """One of the likeliest next tokens; the token that ends a turn has no text."""

    text: str
    probability: float


#: Gives the likeliest tokens after a beginning of an answer; the flag says whether a label may end there.
Ask = Callable[[str, bool], Sequence[Token]]


@dataclass(frozen=True, slots=True)
class _Spelling:
    label: int
    text: str


@dataclass(frozen=True, slots=True)
class _Way:
    """A text that the answer may begin with, its probability at the last fork, and who goes on with it."""

    path: str
    probability: float
    spellings: tuple[_Spelling, ...]

    @property
    def labels(self) -> list[int]:
        return sorted({spelling.label for spelling in self.spellings})


@dataclass(frozen=True, slots=True)
class _Fork:
    """The ways onward, and the bound on each label that they do not show."""

    ways: tuple[_Way, ...]
    missing: dict[int, float]

    @property
    def found(self) -> float:
        return math.fsum(way.probability for way in self.ways)


def score(names: Sequence[str], ask: Ask) -> tuple[tuple[float, ...], float]:
    """Label log-probabilities, normalised over the labels, and the mass found at the first place.

    Args:
        names: the labels as the model writes them.
        ask: called once for each place where labels may part, the empty beginning first.
    """
    # The trained spelling has no blank before it, for the frame ends in a newline. A model that was not
    # trained for the task often writes one; it is the same answer, so its probability is added.
    spellings = tuple(_Spelling(label, lead + name) for label, name in enumerate(names) for lead in ("", " "))
    first = _fork("", spellings, ask("", False))
    shares = _shares(first, 1.0, ask)
    return tuple(math.log(min(1.0, max(FLOOR, shares[label]))) for label in range(len(names))), min(1.0, first.found)


def _shares(fork: _Fork, reach: float, ask: Ask) -> dict[int, float]:
    """The probability of each label at a fork, given that the answer got there; they sum to 1."""
    totals = dict(fork.missing)
    whole = fork.found + math.fsum(fork.missing.values())
    for way in fork.ways:
        for label, share in _beyond(way, reach * way.probability / whole, ask).items():
            totals[label] = totals.get(label, 0.0) + way.probability * share
    return {label: total / whole for label, total in totals.items()}


def _beyond(way: _Way, reach: float, ask: Ask) -> dict[int, float]:
    labels = way.labels
    if len(labels) == 1 or reach < NEGLIGIBLE:
        return dict.fromkeys(labels, 1.0 / len(labels))
    ends = any(spelling.text == way.path for spelling in way.spellings)
    return _shares(_fork(way.path, way.spellings, ask(way.path, ends)), reach, ask)


def _fork(path: str, spellings: tuple[_Spelling, ...], tokens: Sequence[Token]) -> _Fork:
    shown: dict[str, float] = {}
    for token in tokens:
        if token.probability > 0.0:
            # Parts of characters are cut off a text, so that different tokens may have the same one.
            shown[token.text] = shown.get(token.text, 0.0) + token.probability
    left = max(0.0, 1.0 - math.fsum(shown.values()))
    if "" in shown:
        shown[""] = max(token.probability for token in tokens if not token.text)
    if END_OF_TURN in shown:  # spelt out by Ollama before 0.30
        shown[""] = shown.pop(END_OF_TURN)
    ways = []
    for text, probability in shown.items():
        onward = tuple(item for item in spellings if _goes_on(item, path, text))
        if onward:
            ways.append(_Way(path + text, probability, onward))
    seen = {item.label for way in ways for item in way.spellings}
    missing = sorted({item.label for item in spellings} - seen)
    least = min((token.probability for token in tokens if token.probability > 0.0), default=1.0)
    bound = max(FLOOR, min(least, left / max(1, len(missing))))
    return _Fork(tuple(ways), dict.fromkeys(missing, bound))


def _goes_on(spelling: _Spelling, path: str, text: str) -> bool:
    if text:
        return spelling.text.startswith(path + text)
    return spelling.text == path
