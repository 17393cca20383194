"""The distance to the training rows."""

from __future__ import annotations

import pytest

from smolcls import BackendError, InputError

pytest.importorskip("sklearn", reason="needs the extra evaluate")

from smolcls.novelty import Novelty

ROWS = ["rename the function", "run the tests", "what is recursion?", "explain this error"]


def test_a_training_row_is_near_and_what_shares_nothing_is_far() -> None:
    novelty = Novelty().fit(ROWS)
    same, close, far, alien = novelty.score(["run the tests", "run the tests again", "bake a pie", "日本語"])
    assert same == pytest.approx(0.0, abs=1e-9)
    assert same < close < far <= alien == 1.0


def test_the_score_is_one_minus_the_largest_cosine_of_any_row_whatever_the_batch() -> None:
    novelty = Novelty().fit(ROWS)
    texts = [f"run the {word} tests" for word in map(str, range(600))]
    together = novelty.score(texts)
    assert together == pytest.approx([novelty.score([text])[0] for text in texts[:3]] + together[3:])
    assert len(together) == 600
    alone = [Novelty().fit([row]).score(["run the test"])[0] for row in ROWS]
    assert min(alone) == alone[1] < min(alone[:1] + alone[2:])
    assert novelty.score([]) == []


def test_what_cannot_be_used() -> None:
    with pytest.raises(InputError, match="Expected the texts of training rows; found none"):
        Novelty().fit([])
    with pytest.raises(InputError, match="The text to classify is empty"):
        Novelty().fit([" "])
    with pytest.raises(BackendError, match=r"Call fit\(texts\) first"):
        Novelty().score(["x"])
