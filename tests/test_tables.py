"""Labelled tables: JSONL, chats, CSV and Parquet give the same rows, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smolcls import InputError
from smolcls.data.rows import Row, write_rows
from smolcls.data.tables import LabelledText, label_indices, read_table

ROWS = [
    {"text": "/help", "label": "command", "source": "a"},
    {"text": "what is it?", "label": "prompt", "source": "b"},
    {"text": "null", "label": "prompt", "source": "007"},
]
READ = [LabelledText(str(row["text"]), str(row["label"]), {"source": row["source"]}) for row in ROWS]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl_is_read_with_its_further_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    assert read_table(path) == READ
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert read_table(str(path)) == READ


def test_columns_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"utterance": "a", "intent": 3, "text": "x"}])
    assert read_table(path, text="utterance", label="intent") == [LabelledText("a", "3", {"text": "x"})]


def test_rows_may_lack_labels_where_all_do(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "a", "kind": "x"}, {"text": "b", "kind": "y"}])
    bare = [LabelledText("a", "", {"kind": "x"}), LabelledText("b", "", {"kind": "y"})]
    assert read_table(path, labelled=False) == bare
    assert read_table(path, labelled=False, where={"kind": "y"}) == bare[1:]
    assert read_table(path, labelled=False, label="kind")[1].label == "y"
    with pytest.raises(InputError, match="line 1: expected the column 'label'; found text, kind"):
        read_table(path)
    jsonl(path, [{"text": "a", "label": "x"}, {"text": "b"}])
    with pytest.raises(InputError, match="line 2: expected the column 'label'; found text"):
        read_table(path, labelled=False)


def test_chats_are_read_without_their_frame(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    write_rows(path, [Row(str(row["text"]), str(row["label"])) for row in ROWS], chat=True)
    marked = [{**json.loads(line), "source": "chat"} for line in path.read_text().splitlines()]
    found = read_table(jsonl(path, marked), where={"source": "chat", "label": "prompt"})
    assert found == [LabelledText(row.text, row.label, {"source": "chat"}) for row in READ[1:]]


def test_rows_are_chosen_by_value(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [*ROWS, {"text": "x", "label": "prompt", "fold": 2}])
    assert read_table(path, where={"label": "prompt", "source": "b"}) == READ[1:2]
    assert [row.text for row in read_table(path, where={"fold": "2"})] == ["x"]
    with pytest.raises(InputError, match="has no column 'split' to choose rows by; it has text, label, source, fold"):
        read_table(path, where={"split": "test"})
    with pytest.raises(InputError, match="no row has source=c; found the values a, b, 007, None"):
        read_table(path, where={"source": "c"})


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_list(ROWS)
    path = tmp_path / name
    if path.suffix == ".parquet":
        table.to_parquet(str(path))
    else:
        table.to_csv(str(path), sep="\t" if path.suffix == ".tsv" else ",", index=False)
    if shown:
        datasets.enable_progress_bars()
    assert read_table(path) == READ
    assert datasets.is_progress_bar_enabled() == shown


def test_a_class_label_of_parquet_is_its_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=kinds)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    capfd.readouterr()
    assert read_table(tmp_path / "rows.parquet") == [LabelledText("a", "yes"), LabelledText("b", "no")]
    assert capfd.readouterr() == ("", "")


def test_csv_texts_may_hold_quotes_commas_and_lines(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = tmp_path / "rows.csv"
    path.write_text('\ufefftext,label\n"a ""b"", c\nd",1\n', encoding="utf-8")
    assert read_table(path) == [LabelledText('a "b", c\nd', "1")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"rows.jsonl holds no rows. Expected rows with the columns \"text\" and \"label\""),
        (
            '{"text": "a"}',
            "line 1: expected the column 'label'; found text. Name the column of the labels with --label",
        ),
        ('\n{"label": "a"}', "line 2: expected the column 'text'; found label. Name the column of the texts with --te"),
        ('{"text": " ", "label": "a"}', "expected a text that is not blank as 'text'; found ' '"),
        ('{"text": "a", "label": null}', "expected a text that is not blank as 'label'; found None"),
        ('{"text": 5, "label": "a"}', "expected a text that is not blank as 'text'; found 5"),
        ("[1]", r"line 1: expected a JSON object; found \[1\]"),
        ("text,label", "line 1: expected a JSON object; found text,label"),
        ('{"messages": [{"role": "user", "content": "a"}]}', 'line 1: expected "messages" of one user and one assist'),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv holds no rows"),
        ("a.csv", "text,label\n", "a.csv holds no rows"),
        ("a.csv", "text,intent\nhi,x\n", "a.csv, row 1: expected the column 'label'; found text, intent"),
        ("a.csv", "text,label\nhi,x\n,y\n", "a.csv, row 2: expected a text that is not blank as 'text'; found ''"),
        ("a.csv", "text,label,text\na,b,c\n", "expected columns of different names; found text, label, text"),
        ("a.parquet", "nonsense", "a.parquet cannot be read as a table: "),
    ],
)
def test_what_is_wrong_in_another_format_too(tmp_path: Path, name: str, content: str, message: str) -> None:
    pytest.importorskip("datasets")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    if not name.endswith(".jsonl"):
        pytest.importorskip("datasets")
    with pytest.raises(InputError, match=f"{name} cannot be read"):
        read_table(tmp_path / name)


def test_an_unknown_label_is_named_with_its_text() -> None:
    assert label_indices(("prompt", "command"), READ) == [1, 0, 0]
    with pytest.raises(InputError, match="Expected the labels prompt, other; found 'command' at the text '/help'"):
        label_indices(("prompt", "other"), READ)
