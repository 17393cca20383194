"""What a `smolcls.toml` may say, and that a router written as one is the same when it is read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcls import ConfidenceRouter, ConfigError, Stage, Task, load_router
from smolcls.backends.fake import FakeClassifier
from smolcls.settings import dump

EVERYTHING = """
task = "three-type"
min_confidence = 0.25

[[stage]]
use = "fake:command"
name = "first"
threshold = { prompt = 0.9, workflow = 1 }
accept = { command = 0.99, prompt = 1 }
timeout = 2
retries = 3
backoff = 0.125
failures = 5
cooldown = 60
options = { confidence = 0.5, min_confidence = 0.25 }

[[stage]]
use = "fake:workflow"
threshold = 0.5
accept = ["command", "workflow"]
timeout = 0.5
pool = { first = 0.5, "fake:workflow" = 1 }

[[stage]]
use = "rules"
"""

STAGES = [
    Stage(
        "fake:command",
        name="first",
        threshold={"prompt": 0.9, "workflow": 1},
        accept={"command": 0.99, "prompt": 1},
        timeout=2,
        retries=3,
        backoff=0.125,
        failures=5,
        cooldown=60,
        options={"confidence": 0.5, "min_confidence": 0.25},
    ),
    Stage(
        "fake:workflow",
        threshold=0.5,
        accept=["command", "workflow"],
        timeout=0.5,
        pool={"first": 0.5, "fake:workflow": 1},
    ),
    Stage("rules"),
]

SPAM = Task({"spam": "unwanted mail", "ham": "the rest"}, name="mail")
SPAM_FILE = 'name = "mail"\n[labels]\nspam = "unwanted mail"\nham = "the rest"\n'


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Reading


def test_a_file_with_every_option(tmp_path: Path) -> None:
    router = load_router(written(tmp_path / "smolcls.toml", EVERYTHING))
    assert router.stages == STAGES
    assert router.min_confidence == 0.25
    assert router.task == Task.load("three-type")
    assert router.classify("a").trace[0].stage == "first"


def test_options_reach_the_backend(tmp_path: Path) -> None:
    text = '[[stage]]\nuse = "fake:prompt"\noptions = { confidence = 0.75 }\n'
    router = load_router(str(written(tmp_path / "x.toml", text)))
    assert router.classify("a").confidence == pytest.approx(0.75)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_tasks_path_is_relative_to_the_file(tmp_path: Path, elsewhere: bool) -> None:
    written(tmp_path / "conf" / "tasks" / "mail.toml", SPAM_FILE)
    name = str(tmp_path / "conf" / "tasks" / "mail.toml") if elsewhere else "tasks/mail.toml"
    path = written(tmp_path / "conf" / "smolcls.toml", f"task = '{name}'\n[[stage]]\nuse = 'fake:ham'\n")
    router = load_router(path)
    assert router.task == SPAM
    assert router.classify("a").label == "ham"


def test_a_task_that_is_given_overrides_the_files(tmp_path: Path) -> None:
    path = written(tmp_path / "x.toml", 'task = "missing.toml"\n[[stage]]\nuse = "fake:ham"\n')
    assert load_router(path, SPAM).classify("a").label == "ham"


USE = '[[stage]]\nuse = "rules"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least one [[stage]] table with a key `use`."),
        ("stage = []", "must hold at least one [[stage]] table with a key `use`."),
        ("stage = [1]", "must hold at least one [[stage]] table with a key `use`."),
        ("[stage]\nuse = 'rules'", ": stage must be a list; found {'use': 'rules'}."),
        ("[[stage]\n", "cannot be read as TOML: "),
        ("colour = 1\n" + USE, " has an unknown key 'colour'; known are min_confidence, stage, task."),
        ("task = 3\n" + USE, ": task must be a str; found 3."),
        ("task = 'no.toml'\n" + USE, ": task: No task "),
        ("min_confidence = 'high'\n" + USE, ": min_confidence must be a int or float; found 'high'."),
        ("min_confidence = 2\n" + USE, ": min_confidence must be a number between 0 and 1; found 2."),
        ("[[stage]]\nname = 'x'\n", ': stage 1 lacks the key `use`, such as use = "llamacpp".'),
        (USE + "[[stage]]\n", ": stage 2 lacks the key `use`"),
        ("[[stage]]\nuse = 7\n", ": stage 1: use must be a str; found 7."),
        (
            USE + "[[stage]]\nuse = 'rules'\nthreshhold = 1\n",
            ": stage 2 has an unknown key 'threshhold'; known are accept,",
        ),
        (USE + "threshold = '0.8'\n", ": stage 1: threshold must be a int or float or dict; found '0.8'."),
        (USE + "threshold = true\n", ": stage 1: threshold must be a int or float or dict; found True."),
        (USE + "threshold = 80\n", ": stage 1: A stage's threshold must be a number between 0 and 1; found 80."),
        (USE + "threshold = { command = 80 }\n", ": stage 1: A stage's threshold['command'] must be a number between"),
        (USE + "threshold = nan\n", ": stage 1: A stage's threshold must be a number between 0 and 1; found nan."),
        (USE + "accept = 'command'\n", ": stage 1: accept must be a dict or list; found 'command'."),
        (
            USE + "accept = [1]\n",
            ": stage 1: accept takes labels with their thresholds, or a list of labels; found [1].",
        ),
        (
            USE + "accept = ['spam']\n",
            ": The stage 'rules' names the label 'spam' in accept or threshold; the task's",
        ),
        (USE + "threshold = { spam = 1 }\n", ": The stage 'rules' names the label 'spam'"),
        (USE + "timeout = 0\n", ": stage 1: A stage's timeout must be a number of seconds above 0"),
        (
            USE + "timeout = inf\n",
            ": stage 1: A stage's timeout must be a number of seconds above 0, at most 1e9; found",
        ),
        (USE + "retries = 1.5\n", ": stage 1: retries must be a int; found 1.5."),
        (USE + "retries = -1\n", ": stage 1: A stage's retries must be a whole number of at least 0; found -1."),
        (USE + "failures = 0\n", ": stage 1: A stage's failures must be a whole number of at least 1; found 0."),
        (USE + "cooldown = -1\n", ": stage 1: A stage's cooldown must be a number of seconds of at least 0"),
        (USE + "options = 'x'\n", ": stage 1: options must be a dict; found 'x'."),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "x.toml", text)
    with pytest.raises(ConfigError) as caught:
        load_router(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_router(path)
        assert str(caught.value).startswith(f"{path} cannot be read as TOML: ")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n" + USE.encode())
    with pytest.raises(ConfigError, match=r"latin\.toml cannot be read as TOML: 'utf-8' codec"):
        load_router(tmp_path / "latin.toml")


# Writing


def test_dump_writes_what_differs_and_nothing_else() -> None:
    router = ConfidenceRouter([Stage("rules", accept={"command": 0.99}), "llamacpp:model.gguf", "rules"])
    assert dump(router) == (
        'task = "three-type"\n\n[[stage]]\nuse = "rules"\naccept = { "command" = 0.99 }\n\n'
        '[[stage]]\nuse = "llamacpp:model.gguf"\n\n[[stage]]\nuse = "rules"\n'
    )


def test_dump_and_load_every_option(tmp_path: Path) -> None:
    router = ConfidenceRouter(STAGES, min_confidence=0.25)
    again = load_router(written(tmp_path / "x.toml", dump(router)))
    assert (again.stages, again.min_confidence, again.task) == (router.stages, 0.25, router.task)
    assert dump(again) == dump(router)


@pytest.mark.parametrize("value", [True, False, 3, 0.1, 1e-300, "a", [1, "b", [True]], {"x": {"y": [1.5]}}, {}])
def test_dump_writes_options_of_every_type(tmp_path: Path, value: object) -> None:
    router = ConfidenceRouter([Stage("fake", options={"value": value, "odd key": 1})])
    again = load_router(written(tmp_path / "x.toml", dump(router)))
    assert again.stages == router.stages
    assert type(again.stages[0].options["value"]) is type(value)


def test_dump_writes_paths_sets_tuples_and_numpys_numbers(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    stage = Stage(
        "fake",
        threshold=numpy.float64(0.5),
        accept={"workflow", "command"},
        options={"model": Path("a/b"), "at": (1, 2)},
    )
    (again,) = load_router(written(tmp_path / "x.toml", dump(ConfidenceRouter([stage])))).stages
    assert (again.threshold, again.accept) == (0.5, ["command", "workflow"])
    assert again.options == {"model": str(Path("a/b")), "at": [1, 2]}


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_dump_escapes_any_text(name: str, value: str) -> None:
    router = ConfidenceRouter([Stage("fake", name=name, options={value: value})])
    (table,) = tomllib.loads(dump(router))["stage"]
    expected: dict[str, Any] = {"use": "fake", "name": name, "options": {value: value}}
    assert {"name": "fake", **table} == expected


def test_dump_needs_the_file_of_a_task_of_ones_own(tmp_path: Path) -> None:
    router = ConfidenceRouter(["fake:ham"], task=SPAM)
    with pytest.raises(ConfigError, match=r"The task 'mail' is not one that smolcls ships; say where its file is"):
        dump(router)
    with pytest.raises(ConfigError, match="The task 'three-type' is not one that smolcls ships"):
        dump(ConfidenceRouter(["fake:a"], task=Task(["a", "b"], name="three-type")))
    written(tmp_path / "mail.toml", SPAM_FILE)
    again = load_router(written(tmp_path / "x.toml", dump(router, task_file="mail.toml")))
    assert again.task == SPAM


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (FakeClassifier(), "The stage 'fake' was given as an object; only specifications can be written."),
        (Stage("fake", options={"answers": None}), "None cannot be written to a TOML file."),
        (Stage("fake", options={"answers": b"x"}), "b'x' cannot be written to a TOML file."),
    ],
)
def test_what_cannot_be_written(stage: Stage | FakeClassifier, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dump(ConfidenceRouter([stage]))
    assert str(caught.value) == message
