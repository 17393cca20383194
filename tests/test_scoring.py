"""The label trie against a brute-force product over every label's tokens."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcls import ModelError
from smolcls.calibration import log_softmax
from smolcls.scoring import LabelTrie, label_mass

END = 0
Table = dict[tuple[int, ...], list[float]]


def table(sequences: list[list[int]], seed: int, vocabulary: int = 12) -> Table:
    """Random logits of the whole vocabulary after every beginning of a label."""
    generator = random.Random(seed)
    starts = {tuple(sequence[:depth]) for sequence in sequences for depth in range(len(sequence) + 1)}
    return {start: [generator.gauss(0.0, 2.0) for _ in range(vocabulary)] for start in sorted(starts)}


def brute_force(sequences: list[list[int]], logits: Table) -> list[float]:
    """Each label's probability: the product, over its tokens, of the choice among what any label allows there."""
    ended = [[*sequence, END] for sequence in sequences]
    found = []
    for sequence in ended:
        total = 0.0
        for depth, token in enumerate(sequence):
            before = sequence[:depth]
            allowed = sorted({other[depth] for other in ended if other[:depth] == before and depth < len(other)})
            row = logits[tuple(before)]
            total += log_softmax([row[item] for item in allowed])[allowed.index(token)]
        found.append(math.exp(total))
    return found


def scored(sequences: list[list[int]], logits: Table) -> list[float]:
    trie = LabelTrie(sequences, END)
    rows = [[logits[branch.path][token] for token in branch.tokens] for branch in trie.branches]
    return [math.exp(value) for value in trie.combine(rows)]


SEQUENCES = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=5), min_size=2, max_size=9, unique_by=lambda item: tuple(item)
)


@given(SEQUENCES, st.integers(0, 10_000))
def test_the_trie_equals_brute_force(sequences: list[list[int]], seed: int) -> None:
    logits = table(sequences, seed)
    found = scored(sequences, logits)
    assert found == pytest.approx(brute_force(sequences, logits), abs=1e-12)
    assert math.fsum(found) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("sequences", "paths"),
    [
        ([[1], [2], [3]], [()]),
        ([[1, 2], [1, 3], [2]], [(), (1,)]),
        ([[5, 1], [5, 2]], [(5,)]),
        ([[5, 6, 1], [5, 6, 2], [5, 6, 2, 3]], [(5, 6), (5, 6, 2)]),
        ([[1], [1, 2], [1, 3]], [(1,)]),
        ([[1, 1, 1], [1, 1], [1]], [(1,), (1, 1)]),
    ],
    ids=["all-differ", "two-share", "forced-first", "forced-two", "prefix-of-two", "chain"],
)
def test_a_branch_stands_where_labels_part(sequences: list[list[int]], paths: list[tuple[int, ...]]) -> None:
    trie = LabelTrie(sequences, END)
    assert [branch.path for branch in trie.branches] == paths
    logits = table(sequences, 1)
    assert scored(sequences, logits) == pytest.approx(brute_force(sequences, logits), abs=1e-12)


def test_a_label_that_begins_another_ends_with_the_turn() -> None:
    trie = LabelTrie([[7], [7, 8]], END)
    (branch,) = trie.branches
    assert (branch.path, branch.tokens, branch.members) == ((7,), (END, 8), ((0,), (1,)))


def test_the_root_comes_first_and_depths_never_fall() -> None:
    trie = LabelTrie([[1, 2, 3], [1, 2, 4], [2, 1], [2, 2], [3]], END)
    depths = [len(branch.path) for branch in trie.branches]
    assert depths == sorted(depths)
    assert trie.branches[0].path == ()


def test_labels_that_tokens_cannot_tell_apart() -> None:
    with pytest.raises(ModelError, match="Two labels have the same tokens under the model's tokenizer; rename one"):
        LabelTrie([[1, 2], [3], [1, 2]], END)
    with pytest.raises(ModelError, match="gives no tokens for a label; rename the label"):
        LabelTrie([[1], []], END)
    with pytest.raises(ModelError, match="finds the end of the turn in a label; rename the label"):
        LabelTrie([[1], [1, END]], END)


def test_wrong_numbers_of_logits_are_noticed() -> None:
    trie = LabelTrie([[1], [2]], END)
    with pytest.raises(ValueError, match="zip"):
        trie.combine([])
    with pytest.raises(ValueError, match="zip"):
        trie.combine([[0.0]])


def test_label_mass() -> None:
    row = [1.0, 2.0, 3.0, 4.0]
    total = math.log(sum(map(math.exp, row)))
    assert label_mass(row[:2], total) == pytest.approx((math.exp(1) + math.exp(2)) / math.exp(total))
    assert label_mass(row, total) <= 1.0
    assert label_mass(row, total) == pytest.approx(1.0)
