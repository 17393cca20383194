"""Near-copies: the quick search finds what comparing each with each finds."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smolcls.data.near import MIN_GRAMS, THRESHOLD, Joined, NearIndex, grams, links, normalise, overlap

#: Few words, so that texts of them are often near each other.
WORDS = ["build", "the", "parser", "again", "with", "tests", "/run", "it", "in", "münchen", "!?"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1).map(" ".join)


def near_by_hand(one: str, other: str) -> bool:
    sets = grams(one), grams(other)
    if min(map(len, sets)) < MIN_GRAMS:
        return max(map(len, sets)) < MIN_GRAMS and normalise(one) == normalise(other)
    return overlap(*sets) >= THRESHOLD


def roots(joined: Joined, count: int) -> list[int]:
    return [joined.root(number) for number in range(count)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Fix  the bug.", "fix the bug"),
        ("what is it?!", "WHAT is it"),
        ("ﬁx it", "fix it"),
        ("run it, then stop", "run it then stop"),
    ],
)
def test_case_blanks_and_punctuation_make_no_other_text(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("/help", "help"), ("c++", "c"), ("/?", "/"), ("!", "?"), (".net", "net")])
def test_leading_and_lone_signs_do(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(SENTENCES, max_size=25))
def test_links_join_exactly_what_is_near(texts: list[str]) -> None:
    by_hand, quick = Joined(len(texts)), Joined(len(texts))
    for one, other in itertools.combinations(range(len(texts)), 2):
        if near_by_hand(texts[one], texts[other]):
            by_hand.join(one, other)
    found = list(links(texts, range(len(texts)), quick))
    assert roots(quick, len(texts)) == roots(by_hand, len(texts))
    assert all(near_by_hand(texts[pair.first], texts[pair.second]) and pair.first < pair.second for pair in found)
    assert len(found) == len(texts) - len(set(roots(quick, len(texts))))


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(SENTENCES, max_size=15), SENTENCES)
def test_the_growing_index_finds_a_near_copy_where_there_is_one(texts: list[str], asked: str) -> None:
    near = [text for text in texts if near_by_hand(asked, text)]
    found = NearIndex(texts).find(asked)
    assert (found in near) if near else (found is None)


def test_texts_of_one_group_need_no_link() -> None:
    texts = ["rename the helper in utils.py everywhere", "rename the helper in util.py everywhere"]
    assert list(links(texts, [0, 0], Joined(1))) == []
    (link,) = links(texts, [0, 1], Joined(2))
    assert (link.first, link.second) == (0, 1)
    assert link.overlap == pytest.approx(overlap(*map(grams, texts)))


def test_a_word_in_half_a_sentence_is_another_text_and_in_a_long_one_a_copy() -> None:
    assert not near_by_hand("run the tests", "run the linter")
    long = "please read the file with the {} settings and tell me what is missing"
    assert near_by_hand(long.format("proxy"), long.format("cache"))


def test_joined_goes_by_the_lowest_number() -> None:
    joined = Joined(5)
    assert joined.join(4, 2)
    assert joined.join(3, 4)
    assert not joined.join(2, 3)
    assert roots(joined, 5) == [0, 1, 2, 2, 2]


def test_five_thousand_texts_take_seconds() -> None:
    draw = random.Random(3)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(2, 20))) for _ in range(5000)]
    begin = time.process_time()
    assert list(links(texts, range(len(texts)), Joined(len(texts)))) == []
    assert time.process_time() - begin < 15  # 1.5 s where nothing else runs
