"""Choosing a threshold: the choice, its bound, what it says where there is none; and `smolcls threshold`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from smolcls import ConfigError, InputError, registry
from smolcls.backends.fake import FakeClassifier
from smolcls.threshold import GRID, Of, choose_threshold

stats = pytest.importorskip("scipy.stats", reason="needs the extra evaluate")

SPLITS = 200
SLACK = int(stats.binom.isf(1e-3, SPLITS, 0.05))


def population(size: int, seed: int = 1) -> tuple[list[float], list[bool]]:
    """Confidences that crowd below 1, and are too high throughout."""
    draw = random.Random(seed)
    confidences = [1.0 - 0.5 * draw.random() ** 3 for _ in range(size)]
    return confidences, [draw.random() < value - 0.03 for value in confidences]


@pytest.mark.parametrize(("of", "max_error"), [("answered", 0.12), ("traffic", 0.07)])
def test_over_200_random_splits_the_limit_is_broken_as_seldom_as_promised(of: Of, max_error: float) -> None:
    confidences, correct = population(20_000)
    rows, draw = range(len(correct)), random.Random(2)

    def true_error(threshold: float) -> float:
        given = [correct[row] for row in rows if confidences[row] >= threshold]
        return given.count(False) / (len(given) if of == "answered" else len(correct))

    errors = {threshold: true_error(threshold) for threshold in GRID}
    assert min(errors.values()) < max_error < errors[0.0]  # there is something to choose
    broken, chosen = 0, set()
    for _ in range(SPLITS):
        split = draw.sample(rows, 800)
        choice = choose_threshold(
            [confidences[row] for row in split], [correct[row] for row in split], max_error=max_error, of=of
        )
        chosen.add(choice.threshold)
        broken += errors[choice.threshold] > max_error
    assert broken <= SLACK
    assert min(chosen) > 0.0
    assert max(chosen) < 0.9999


def test_the_choice_says_what_it_does() -> None:
    confidences, correct = [0.97] * 300 + [0.72] * 100, [True] * 299 + [False] + [False] * 50 + [True] * 50
    choice = choose_threshold(confidences, correct, max_error=0.05)
    assert (choice.threshold, choice.rows, choice.answered, choice.errors) == (0.75, 400, 300, 1)
    assert choice.share_answered == 0.75
    assert choice.observed_error == pytest.approx(1 / 300)
    assert choice.observed_error < choice.error_bound <= choice.max_error
    traffic = choose_threshold(confidences, correct, max_error=0.05, of="traffic")
    assert (traffic.threshold, traffic.errors) == (0.75, 1)
    assert traffic.observed_error == pytest.approx(1 / 400)
    assert choose_threshold(confidences, correct, max_error=0.2).threshold == 0.0
    assert choose_threshold(confidences, correct, max_error=0.14, of="traffic").share_answered == 0.75


def test_too_few_rows_are_said_with_the_number_it_takes() -> None:
    with pytest.raises(
        InputError, match=r"too few for an error of at most 0\.05 .*: found 20; it takes about (\d+)"
    ) as e:
        choose_threshold([0.9] * 20, [True] * 20, max_error=0.05)
    needed = int(str(e.value).split("about ")[1].split()[0])
    assert choose_threshold([0.9] * needed, [True] * needed, max_error=0.05).threshold == 0.0
    with pytest.raises(InputError, match="it takes about"):
        choose_threshold([0.9] * (needed // 2), [True] * (needed // 2), max_error=0.05)
    with pytest.raises(InputError, match="found 58; it takes about 59 like these"):
        choose_threshold([0.9] * 58, [True] * 58, max_error=0.05, of="traffic")
    assert choose_threshold([0.9] * 59, [True] * 59, max_error=0.05, of="traffic").threshold == 0.0


def test_where_more_rows_do_not_help_it_says_so() -> None:
    confidences, correct = [0.97] * 100 + [0.6] * 100, [True] * 90 + [False] * 10 + [False] * 100
    with pytest.raises(
        InputError, match=r"more rows like these would not change that: even at 0\.97, .* 10 of 100 are"
    ):
        choose_threshold(confidences, correct, max_error=0.05)


@pytest.mark.parametrize(
    ("confidences", "correct", "message"),
    [
        ([], [], "one row at least; found 0 confidences"),
        ([0.5], [], "found 1 confidences and 0 judgements"),
        ([0.5, 1.2], [True, True], r"Row 2: expected a confidence from 0 to 1; found 1\.2"),
        ([float("nan")], [True], "Row 1: expected a confidence from 0 to 1; found nan"),
    ],
)
def test_rows_that_are_none(confidences: list[float], correct: list[bool], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_threshold(confidences, correct, max_error=0.05)


def test_arguments_out_of_range() -> None:
    arguments: dict[str, Any]
    for arguments, message in (
        ({"max_error": 0.0}, "max_error must be a number above 0 and below 1; found 0.0"),
        ({"max_error": 0.1, "confidence": 1}, "confidence must be a number above 0 and below 1; found 1"),
        ({"max_error": 0.1, "of": "all"}, 'of must be "answered" or "traffic"; found \'all\''),
    ):
        with pytest.raises(ConfigError, match=message):
            choose_threshold([0.5], [True], **arguments)


# The command.


class Told(FakeClassifier):
    """Sure and right of red, unsure and half wrong of blue."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda text: ("command", 0.96 if text.startswith("red") else 0.55), **options)


def write_rows(*, families: bool) -> None:
    lines = []
    for number in range(400):
        red = number % 4 > 0
        label = "command" if red or number % 8 == 0 else "prompt"
        row = {"text": f"{'red' if red else 'blue'} {number}", "label": label}
        lines.append(json.dumps(row | ({"family": f"f{number // 100}"} if families else {})))
    Path("rows.jsonl").write_text("\n".join(lines))


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = registry.find
    monkeypatch.setattr(registry, "find", lambda name: Told if name == "told" else find(name))


def test_the_command_prints_the_threshold_the_share_the_error_and_its_bound() -> None:
    write_rows(families=False)
    result = run("threshold", "rows.jsonl", "--backend", "told", "--max-error", "0.05")
    assert result.exit_code == 0, result.output
    first, answered, error, promise = result.stdout.splitlines()
    assert first == "threshold  0.6"
    assert answered == "answered   75.0% (300 of 400 independent rows)"
    assert error.startswith("error      0.00% of the answered (0 wrong), bound ")
    assert promise == "promise    at most 5.00% with probability 95.0%"
    traffic = run("threshold", "rows.jsonl", "--backend", "told", "--max-error", "0.2", "--of", "traffic")
    assert traffic.stdout.splitlines()[0] == "threshold  0"
    assert "12.50% of all rows (50 wrong)" in traffic.stdout


def test_of_a_family_one_row_counts() -> None:
    write_rows(families=True)
    result = run("threshold", "rows.jsonl", "--backend", "told", "--max-error", "0.05")
    assert result.exit_code == 2
    assert "too few for an error of at most 0.05 with confidence 0.95: found 4; it takes about" in result.stderr


def test_what_is_wrong_is_said_before_the_work() -> None:
    write_rows(families=False)
    result = run("threshold", "rows.jsonl", "--backend", "told", "--max-error", "5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--max-error must be a number above 0 and below 1; found 5.0" in result.stderr
    Path("rows.jsonl").write_text('{"text": "x", "label": "spam"}')
    result = run("threshold", "rows.jsonl", "--backend", "told", "--max-error", "0.05")
    assert result.exit_code == 2
    assert "found 'spam' at the text 'x'" in result.stderr
