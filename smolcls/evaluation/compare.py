"""Answers side by side: two classifiers on the same rows, or one classifier now and in an older report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from smolcls import metrics
from smolcls.data.tables import LabelledText
from smolcls.errors import InputError
from smolcls.evaluation.run import Answer, Evaluation
from smolcls.files import read_json

FORMAT = "smolcls-report-1"

Labels = Mapping[tuple[str, str], str]
"""A classifier's answers by text and true label."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two classifiers on the same rows.

    Attributes:
        first, second: their names.
        agreement: share of the rows that both answer alike.
        only_first, only_second: rows that one alone has right.
        p_value: of McNemar's exact test; below 0.05 the difference is hardly chance.
    """

    first: str
    second: str
    agreement: float
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row that classifiers answer differently, with each one's answer by its name."""

    row: LabelledText
    answers: dict[str, Answer]


@dataclass(frozen=True, slots=True)
class Flip:
    """A row whose answer is another than in the older report."""

    text: str
    label: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Change:
    """One classifier now and in an older report, on the rows that both have.

    Attributes:
        name: the classifier's.
        rows: how many rows are compared.
        left_out: rows of this evaluation that the older report lacks, or has with another label.
        accuracy_before, accuracy_after: on the compared rows.
        flips: the rows with another answer.
        gained, lost: of these, how many became right and how many wrong.
        p_value: of McNemar's exact test.
    """

    name: str
    rows: int
    left_out: int
    accuracy_before: float
    accuracy_after: float
    flips: tuple[Flip, ...]
    gained: int
    lost: int
    p_value: float


def pairs(evaluations: Sequence[Evaluation]) -> list[Pair]:
    """Every two of them."""
    return [_pair(first, second) for first, second in combinations(evaluations, 2)]


def disagreements(evaluations: Sequence[Evaluation], most: int | None = None) -> list[Disagreement]:
    """Rows that they answer differently, those first in which the contradicting ones are surest."""
    found = []
    for some in zip(*(evaluation.answers for evaluation in evaluations), strict=True):
        if len({answer.label for answer in some}) > 1:
            answers = {evaluation.name: answer for evaluation, answer in zip(evaluations, some, strict=True)}
            found.append(Disagreement(some[0].row, answers))
    return sorted(found, key=lambda item: -_sureness(item))[:most]


def changes(evaluations: Sequence[Evaluation], older: Mapping[str, Labels]) -> list[Change]:
    """What changed since an older report, for each classifier that both name.

    Args:
        older: what `read_answers` read.

    Raises:
        InputError: the older report has no classifier or row in common with this one.
    """
    found = [_change(item, older[item.name]) for item in evaluations if item.name in older]
    if not found:
        raise InputError(
            f"The older report is on {', '.join(older) or 'nothing'}; expected one of "
            f"{', '.join(evaluation.name for evaluation in evaluations)}. Name the same backend with --backend."
        )
    return found


def read_answers(path: str | Path) -> Mapping[str, Labels]:
    """For each classifier of a `report.json` its answers.

    Raises:
        InputError: the file cannot be read or is no report.
    """
    try:
        content = read_json(Path(path))
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        found: dict[str, dict[tuple[str, str], str]] = {}
        for row in content["rows"]:
            for name, (label, _) in row["answers"].items():
                found.setdefault(name, {})[str(row["text"]), str(row["label"])] = str(label)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a report that smolcls wrote ({error}). Expected a report.json of: smolcls evaluate --report"
        ) from error
    return found


def _pair(first: Evaluation, second: Evaluation) -> Pair:
    both = list(zip(first.answers, second.answers, strict=True))
    only_first = sum(one.right and not other.right for one, other in both)
    only_second = sum(other.right and not one.right for one, other in both)
    agreement = sum(one.label == other.label for one, other in both) / len(both)
    p_value = metrics.mcnemar(only_second, only_first)
    return Pair(first.name, second.name, agreement, only_first, only_second, p_value)


def _sureness(item: Disagreement) -> float:
    """The second highest of the labels' best confidences: both sides of the contradiction are as sure as that."""
    best: dict[str, float] = {}
    for answer in item.answers.values():
        best[answer.label] = max(answer.confidence, best.get(answer.label, 0.0))
    return sorted(best.values())[-2]


def _change(evaluation: Evaluation, past: Labels) -> Change:
    known = [answer for answer in evaluation.answers if (answer.row.text, answer.row.label) in past]
    if not known:
        raise InputError("The older report has no row in common with this table. Compare reports on the same rows.")
    both = [(answer, past[answer.row.text, answer.row.label]) for answer in known]
    gained = sum(answer.right and before != answer.row.label for answer, before in both)
    lost = sum(not answer.right and before == answer.row.label for answer, before in both)
    return Change(
        name=evaluation.name,
        rows=len(known),
        left_out=len(evaluation.rows) - len(known),
        accuracy_before=sum(before == answer.row.label for answer, before in both) / len(known),
        accuracy_after=sum(answer.right for answer in known) / len(known),
        flips=tuple(
            Flip(answer.row.text, answer.row.label, before, answer.label)
            for answer, before in both
            if before != answer.label
        ),
        gained=gained,
        lost=lost,
        p_value=metrics.mcnemar(gained, lost),
    )
