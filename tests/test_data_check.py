"""The check: every kind of finding, and the rows that ship."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from smolcls.data.check import Report, check, check_files
from smolcls.data.rows import SPLITS, Row, shipped, write_rows
from smolcls.errors import InputError, MissingExtraError
from smolcls.task import Task

TASK = Task(["yes", "no"], max_text_bytes=80)
CLEAN = [Row("the sun is out over the harbour", "yes"), Row("nobody came to my birthday", "no")]
needs_scikit_learn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs the extra train")


def kinds(report: Report) -> tuple[list[str], list[str]]:
    return [finding.kind for finding in report.problems], [finding.kind for finding in report.notes]


def test_the_shipped_rows_have_no_problem_and_no_near_copy_in_two_families() -> None:
    report = check({split: shipped("three-type", split) for split in SPLITS}, Task.load("three-type"))
    assert report.problems == ()
    assert [finding for finding in report.notes if finding.kind == "near-copies"] == []
    assert all(count > 30 for counts in report.rows.values() for count in counts.values())


def test_clean_rows_give_nothing() -> None:
    report = check({"train": CLEAN}, TASK)
    assert report == Report({"train": {"yes": 1, "no": 1}}, (), ())


def test_a_label_that_is_not_the_tasks_is_a_problem() -> None:
    report = check({"train": [*CLEAN, Row("whatever you like best", "maybe")]}, TASK)
    (problem,) = report.problems
    assert problem.kind == "unknown-label"
    assert problem.message == "train:3: expected one of the labels yes, no; found 'maybe'."
    assert problem.places == ("train:3",)
    assert report.rows["train"] == {"yes": 1, "no": 1, "maybe": 1}


def test_a_label_without_a_row_is_a_problem() -> None:
    (problem,) = check({"train": CLEAN, "test": [Row("rain again, the third week", "no")]}, TASK).problems
    assert problem.message == "test: no row has the label yes; each needs some."


def test_a_text_twice_is_a_problem() -> None:
    (problem,) = check({"train": [*CLEAN, Row("Nobody came  to my birthday!", "no")]}, TASK).problems
    assert problem.kind == "duplicate"
    assert problem.message == "train:2, train:3: 'nobody came to my birthday' stands there 2 times; keep one."


def test_one_text_with_two_labels_is_a_problem_even_where_it_is_short() -> None:
    report = check({"train": [*CLEAN, Row("hm", "yes"), Row("Hm.", "no")]}, TASK)
    assert kinds(report) == (["contradiction", "duplicate"], [])
    assert report.problems[0].message == "train:3, train:4: 'hm' has the labels no, yes."


def test_a_family_in_two_parts_is_a_leak() -> None:
    train = [Row("the sun is out over the harbour", "yes", family="sun"), CLEAN[1]]
    test = [Row("clouds lie upon the hills", "no", family="sun"), Row("a fine morning for a walk", "yes")]
    (problem,) = check({"train": train, "test": test}, TASK).problems
    assert problem.kind == "family-leak"
    assert problem.message == "The family 'sun' has rows in train (1), test (1); move it into one."
    assert problem.places == ("train:1", "test:1")


def test_a_copy_in_two_parts_is_a_leak() -> None:
    report = check({"train": CLEAN, "test": [*CLEAN]}, TASK)
    assert kinds(report) == (["copy-leak", "copy-leak"], [])
    assert report.problems[0].message.startswith("train:1, test:1: 'the sun is out over the harbour' stands in several")


def test_a_near_copy_in_two_parts_is_a_leak_though_the_labels_differ() -> None:
    test = [Row("the sun is out over the harbours", "no"), Row("a fine morning for a walk", "yes")]
    (problem,) = check({"train": CLEAN, "test": test}, TASK).problems
    assert problem.kind == "copy-leak"
    assert problem.message == (
        "train:1, test:1: 'the sun is out over the harbour' and 'the sun is out over the harbours' share 96% of their "
        "4-grams; move one, with its family."
    )


def test_near_copies_of_two_families_in_one_part_are_a_note_and_of_one_family_nothing() -> None:
    near = Row("the sun is out over the harbours", "yes", family="b")
    report = check({"train": [*CLEAN, near]}, TASK)
    assert kinds(report) == ([], ["near-copies"])
    assert "give them one family" in report.notes[0].message
    one = [Row("the sun is out over the harbour", "yes", family="b"), CLEAN[1], near]
    assert kinds(check({"train": one}, TASK)) == ([], [])


def test_a_rare_label_and_a_long_text_are_notes() -> None:
    draw = random.Random(1)
    many = [Row(f"{draw.getrandbits(60):x} {draw.getrandbits(60):x}", "yes") for _ in range(11)]
    assert kinds(check({"train": [*many, CLEAN[1]]}, TASK)) == ([], ["imbalance"])
    assert kinds(check({"train": [*many[:10], CLEAN[1]]}, TASK)) == ([], [])
    report = check({"train": [*CLEAN, Row("ü" * 41, "yes")]}, TASK)
    assert kinds(report) == ([], ["long-texts"])
    assert report.notes[0].message == "train:3: longer than the task's 80 bytes; their middle is not read."


def test_files_are_checked_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, CLEAN)
    path.write_text(path.read_text() + '{"text": 3}\n\n{"text": "what?", "label": "maybe"}\n')
    report = check_files([path], TASK)
    assert kinds(report) == (["form", "unknown-label"], [])
    assert report.problems[0].places == (f"{path}:3",)
    assert report.problems[0].message.startswith(f"{path}, line 3: expected a text that is not blank")
    assert report.problems[1].places == (f"{path}:5",)
    assert json.loads(json.dumps(report.to_dict()))["rows"][str(path)] == {"yes": 1, "no": 1, "maybe": 1}


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", CLEAN)
    with pytest.raises(InputError, match=r"rows\.jsonl is given twice; every row of it would be a leak"):
        check_files([tmp_path / "rows.jsonl", str(tmp_path / "rows.jsonl")], TASK)


def labelled(count: int) -> list[Row]:
    """Rows whose label their words tell."""
    draw = random.Random(4)
    words = {
        "yes": ["sunny", "bright", "warm", "lovely", "fresh"],
        "no": ["stormy", "dark", "cold", "dreadful", "stale"],
    }
    things = ["morning", "harbour", "garden", "kitchen", "train", "letter", "window", "market", "river", "village"]
    rows = []
    for number in range(count):
        label = ("yes", "no")[number % 2]
        one, other = draw.sample(words[label], 2)
        rows.append(Row(f"{one} {draw.choice(things)} and {other} {draw.choice(things)} {number}", label))
    return rows


@needs_scikit_learn
def test_planted_label_errors_are_found_and_come_first() -> None:
    rows = labelled(200)
    wrong = {11, 40, 77, 123}
    for number in wrong:
        rows[number] = Row(rows[number].text, "no" if rows[number].label == "yes" else "yes")
    notes = [note for note in check({"train": rows}, TASK, label_errors=True).notes if note.kind == "label-error"]
    assert {note.places[0] for note in notes[:4]} == {f"train:{number + 1}" for number in wrong}
    assert len(notes) <= 6
    assert "models trained on other rows say" in notes[0].message


@needs_scikit_learn
def test_label_errors_take_enough_families() -> None:
    one_family = [Row(row.text, row.label, family="one" if row.label == "yes" else "") for row in labelled(60)]
    with pytest.raises(InputError, match=r"each in 5 families or more; found yes \(1\)"):
        check({"train": one_family}, TASK, label_errors=True)


def test_without_scikit_learn_label_errors_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        MissingExtraError, match=r'Looking for label errors needs the package.*pip install "smolcls\[evaluate\]"'
    ):
        check({"train": labelled(60)}, TASK, label_errors=True)
