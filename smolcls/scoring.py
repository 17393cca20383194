"""Labels as token sequences, and the walk over their trie that scores them exactly.

A label's probability is the product of the model's choices where labels part: at each branching of
the trie the probabilities of the possible next tokens are normalised over these tokens. That is the
distribution of a model held to the labels token by token, it sums to 1, and where all first tokens
differ it takes one forward pass. A label that is the beginning of another one (`card`, `card_lost`)
is told apart by the end-of-turn token.

This module knows tokens and logits, and neither models nor libraries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smolcls.calibration import log_softmax
from smolcls.errors import ModelError


@dataclass(frozen=True, slots=True)
class Branch:
    """A place where labels part.

    Attributes:
        path: tokens to append to the prompt to get there; empty at the root where first tokens differ.
        tokens: the possible next tokens.
        members: for each of `tokens`, the indices of the labels that go on with it.
    """

    path: tuple[int, ...]
    tokens: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]


class LabelTrie:
    """The branchings of a set of labels, root first.

    Args:
        sequences: the tokens of each label, in the task's order.
        end: the token that ends a turn.

    Raises:
        ModelError: a label has no tokens, two labels have the same ones, or one holds the end of the turn.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], end: int) -> None:
        tuples = [tuple(sequence) for sequence in sequences]
        if not all(tuples):
            raise ModelError("The model's tokenizer gives no tokens for a label; rename the label.")
        if any(end in sequence for sequence in tuples):
            raise ModelError("The model's tokenizer finds the end of the turn in a label; rename the label.")
        if len(set(tuples)) < len(tuples):
            raise ModelError("Two labels have the same tokens under the model's tokenizer; rename one of them.")
        self.size = len(tuples)
        self.branches = tuple(_branches(tuples, end))

    def combine(self, logits: Sequence[Sequence[float]]) -> tuple[float, ...]:
        """Label log-probabilities from the logits of each branch's tokens.

        Args:
            logits: for each of `branches`, the logits (or log-probabilities) of its `tokens`, in order.
        """
        totals = [0.0] * self.size
        for branch, row in zip(self.branches, logits, strict=True):
            for members, value in zip(branch.members, log_softmax(row), strict=True):
                for label in members:
                    totals[label] += value
        return tuple(min(0.0, total) for total in totals)


def label_mass(logits: Sequence[float], log_normaliser: float) -> float:
    """The probability of the tokens with these logits, given the vocabulary's log-sum-exp."""
    return min(1.0, math.fsum(math.exp(value - log_normaliser) for value in logits))


def _branches(sequences: list[tuple[int, ...]], end: int) -> list[Branch]:
    found: list[Branch] = []
    level: list[tuple[int, list[int]]] = [(0, list(range(len(sequences))))]
    while level:
        following: list[tuple[int, list[int]]] = []
        for depth, members in level:
            groups: dict[int, list[int]] = {}
            for label in members:
                sequence = sequences[label]
                groups.setdefault(sequence[depth] if depth < len(sequence) else end, []).append(label)
            if len(groups) > 1:
                path = max((sequences[label] for label in members), key=len)[:depth]
                found.append(Branch(path, tuple(groups), tuple(map(tuple, groups.values()))))
            following += [(depth + 1, group) for group in groups.values() if len(group) > 1]
        level = following
    return found
