"""What a router decides: who answers, from which stage, and what its trace says."""

from __future__ import annotations

import math
from typing import Any

import pytest
from stages import Stranger

from smolcls import BackendError, ConfidenceRouter, InputError, Prediction, Stage, Task
from smolcls.backends.fake import Answer, FakeClassifier

NAMES = ("command", "prompt", "workflow")
LAST = FakeClassifier("workflow", confidence=0.5)


def says(label: str, confidence: float = 0.99) -> FakeClassifier:
    return FakeClassifier(label, confidence=confidence)


def outcomes(prediction: Prediction) -> list[tuple[str, str]]:
    return [(step.stage, step.outcome) for step in prediction.trace]


# Pools


def pooling(*others: Stage, threshold: float = 0.0) -> ConfidenceRouter:
    """Behind the others, a stage that says `prompt` at 0.6 and pools what `first` said at half its weight."""
    last = Stage(says("prompt", 0.6), threshold=threshold, name="last", pool={"first": 0.5, "last": 1.0})
    return ConfidenceRouter([*others, last, LAST])


def test_what_an_unsure_stage_said_counts_beside_a_later_one() -> None:
    prediction = pooling(Stage(says("workflow", 0.9), threshold=0.95, name="first"), threshold=0.5).classify("a")
    # 0.6 · √0.05 for prompt, 0.2 · √0.9 for workflow, 0.2 · √0.05 for command
    parts = {"command": 0.2 * 0.05**0.5, "prompt": 0.6 * 0.05**0.5, "workflow": 0.2 * 0.9**0.5}
    total = sum(parts.values())
    assert prediction.probabilities == pytest.approx({name: part / total for name, part in parts.items()})
    assert list(prediction.probabilities) == list(NAMES)
    assert prediction.label == "workflow"
    assert prediction.confidence == prediction.probabilities["workflow"]
    assert prediction.trace[1].reason == "confidence 0.51 reaches 0.50, pooled with first"
    assert prediction.trace[1].label == "workflow"


def test_where_a_pooled_stage_has_not_answered_a_stage_speaks_for_itself() -> None:
    def broken(text: str) -> Answer:
        raise BackendError("no luck")

    prediction = pooling(Stage(FakeClassifier(broken), name="first")).classify("a")
    assert prediction.label == "prompt"
    assert prediction.confidence == pytest.approx(0.6)
    assert prediction.trace[1].reason == "confidence 0.60 reaches 0.00"


def test_a_stage_that_abstains_does_so_with_a_pool_and_counts_in_one() -> None:
    abstaining = FakeClassifier("prompt", confidence=0.6, min_confidence=0.8)
    router = ConfidenceRouter(
        [
            Stage(abstaining, name="first"),
            Stage(abstaining, name="second", pool={"first": 9, "second": 9}),
            Stage(says("prompt", 0.6), name="last", pool={"first": 1.0, "last": 1.0}),
        ]
    )
    prediction = router.classify("a")
    assert [step.outcome for step in prediction.trace] == ["abstained", "abstained", "accepted"]
    assert prediction.confidence == pytest.approx(0.36 / (0.36 + 2 * 0.04))


# Thresholds and accepted labels


def test_one_threshold_is_reached_exactly() -> None:
    first = says("prompt", 0.8)
    exact = first.classify("a").confidence
    assert ConfidenceRouter([Stage(first, threshold=exact), LAST]).classify("a").label == "prompt"
    above = math.nextafter(exact, 1.0)
    prediction = ConfidenceRouter([Stage(first, threshold=above), LAST]).classify("a")
    assert (prediction.label, prediction.backend) == ("workflow", "fake")


def test_the_trace_says_what_each_stage_did() -> None:
    first = Stage(says("prompt", 0.6), threshold=0.8, name="small")
    prediction = ConfidenceRouter([first, Stage(says("prompt", 0.9), threshold=0.8), LAST]).classify("a")
    small, fake = prediction.trace
    assert (small.stage, small.outcome, small.label) == ("small", "below-threshold", "prompt")
    assert small.reason == "confidence 0.60 is below 0.80"
    assert small.confidence == pytest.approx(0.6)
    assert (fake.stage, fake.outcome, fake.reason) == ("fake", "accepted", "confidence 0.90 reaches 0.80")
    assert prediction.latency_ms == pytest.approx(small.latency_ms + fake.latency_ms)
    assert small.latency_ms > 0


@pytest.mark.parametrize(
    ("label", "confidence", "taken"),
    [("command", 0.89, False), ("command", 0.91, True), ("prompt", 0.4, True), ("workflow", 0.99, False)],
)
def test_one_threshold_a_label(label: str, confidence: float, taken: bool) -> None:
    first = Stage(says(label, confidence), threshold={"command": 0.9, "workflow": 1.0})
    prediction = ConfidenceRouter([first, says("prompt", 0.5)]).classify("a")
    assert len(prediction.trace) == (1 if taken else 2)
    assert prediction.confidence == pytest.approx(confidence if taken else 0.5)


@pytest.mark.parametrize(
    ("label", "confidence", "outcome"),
    [
        ("command", 0.995, "accepted"),
        ("command", 0.98, "below-threshold"),
        ("prompt", 0.999, "not-accepted-label"),
    ],
)
def test_accept_as_a_mapping(label: str, confidence: float, outcome: str) -> None:
    first = Stage(says(label, confidence), accept={"command": 0.99}, threshold=1.0)
    assert ConfidenceRouter([first, LAST]).classify("a").trace[0].outcome == outcome


@pytest.mark.parametrize("accept", [["command", "prompt"], ("command", "prompt"), {"command", "prompt"}])
@pytest.mark.parametrize(
    ("label", "confidence", "outcome"),
    [
        ("command", 0.7, "accepted"),
        ("prompt", 0.5, "below-threshold"),
        ("workflow", 0.9, "not-accepted-label"),
    ],
)
def test_accept_as_a_list_uses_the_threshold(accept: Any, label: str, confidence: float, outcome: str) -> None:
    first = Stage(says(label, confidence), accept=accept, threshold=0.6)
    assert ConfidenceRouter([first, LAST]).classify("a").trace[0].outcome == outcome


def test_an_empty_accept_takes_nothing() -> None:
    prediction = ConfidenceRouter([Stage(says("command"), accept=[]), LAST]).classify("a")
    assert prediction.trace[0].reason == "answers with the label command are not taken here"
    assert prediction.label == "workflow"


# The end of the chain


def test_the_last_stage_always_answers() -> None:
    last = Stage(says("prompt", 0.5), threshold=1.0, accept={"command": 1.0})
    prediction = ConfidenceRouter([last]).classify("a")
    assert prediction.label == "prompt"
    assert prediction.trace[0].reason == "the last stage always answers"


@pytest.mark.parametrize("confidences", [(0.6, 0.7), (0.7, 0.6), (0.7, 0.7)])
def test_the_best_earlier_proposal_is_taken_when_the_last_stage_fails(confidences: tuple[float, float]) -> None:
    first, second = (Stage(says(NAMES[i], confidences[i]), threshold=0.9, name=NAMES[i]) for i in range(2))
    last = FakeClassifier(lambda text: BackendError("down"))
    prediction = ConfidenceRouter([first, second, last]).classify("a")
    assert prediction.label == NAMES[confidences.index(max(confidences))], "the earliest of equals"
    assert [outcome for _, outcome in outcomes(prediction)] == ["below-threshold", "below-threshold", "failed"]


def test_an_abstention_is_a_proposal_when_the_last_stage_fails() -> None:
    first = FakeClassifier("prompt", confidence=0.5, min_confidence=0.6)
    prediction = ConfidenceRouter([first, FakeClassifier(lambda text: BackendError("down"))]).classify("a")
    assert (prediction.label, outcomes(prediction)[0]) == ("prompt", ("fake", "abstained"))


def test_no_stage_could_answer() -> None:
    down = FakeClassifier(lambda text: BackendError("the server is down"))
    broken = Stranger(lambda texts: 1 / 0)
    with pytest.raises(BackendError) as caught:
        ConfidenceRouter([Stage(down, name="near"), Stage(broken, name="far"), "nowhere:x"]).classify("a")
    message = str(caught.value)
    assert message.startswith("No stage of the router could answer. near: the server is down; far: raised ZeroDivision")
    assert "nowhere:x: No backend 'nowhere'; installed are: " in message
    assert message.count(";") >= 2
    assert not message.endswith("..")


def test_a_stage_that_abstains_passes_on() -> None:
    first = FakeClassifier("prompt", confidence=0.5, min_confidence=0.6)
    prediction = ConfidenceRouter([first, LAST]).classify("a")
    assert prediction.trace[0].reason == "it abstained at confidence 0.50"
    assert prediction.trace[0].label is None
    assert (prediction.label, outcomes(prediction)[1]) == ("workflow", ("fake", "accepted"))


def test_a_last_stage_that_abstains_answers_all_the_same() -> None:
    last = FakeClassifier("prompt", confidence=0.5, min_confidence=0.6)
    assert ConfidenceRouter([last]).classify("a").label == "prompt"


def test_min_confidence_abstains_and_keeps_the_probabilities() -> None:
    last = says("prompt", 0.5)
    exact = last.classify("a").confidence
    assert ConfidenceRouter([last], min_confidence=exact).classify("a").label == "prompt"
    prediction = ConfidenceRouter([last], min_confidence=0.6).classify("a")
    assert prediction.label is None
    assert prediction.confidence == exact
    assert prediction.probabilities == pytest.approx({"command": 0.25, "prompt": 0.5, "workflow": 0.25})
    assert outcomes(prediction) == [("fake", "accepted")]


# Batches


def test_a_batch_sends_on_only_what_was_not_accepted_and_keeps_the_order() -> None:
    sure: dict[str, Answer] = {"/a": "command", "b": ("prompt", 0.6), "c": ("workflow", 0.7), "/d": "command"}
    first, second, third = FakeClassifier(sure), FakeClassifier({**sure, "b": "prompt"}), says("workflow", 0.5)
    router = ConfidenceRouter([Stage(first, accept={"command": 0.9}), Stage(second, threshold=0.9), third])
    predictions = router.classify_batch(["/a", "b", "c", "/d", "c"])
    assert [p.label for p in predictions] == ["command", "prompt", "workflow", "command", "workflow"]
    assert [len(p.trace) for p in predictions] == [1, 2, 3, 1, 3]
    assert first.asked == ["/a", "b", "c", "/d", "c"]
    assert second.asked == ["b", "c", "c"]
    assert third.asked == ["c", "c"]


def test_a_stage_that_nothing_reaches_is_not_asked() -> None:
    def never(texts: list[str]) -> object:
        raise AssertionError("asked for nothing")

    assert ConfidenceRouter([says("command"), Stranger(never)]).classify("a").label == "command"


def test_an_empty_batch_asks_nobody() -> None:
    fake = says("prompt")
    assert ConfidenceRouter([fake]).classify_batch([]) == []
    assert fake.asked == []


def test_texts_may_come_from_a_generator() -> None:
    router = ConfidenceRouter([says("prompt")])
    assert router.predict(text for text in ("a", "b")) == ["prompt", "prompt"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", ""], "Text 2 of 2: The text to classify is empty"),
        (["a", " \n"], "Text 2 of 2: The text to classify is empty"),
        (["a", None], "Text 2 of 2: A text to classify must be a str; found NoneType"),
        ([b"a"], "A text to classify must be a str; found bytes"),
        ("a", "Expected a list of texts; found a single one"),
    ],
)
def test_bad_input_is_refused_before_any_stage_is_asked(texts: Any, message: str) -> None:
    fake = says("prompt")
    router = ConfidenceRouter([fake, fake])
    with pytest.raises(InputError) as caught:
        router.classify_batch(texts)
    assert message in str(caught.value)
    assert fake.asked == []
    assert router.breakers == ["closed", "closed"]


# The same answer, whoever gives it


def test_probabilities_come_in_the_routers_order() -> None:
    turned = FakeClassifier("prompt", confidence=0.6, task=Task(reversed(NAMES)))
    assert turned.classes_ == ["workflow", "prompt", "command"]
    router = ConfidenceRouter([turned])
    assert list(router.classify("a").probabilities) == router.classes_ == list(NAMES)
    assert router.predict_proba(["a"]) == [pytest.approx([0.2, 0.6, 0.2])]


def test_a_router_scores_as_a_classifier_does() -> None:
    router = ConfidenceRouter([says("prompt", 0.6)])
    (scores,) = router.score_batch(["a"])
    assert [math.exp(value) for value in scores.log_probabilities] == pytest.approx([0.2, 0.6, 0.2])
    sure = ConfidenceRouter([says("prompt", 1.0)]).score_batch(["a"])[0]
    assert all(math.isfinite(value) for value in sure.log_probabilities)


def test_what_the_stage_found_out_is_kept() -> None:
    found = Prediction("prompt", 0.6, dict.fromkeys(NAMES, 0.2) | {"prompt": 0.6}, "x", True, True, 5.0, 0.9, "rule-7")
    prediction = ConfidenceRouter([Stranger(lambda texts: [found])]).classify("a")
    assert (prediction.backend, prediction.calibrated, prediction.truncated) == ("x", True, True)
    assert (prediction.label_mass, prediction.rule) == (0.9, "rule-7")
    assert prediction.latency_ms != 5.0


def test_nested_routers_flatten_their_traces() -> None:
    inner = ConfidenceRouter([Stage(says("prompt", 0.6), threshold=0.9, name="a"), Stage(says("command"), name="b")])
    middle = ConfidenceRouter([Stage(inner, name="inner")])
    outer = ConfidenceRouter([Stage(middle, name="outer"), LAST])
    prediction = outer.classify("x")
    assert outcomes(prediction) == [
        ("outer", "accepted"),
        ("outer/inner", "accepted"),
        ("outer/inner/a", "below-threshold"),
        ("outer/inner/b", "accepted"),
    ]
    assert prediction.latency_ms == prediction.trace[0].latency_ms
    assert prediction.backend == "fake"


def test_a_slash_in_a_stages_name_does_not_hide_its_time() -> None:
    prediction = ConfidenceRouter([Stage(says("prompt"), name="transformers:runs/x/merged")]).classify("a")
    assert prediction.latency_ms == prediction.trace[0].latency_ms > 0


def test_a_nested_router_that_cannot_answer_is_one_failure() -> None:
    down = FakeClassifier(lambda text: BackendError("down"))
    prediction = ConfidenceRouter([Stage(ConfidenceRouter([down]), name="inner"), LAST]).classify("a")
    assert outcomes(prediction) == [("inner", "failed"), ("fake", "accepted")]
    assert prediction.trace[0].reason == "No stage of the router could answer. fake: down."


# What a router is made of


def test_stages_may_be_specifications_and_classifiers() -> None:
    router = ConfidenceRouter(["fake:command", says("prompt"), Stage("rules")])
    assert [stage.name for stage in router.stages] == ["fake:command", "fake", "rules"]
    assert router.classify("a").label == "command"


def test_stages_get_the_routers_task_and_their_own_options() -> None:
    task = Task(["billing", "sales"])
    router = ConfidenceRouter([Stage("fake:sales", options={"confidence": 0.75})], task=task)
    prediction = router.classify("a")
    assert prediction.probabilities == pytest.approx({"billing": 0.25, "sales": 0.75})
