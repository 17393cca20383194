"""Classifiers over rows: answers, slices, comparisons and gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

pytest.importorskip("sklearn")

import smolcls
from smolcls import Calibration, Classifier, ConfidenceRouter, InputError, Scores, Task
from smolcls.backends.fake import FakeClassifier
from smolcls.data.tables import LabelledText
from smolcls.evaluation import Gate, changes, disagreements, evaluate, majority, pairs, slices
from smolcls.evaluation.slices import columns_of

LABELS = ("command", "prompt", "workflow")
ROWS = [
    LabelledText("/help", "command", {"source": "a", "fold": 1}),
    LabelledText("what is recursion?", "prompt", {"source": "a", "fold": 2}),
    LabelledText("fix the bug in the parser and run all of its tests", "workflow", {"source": "b", "fold": 1}),
    LabelledText("y" * 300, "workflow", {"source": "b", "fold": 3}),
]


def answering(*answers: tuple[str, float]) -> FakeClassifier:
    """A classifier with these answers to `ROWS`."""
    return FakeClassifier({row.text: answer for row, answer in zip(ROWS, answers, strict=True)})


GOOD = (("command", 0.9), ("prompt", 0.8), ("workflow", 0.7), ("prompt", 0.95))
OTHER = (("command", 0.9), ("workflow", 0.6), ("workflow", 0.7), ("workflow", 0.5))


class Scoring(Classifier):
    """A classifier with raw scores and a temperature."""

    name = "scoring"

    def score_batch(self, texts: Sequence[str]) -> list[Scores]:
        return [Scores((math.log(0.8), math.log(0.2))) for _ in texts]


def test_the_public_function_measures_rows_or_pairs() -> None:
    found = smolcls.evaluate(answering(*GOOD), [(row.text, row.label) for row in ROWS])
    assert found.metrics.accuracy == 0.75
    assert found.labels == LABELS
    assert [answer.label for answer in found.answers] == ["command", "prompt", "workflow", "prompt"]
    assert found.name == "fake"
    assert found.metrics_before is None
    assert callable(smolcls.evaluate)  # and not the module that it is imported from


def test_texts_are_asked_one_at_a_time_after_a_warm_up() -> None:
    classifier = answering(*GOOD)
    seen: list[tuple[int, int]] = []
    found = evaluate(classifier, ROWS, name="mine", progress=lambda done, total: seen.append((done, total)))
    assert classifier.asked == [ROWS[0].text, *(row.text for row in ROWS)]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.name == "mine"
    assert 0 <= found.latency.p50_ms <= found.latency.p95_ms == max(found.latencies_ms)


def test_before_calibration_is_temperature_one() -> None:
    task = Task(["yes", "no"])
    calibration = Calibration(2.0, task.fingerprint, "", "scoring", 50, 0.5, 0.4)
    found = evaluate(Scoring(task=task, calibration=calibration), [("a", "yes")])
    assert found.uncalibrated is not None
    assert found.uncalibrated[0] == pytest.approx((0.8, 0.2))
    assert found.probabilities[0] == pytest.approx((2 / 3, 1 / 3))  # √0.8 : √0.2
    assert found.metrics_before is not None
    assert found.metrics_before.nll < found.metrics.nll


def test_a_router_has_one_curve_and_its_own_probabilities() -> None:
    router = ConfidenceRouter([answering(*GOOD)])
    found = evaluate(router, ROWS)
    assert found.uncalibrated is None
    assert [round(answer.confidence, 6) for answer in found.answers] == [0.9, 0.8, 0.7, 0.95]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "Expected labelled rows to evaluate on; found none"),
        ([("hi", "greeting")], "Expected the labels command, prompt, workflow; found 'greeting' at the text 'hi'"),
        ([(" ", "prompt")], "blank"),
    ],
)
def test_rows_that_cannot_be_measured_are_refused(rows: list[tuple[str, str]], message: str) -> None:
    classifier = FakeClassifier()
    with pytest.raises(InputError, match=message):
        evaluate(classifier, rows)
    assert classifier.asked == []


def test_a_backend_that_scores_too_few_labels_is_named() -> None:
    with pytest.raises(smolcls.BackendError, match="scoring was to score 3 labels; it returned"):
        evaluate(Scoring(), ROWS)


def test_the_majority_line_answers_the_most_frequent_label() -> None:
    found = majority(LABELS, ROWS)
    assert found.metrics.accuracy == 0.5
    assert found.metrics.ece == 0.0
    assert {answer.label for answer in found.answers} == {"workflow"}


def test_errors_come_most_confident_first() -> None:
    found = evaluate(answering(("prompt", 0.6), ("workflow", 0.9), ("workflow", 0.7), ("prompt", 0.7)), ROWS)
    assert [(answer.label, answer.row.label) for answer in found.errors()] == [
        ("workflow", "prompt"),
        ("prompt", "workflow"),
        ("prompt", "command"),
    ]
    assert len(found.errors(2)) == 2


def test_slices_are_by_length_and_by_any_column() -> None:
    assert columns_of(ROWS) == ("length", "source")
    assert columns_of(ROWS, ["fold", "source"]) == ("length", "source", "fold")
    with pytest.raises(InputError, match="no column 'author' to slice by; they have source, fold, length"):
        columns_of(ROWS, ["author"])
    found = {(item.column, item.value): item for item in slices(evaluate(answering(*GOOD), ROWS), ("length", "fold"))}
    assert [value for column, value in found if column == "length"] == [
        "up to 20 characters",
        "21 to 60 characters",
        "over 200 characters",
    ]
    assert found["length", "over 200 characters"].accuracy == 0.0
    one = found["fold", "1"]
    assert (one.rows, one.accuracy, one.macro_f1) == (2, 1.0, 1.0)
    assert one.confidence == pytest.approx(0.8)
    assert one.interval.low < 0.5 < one.interval.high == 1.0


def test_rare_values_share_a_slice() -> None:
    rows = [LabelledText(f"text {n}", "command", {"source": str(n // 2)}) for n in range(40)]
    found = slices(evaluate(FakeClassifier(), rows), ["source"])
    assert len(found) == 12
    assert (found[-1].value, found[-1].rows) == ("(others)", 40 - 11 * 2)


def test_disagreements_put_first_what_both_sides_are_sure_of() -> None:
    one, other = evaluate(answering(*GOOD), ROWS, name="one"), evaluate(answering(*OTHER), ROWS, name="other")
    (pair,) = pairs([one, other])
    assert (pair.first, pair.second, pair.agreement) == ("one", "other", 0.5)
    assert (pair.only_first, pair.only_second, pair.p_value) == (1, 1, 1.0)
    found = disagreements([one, other])
    assert [item.row for item in found] == [ROWS[1], ROWS[3]]  # at least 0.6 and 0.5
    assert {name: answer.label for name, answer in found[0].answers.items()} == {"one": "prompt", "other": "workflow"}
    assert len(disagreements([one, other], 1)) == 1


def test_flips_are_counted_on_the_rows_that_both_have() -> None:
    new = evaluate(answering(*GOOD), ROWS, name="mine")
    older = {(row.text, row.label): label for row, (label, _) in zip(ROWS[1:], OTHER[1:], strict=True)}
    (found,) = changes([new, majority(LABELS, ROWS)], {"mine": older})
    assert (found.rows, found.left_out, found.gained, found.lost) == (3, 1, 1, 1)
    assert [(flip.before, flip.after) for flip in found.flips] == [("workflow", "prompt"), ("workflow", "prompt")]
    assert found.accuracy_before == found.accuracy_after == pytest.approx(2 / 3)
    with pytest.raises(InputError, match=r"The older report is on yours; expected one of mine. Name the same backend"):
        changes([new], {"yours": older})
    with pytest.raises(InputError, match="The older report has no row in common with this table"):
        changes([new], {"mine": {("another text", "prompt"): "prompt"}})


# Gates


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("accuracy>=0.95", Gate("accuracy", None, ">=", 0.95)),
        (" ece < 3e-2 ", Gate("ece", None, "<", 0.03)),
        ("recall.workflow>=.9", Gate("recall", "workflow", ">=", 0.9)),
        ("precision.two words.and dots<=1", Gate("precision", "two words.and dots", "<=", 1.0)),
    ],
)
def test_gates_are_parsed(text: str, parsed: Gate) -> None:
    labels = ("workflow", "two words.and dots")
    assert Gate.parse(text, labels) == parsed
    assert Gate.parse(str(parsed), labels) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "Expected a gate such as accuracy>=0.95 or recall.command>=0.9"),
        ("accuracy=>0.9", "Expected a gate such as"),
        ("accuracy>=0.9<1", "Expected a gate such as"),
        ("fluency>1", "asks for the metric 'fluency'; known are accuracy, accuracy_low, macro_f1, ece"),
        ("accuracy.prompt>1", "names the label 'prompt'; accuracy is not a label's. Leave it out"),
        ("recall>0.9", r"must name one of the labels command, prompt, workflow, as in recall.command>=0.9"),
        ("recall.chat>0.9", "must name one of the labels"),
        ("ece<much", "must end with a number, such as 0.95; found 'much'"),
        ("ece<nan", "must end with a number"),
    ],
)
def test_gates_that_say_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate.parse(text, LABELS)


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("accuracy>=0.75", None),
        ("accuracy>0.75", "mine: required accuracy>0.75; found 0.7500"),
        ("recall.workflow>=0.9", "mine: required recall.workflow>=0.9; found 0.5000"),
        ("f1.command>=1", None),
        ("sure_error_share<=0", None),
        ("p95_ms<0", "mine: required p95_ms<0; found "),
        ("accuracy_low>=0.75", "mine: required accuracy_low>=0.75; found 0.3006"),
    ],
)
def test_a_gate_says_what_was_required_and_found(text: str, failure: str | None) -> None:
    found = Gate.parse(text, LABELS).failure(evaluate(answering(*GOOD), ROWS, name="mine"))
    if failure is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(failure)
