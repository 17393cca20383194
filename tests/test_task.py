"""Tasks: what may stand in one, its fingerprint, and its file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from smolcls import ConfigError, Label, Task
from smolcls.task import as_task, check_keys


def test_labels_as_names_labels_or_a_mapping() -> None:
    named = Task(["spam", "ham"])
    assert named.names == ("spam", "ham")
    assert named == Task([Label("spam"), "ham"]) == Task({"spam": "", "ham": ""}) == Task(iter(["spam", "ham"]))
    described = Task({"spam": "unwanted", "ham": "wanted"})
    assert [label.description for label in described.labels] == ["unwanted", "wanted"]


def test_the_usual_instruction_names_the_labels_in_order() -> None:
    assert Task(["a", "b"]).instruction == "Classify the input: a or b."
    assert Task(["c", "a", "b"]).instruction == "Classify the input: c, a or b."


def test_the_shipped_task() -> None:
    task = Task.load("three-type")
    assert task.names == ("command", "prompt", "workflow")
    assert task.instruction == "Classify the input: command, prompt or workflow."
    assert task.max_text_bytes == 1000
    assert task.rules is not None
    assert task.rules.name == "three_type.rules.toml"
    assert as_task(None) is as_task("three-type") is as_task(task) is task


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("spam", r"Task\(labels=…\) takes a list of labels; found 'spam'"),
        (5, r"Task\(labels=…\) takes a list of labels; found 5"),
        (["spam"], r"at least two labels; found \['spam'\]"),
        ([], "at least two labels"),
        (["a", "b", "a"], "labels must differ; found twice: a"),
        (["a", ""], "non-empty text without blanks around it; found ''"),
        (["a", "b "], "non-empty text without blanks around it; found 'b '"),
        (["a", "\u2003b"], "without blanks around it"),
        (["a", 5], "non-empty text without blanks around it; found 5"),
        (["a", "b\nc"], "A label's name must not hold control characters"),
        (["a", "b\x7f"], "A label's name must not hold control characters"),
        (["a", "b\ud800"], "A label's name must not hold control characters or lone surrogates"),
        ({"a": "x", "b": "y\0"}, "The description of the label 'b' must not hold control characters"),
        ({"a": "x", "b": 5}, "The description of the label 'b' must be a text; found 5"),
    ],
)
def test_unusable_labels(labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "A task's name must be 1 to 64 of the letters A to Z.*found ''"),
        ({"name": "-rf"}, "start with a letter or digit; found '-rf'"),
        ({"name": "größe"}, "found 'größe'"),
        ({"name": "a/b"}, "found 'a/b'"),
        ({"name": "a" * 65}, "A task's name must be 1 to 64"),
        ({"name": None}, "found None"),
        ({"instruction": "  "}, "instruction must say what to do, or be left out"),
        ({"instruction": 5}, "A task's instruction must be a text; found 5"),
        ({"instruction": "say\0"}, "A task's instruction must not hold control characters"),
        ({"instruction": "say \udfff"}, "A task's instruction must not hold control characters or lone surrogates"),
        ({"describe_labels": "no"}, "describe_labels must be True or False; found 'no'"),
        ({"max_text_bytes": 63}, "whole number of at least 64; found 63"),
        ({"max_text_bytes": True}, "whole number of at least 64; found True"),
        ({"max_text_bytes": 100.0}, "whole number of at least 64; found 100.0"),
    ],
)
def test_unusable_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task(["a", "b"], **options)


def test_the_fingerprint_changes_with_what_the_answer_depends_on() -> None:
    base = Task({"a": "x", "b": "y"}, name="one", rules="rules.toml")
    assert base.fingerprint == Task({"a": "x", "b": "y"}, name="two").fingerprint
    others = [
        Task({"b": "y", "a": "x"}),
        Task({"a": "x", "b": "z"}),
        Task({"a": "x", "b": "y"}, instruction="Sort it."),
        Task({"a": "x", "b": "y"}, describe_labels=False),
        Task({"a": "x", "b": "y"}, max_text_bytes=500),
    ]
    assert len({base.fingerprint, *(task.fingerprint for task in others)}) == 6
    assert len(base.fingerprint) == 16


def test_a_task_is_a_value() -> None:
    task = Task(["a", "b"], name="one")
    assert pickle.loads(pickle.dumps(task)) == task
    assert len({task, Task(["a", "b"], name="one")}) == 1
    with pytest.raises(AttributeError):
        task.name = "two"  # type: ignore[misc]


FILE = """
name = "mail"
instruction = "Is it wanted?"
describe_labels = true
max_text_bytes = 300
rules = "mail.rules.toml"

[labels]
spam = "unwanted"
ham = "wanted"
"""


def test_a_task_file(tmp_path: Path) -> None:
    path = tmp_path / "mail.toml"
    path.write_text(FILE)
    task = Task.load(path)
    assert task == Task.load(str(path)) == as_task(path)
    assert task == Task(
        {"spam": "unwanted", "ham": "wanted"}, name="mail", instruction="Is it wanted?", max_text_bytes=300
    )
    assert task.rules == tmp_path / "mail.rules.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "task is not TOML: "),
        ('name = "a"', r"task must hold a table \[labels\] of label names to descriptions.*found None"),
        ("labels = ['a', 'b']", r"must hold a table \[labels\].*found \['a', 'b'\]"),
        ("[labels]\na = 1\nb = 2", r"must hold a table \[labels\]"),
        ("colour = 1\n[labels]\na = ''\nb = ''", "task has an unknown key 'colour'; known are describe_labels, instru"),
        ("max_text_bytes = true\n[labels]\na = ''\nb = ''", "task: max_text_bytes must be a int; found True"),
        ("name = 5\n[labels]\na = ''\nb = ''", "task: name must be a str; found 5"),
        ("[labels]\na = ''", "task: A task needs at least two labels"),
    ],
)
def test_a_file_that_is_no_task(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Task.from_toml(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes("name = 'größe'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml cannot be read as UTF-8 text"):
        Task.load(path)


@pytest.mark.parametrize("source", ["no-such-task", "", "x" * 5000, "a\0b", "no/such/file.toml"])
def test_a_task_that_is_not_there(source: str) -> None:
    with pytest.raises(ConfigError, match="expected one of three-type, or the path of a TOML file"):
        Task.load(source)


def test_what_is_no_task_at_all() -> None:
    with pytest.raises(ConfigError, match="A task is a Task, a name or the path of a TOML file; found 5"):
        as_task(5)  # type: ignore[arg-type]


def test_check_keys_names_the_types() -> None:
    known: Mapping[str, type | tuple[type, ...]] = {"share": (int, float), "on": bool}
    check_keys({"share": 0.5, "on": True}, known, where="file")
    with pytest.raises(ConfigError, match="file: share must be a int or float; found 'x'"):
        check_keys({"share": "x"}, known, where="file")
    with pytest.raises(ConfigError, match="file: share must be a int or float; found True"):
        check_keys({"share": True}, known, where="file")
