"""The split: whole families, the labels' shares, and a draw that new rows do not disturb."""

from __future__ import annotations

import random

import pytest

from smolcls.data.rows import Row
from smolcls.data.split import families, split
from smolcls.errors import ConfigError

LABELS = {"red": 0.6, "green": 0.3, "blue": 0.1}


def made(count: int, seed: int = 1) -> list[Row]:
    """Rows of 1 to 4 a family, whose texts have nothing in common."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = draw.choices(list(LABELS), weights=list(LABELS.values()))[0]
        for _ in range(draw.randint(1, 4)):
            rows.append(Row(" ".join(f"{draw.getrandbits(40):x}" for _ in range(3)), label, family=f"f{seed}-{number}"))
    return rows


def drawn(rows: list[Row], **options: float) -> dict[str, str]:
    result = split(rows, **options)  # type: ignore[arg-type]
    return {row.text: part for part, some in result.parts.items() for row in some}


def test_no_row_is_lost_and_no_family_is_parted() -> None:
    rows = made(400)
    parts = split(rows, validation=0.2, test=0.1, seed=7).parts
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(row.text for some in parts.values() for row in some) == sorted(row.text for row in rows)
    seen = [{row.family for row in some} for some in parts.values()]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    order = {row.text: number for number, row in enumerate(rows)}
    for some in parts.values():
        assert [order[row.text] for row in some] == sorted(order[row.text] for row in some)


def test_the_shares_are_kept_by_every_label() -> None:
    rows = made(1500)
    parts = split(rows, validation=0.1, test=0.05).parts
    for label in LABELS:
        total = sum(row.label == label for row in rows)
        for part, share in (("validation", 0.1), ("test", 0.05)):
            found = sum(row.label == label for row in parts[part])
            assert abs(found - share * total) < 0.3 * share * total, (label, part)


def test_the_seed_that_was_found_draws_the_same_again() -> None:
    rows = made(300)
    first = split(rows, validation=0.2, test=0.1)
    again = split(rows, validation=0.2, test=0.1, seed=first.seed)
    assert again == first
    assert split(rows, validation=0.2, test=0.1, seed=first.seed + 1).parts != first.parts


def test_new_families_move_no_old_row() -> None:
    old = made(300)
    before = drawn(old, validation=0.2, test=0.1, seed=7)
    after = drawn([*old, *made(300, seed=2)], validation=0.2, test=0.1, seed=7)
    assert {text: after[text] for text in before} == before
    shuffled = random.Random(5).sample(old, len(old))
    assert drawn(shuffled, validation=0.2, test=0.1, seed=7) == before


def test_near_copies_stay_together_whatever_their_families_say() -> None:
    text = "please rename the function {} in every file of the project"
    rows = [Row(text.format(f"load{letter}"), "red", family=letter) for letter in "abcdefghij"]
    assert set(families(rows)) == {"a"}
    assert len(set(drawn(rows, validation=0.4, test=0.3, seed=7).values())) == 1


def test_rows_without_a_family_are_families_of_their_own() -> None:
    rows = [Row(row.text, row.label) for row in made(200)]
    assert len(set(families(rows))) == len(rows)
    places = drawn(rows, validation=0.3, test=0.3, seed=7)
    assert set(places.values()) == {"train", "validation", "test"}
    assert (
        drawn([*rows, Row(rows[3].text.upper(), "red")], validation=0.3, test=0.3, seed=7)[rows[3].text.upper()]
        == places[rows[3].text]
    )


def test_a_part_of_no_share_is_empty() -> None:
    parts = split(made(50), validation=0.0, test=0.0).parts
    assert parts["validation"] == parts["test"] == []
    assert split([]).parts == {"train": [], "validation": [], "test": []}


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2), (1.0, 0.0)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ConfigError, match=r"must leave rows for training: together below 1; found"):
        split(made(5), validation=validation, test=test)


@pytest.mark.parametrize("share", [-0.1, 1.5, True, "0.1"])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="validation must be a number between 0 and 1; found"):
        split(made(5), validation=share)
