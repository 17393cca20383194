"""Rows: reading, writing, chats and their prefix, and the rows that ship."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smolcls.data.rows import CHAT_PREFIX, Row, chat_prefix, read_rows, scan_rows, shipped, write_rows
from smolcls.errors import ConfigError, InputError

ROWS = [
    Row("/help", "command"),
    Row("what is a monad?\nin two lines", "prompt", family="monad", origin="authored", note="a question"),
    Row("größer 🦆 \u2028 done", "workflow", family="ü"),
]


def chat(asked: str, answered: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert read_rows(tmp_path / "rows.jsonl") == ROWS
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0] == (
        '{"text": "/help", "label": "command"}'
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(st.text(st.characters(exclude_categories=()), min_size=1).filter(str.strip))
def test_any_text_comes_back(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path / "rows.jsonl", [Row(text, "a")])
    # Two halves of a surrogate pair are one character once they are JSON.
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    assert [row.text for row in read_rows(tmp_path / "rows.jsonl")] == [whole]


def test_other_keys_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "hi", "label": "prompt", "source": 3}\r\n\n  \n{"text": "/x", "label": "command"}'
    )
    assert read_rows(path) == [Row("hi", "prompt"), Row("/x", "command")]
    assert [number for number, _ in scan_rows(path)] == [1, 4]


def test_chats_are_written_as_trainers_read_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS, chat=True)
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0]) == {
        "messages": [
            {"role": "user", "content": "Classify this input: /help"},
            {"role": "assistant", "content": "command"},
        ]
    }
    assert read_rows(path) == [Row(row.text, row.label) for row in ROWS]


@pytest.mark.parametrize(
    ("messages", "prefix"),
    [
        ([CHAT_PREFIX + "/help"], CHAT_PREFIX),
        # All of them commands: the slash is the texts', though every message has it.
        ([CHAT_PREFIX + f"/{name}" for name in ("a", "b", "c", "d", "e")], CHAT_PREFIX),
        ([f"Sort it.\nInput: {name}" for name in "vwxyz"], "Sort it.\nInput: "),
        ([f"Sort it:\n{name}" for name in "vwxyz"], "Sort it:\n"),
        # Few may begin alike by chance.
        ([f"todo: {name}" for name in "xyz"], ""),
        (["fix it", "fix that", "fix this", "fix those", "fix them"], ""),
        (["fix it", "what?", "hm", "no", "yes"], ""),
        ([], ""),
    ],
)
def test_the_frame_that_messages_share_is_found(messages: list[str], prefix: str) -> None:
    assert chat_prefix(messages) == prefix


def test_a_frame_of_any_wording_is_removed(tmp_path: Path) -> None:
    asked = [f"Label: {word}" for word in ("one", "two", "three", "four", "five")]
    path = write_lines(tmp_path / "rows.jsonl", *(chat(text, " prompt\n") for text in asked))
    assert read_rows(path) == [Row(word, "prompt") for word in ("one", "two", "three", "four", "five")]


def test_a_system_message_and_a_family_are_taken_along(tmp_path: Path) -> None:
    row = chat("hi", "prompt")
    assert isinstance(row["messages"], list)
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    path = write_lines(tmp_path / "rows.jsonl", {**row, "family": "greeting"})
    assert read_rows(path) == [Row("hi", "prompt", family="greeting")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r'line 2: expected a JSON object with "text" and "label"; found not json'),
        ("[1, 2]", r'line 2: expected a JSON object with "text" and "label"; found \[1, 2\]'),
        ("[" * 100_000, r"line 2: expected a JSON object"),
        ({"label": "prompt"}, r"""line 2: expected a text that is not blank as "text"; found the keys 'label'"""),
        ({"text": " ", "label": "prompt"}, r"""expected a text that is not blank as "text"; found ' '"""),
        ({"text": "x", "label": 3}, r'expected a text that is not blank as "label"; found 3'),
        ({"text": "x", "label": "prompt", "family": 7}, r'expected a text as "family", or none; found 7'),
        ({"messages": []}, r'expected "messages" of one user and one assistant'),
        ({"messages": "hello"}, r"found 'hello'"),
        ({"messages": [{"role": "user", "content": "x"}]}, r'expected "messages" of one user and one assistant'),
        (chat(CHAT_PREFIX + " ", "prompt"), r'expected a text that is not blank as "text"'),
    ],
)
def test_a_line_that_is_no_row_is_named_and_the_others_are_read(tmp_path: Path, line: object, message: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", chat(CHAT_PREFIX + "hi", "prompt"), line, {"text": "x", "label": "y"})
    with pytest.raises(InputError, match=message) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert [isinstance(row, Row) for _, row in scan_rows(path)] == [True, False, True]


def test_bytes_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "\xff", "label": "x"}\n')
    with pytest.raises(InputError, match=r"line 1: expected a JSON object.*can't decode byte 0xff"):
        read_rows(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read: No such file.*Expected a JSONL file of rows"):
        read_rows(tmp_path / "nowhere.jsonl")


def test_the_shipped_rows_are_there() -> None:
    sizes = {split: len(shipped("three-type", split)) for split in ("train", "validation", "test")}
    assert sizes["train"] > 6000
    assert sizes["validation"] > 400
    assert sizes["test"] > 150
    assert {row.origin for row in shipped("three-type", "train")} <= {"base", "variation", "authored", "edge", "llm"}


@pytest.mark.parametrize(("task", "split"), [("other", "train"), ("three-type", "dev")])
def test_rows_that_are_not_shipped_are_refused(task: str, split: str) -> None:
    with pytest.raises(ConfigError, match=f"Rows are shipped for the tasks three-type.*found '{task}' and '{split}'"):
        shipped(task, split)
