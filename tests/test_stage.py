"""What a stage and a router may be told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from stages import Stranger

from smolcls import ConfidenceRouter, ConfigError, Stage, Task
from smolcls.backends.fake import FakeClassifier


def test_the_usual_stage_takes_every_answer_and_waits() -> None:
    stage = Stage("rules")
    assert stage.least_confidence("command") == 0.0
    assert stage.timeout is None
    assert stage.labels() == set()


def test_a_stage_is_named_after_its_specification_or_its_class() -> None:
    assert Stage("ollama:three-type").name == "ollama:three-type"
    assert Stage(FakeClassifier()).name == "fake"
    assert Stage(Stranger(lambda texts: []), name="own").name == "own"


def test_least_confidence_of_thresholds() -> None:
    assert Stage("rules", threshold=0.8).least_confidence("command") == 0.8
    by_label = Stage("rules", threshold={"command": 0.9})
    assert (by_label.least_confidence("command"), by_label.least_confidence("prompt")) == (0.9, 0.0)


def test_least_confidence_of_accepted_labels() -> None:
    mapped = Stage("rules", accept={"command": 0.9}, threshold=0.5)
    assert (mapped.least_confidence("command"), mapped.least_confidence("prompt")) == (0.9, None)
    listed = Stage("rules", accept=["command", "prompt"], threshold={"command": 0.7})
    assert [listed.least_confidence(name) for name in ("command", "prompt", "workflow")] == [0.7, 0.0, None]


def test_labels_are_all_that_the_options_name() -> None:
    assert Stage("rules", accept=["a"], threshold={"b": 0.5}).labels() == {"a", "b"}
    assert Stage("rules", accept={"a": 0.5}).labels() == {"a"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "A stage's threshold must be a number between 0 and 1; found 1.5"),
        ({"threshold": math.nan}, "A stage's threshold must be a number between 0 and 1; found nan"),
        ({"threshold": True}, "found True"),
        ({"threshold": {"command": "high"}}, "A stage's threshold['command'] must be a number between 0 and 1"),
        ({"accept": {"command": -0.1}}, "A stage's accept['command'] must be a number between 0 and 1; found -0.1"),
        ({"accept": "command"}, "accept takes labels with their thresholds, or a list of labels; found 'command'"),
        ({"accept": [1]}, "or a list of labels; found [1]"),
        ({"accept": 0.9}, "or a list of labels; found 0.9"),
        (
            {"pool": {"linear": 1.0}},
            "weights by the names of stages, its own 'rules' among them; found {'linear': 1.0}",
        ),
        ({"pool": 0.5}, "weights by the names of stages, its own 'rules' among them; found 0.5"),
        ({"pool": {"rules": 0, "linear": 0.0}}, "A stage's pool needs a weight above 0; found {'rules': 0"),
        ({"pool": {"rules": -1}}, "A stage's pool['rules'] must be a number from 0 to 100; found -1"),
        ({"pool": {"rules": math.nan}}, "A stage's pool['rules'] must be a number from 0 to 100; found nan"),
        ({"timeout": 0}, "A stage's timeout must be a number of seconds above 0, at most 1e9; found 0"),
        ({"timeout": math.inf}, "A stage's timeout must be a number of seconds above 0, at most 1e9; found inf"),
        ({"timeout": "1"}, "A stage's timeout must be a number of seconds above 0, at most 1e9; found '1'"),
        ({"timeout": True}, "found True"),
        ({"backoff": -1}, "A stage's backoff must be a number of seconds of at least 0, at most 1e9; found -1"),
        (
            {"cooldown": math.nan},
            "A stage's cooldown must be a number of seconds of at least 0, at most 1e9; found nan",
        ),
        ({"retries": -1}, "A stage's retries must be a whole number of at least 0; found -1"),
        ({"retries": 1.0}, "A stage's retries must be a whole number of at least 0; found 1.0"),
        ({"failures": 0}, "A stage's failures must be a whole number of at least 1; found 0"),
        ({"failures": True}, "A stage's failures must be a whole number of at least 1; found True"),
        ({"options": None}, "A stage's options are keyword arguments by name; found None"),
        ({"options": {1: 2}}, "A stage's options are keyword arguments by name; found {1: 2}"),
    ],
)
def test_a_stage_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Stage("rules", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConfidenceRouter([]), "A router needs at least one stage; found none."),
        (lambda: ConfidenceRouter("rules"), "A router takes a list of stages; found a single one: 'rules'."),
        (lambda: ConfidenceRouter(Stage("rules")), "found a single one: Stage("),  # type: ignore[arg-type]
        (lambda: ConfidenceRouter([7]), "A stage takes a specification or a Classifier; found 7."),  # type: ignore[list-item]
        (lambda: ConfidenceRouter(["rules"], min_confidence=1.5), "min_confidence must be a number between 0 and 1"),
        (
            lambda: ConfidenceRouter([Stage("rules", accept=["spam"])]),
            "The stage 'rules' names the label 'spam' in accept or threshold; the task's are command, prompt",
        ),
        (lambda: ConfidenceRouter([Stage("rules", threshold={"spam": 0.5})]), "names the label 'spam'"),
        (
            lambda: ConfidenceRouter(["linear", Stage("rules", pool={"onnx": 1, "rules": 1}), "onnx"]),
            "The stage 'rules' pools 'onnx', which must name one stage before it; those are linear. Name one",
        ),
        (
            lambda: ConfidenceRouter(["rules", "rules", Stage("linear", pool={"rules": 1, "linear": 1})]),
            "The stage 'linear' pools 'rules', which must name one stage before it; those are rules, rules.",
        ),
        (lambda: ConfidenceRouter([Stage("rules", accept={"spam": 0.5})]), "names the label 'spam'"),
        (
            lambda: ConfidenceRouter([FakeClassifier(task=Task(["a", "b"]))]),
            "The stage 'fake' has the labels a, b; the router's are command, prompt, workflow.",
        ),
    ],
)
def test_a_router_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
