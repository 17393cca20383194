"""What `smolcls classify` makes of lines and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import classify, objects, run

import smolcls
from smolcls import lines, registry
from smolcls.backends.fake import Answer, FakeClassifier


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Answer]], FakeClassifier]:
    """Make `--backend fake` answer by a function, and return the classifier that it is."""

    def answering(answer: Callable[[str], Answer]) -> FakeClassifier:
        classifier = FakeClassifier(answer)
        monkeypatch.setattr(registry, "load", lambda spec, task: classifier)
        return classifier

    return answering


def test_json_lines_keep_their_keys_but_for_those_of_an_answer() -> None:
    row = {"id": 7, "text": "a", "label": "gold", "rule": "stale", "error": "old", "n": None}
    (answer,) = objects(classify("--json", stdin=json.dumps(row) + "\n"))
    assert (answer["id"], answer["n"], answer["label"]) == (7, None, "workflow")
    assert "rule" not in answer
    assert "error" not in answer


def test_a_text_may_begin_with_a_brace() -> None:
    texts = ["{% if x %} is this right?", '{"a": 1} is this JSON?', '{"a":' * 100_000]
    assert [row["text"] for row in objects(classify("--json", stdin="\n".join(texts)))] == texts


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"txt": "a", "id": 1}', 'Line 2: expected an object with a non-empty "text"; found {"txt": "a", "id": 1}'),
        (b'{"text": " ", "id": 1, "label": "x"}', 'Line 2: expected an object with a non-empty "text"'),
        (b'{"text": 5, "id": 1}', 'found {"text": 5, "id": 1}'),
        (b"caf\xe9", "Line 2: expected UTF-8; found the byte 0xe9. Convert the text, for example with: iconv"),
        (b"a" * (lines.LONGEST + 1), f"Line 2: expected at most {lines.LONGEST} bytes; found {lines.LONGEST + 2}"),
    ],
)
def test_a_bad_line_is_an_error_object_and_the_others_are_answered(line: bytes, expected: str) -> None:
    result = classify("--json", stdin=b"one\n" + line + b"\nthree\n")
    first, bad, third = objects(result)
    assert (first["label"], third["text"], third["label"]) == ("workflow", "three", "workflow")
    assert expected in bad["error"]
    assert "label" not in bad
    assert bad.get("id") == (1 if b"id" in line else None)
    assert result.stderr == "smolcls: 1 of 3 lines could not be answered.\n"
    assert result.exit_code == 1


def test_standard_input_stays_open_even_where_the_model_is_missing(
    fake: Callable[[Callable[[str], Answer]], FakeClassifier],
) -> None:
    fake(lambda text: smolcls.ModelError("no model; get one with: x") if text == "one" else "prompt")
    first, second = objects(run("classify", "--backend", "fake", "--json", stdin="one\ntwo\n"))
    assert first == {"text": "one", "error": "Line 1: no model; get one with: x"}
    assert second["label"] == "prompt"


def test_a_bad_line_stands_on_standard_error_for_people() -> None:
    result = classify(stdin='{"a": 1}\nb\n')
    assert result.stdout.split()[-1] == "b"
    assert 'smolcls: Line 1: expected an object with a non-empty "text"; found {"a": 1}\n' in result.stderr


def test_json_output_has_one_line_end_for_every_kind_of_reader() -> None:
    odd = ["line\u2028separator", "next\x85line", "half a pair \ud83d", "zażółć 🚀"]
    result = classify("--json", stdin="".join(json.dumps({"text": text}) + "\n" for text in odd))
    assert [row["text"] for row in objects(result)] == odd
    assert "zażółć 🚀" in result.stdout


def test_what_json_does_not_have_or_cannot_nest_does_not_end_the_process() -> None:
    deep = [f'{{"text": "{depth}", "k": {"[" * depth}{"]" * depth}}}' for depth in range(880, 1000, 3)]
    result = classify("--json", stdin="\n".join(['{"text": "a", "score": NaN}', *deep]))
    assert result.exit_code == 0
    assert objects(result)[0]["score"] is None
    assert len(objects(result)) == 1 + len(deep)


# Files


def test_a_file_with_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbf/help\r\n\r\n" + b'{"text": "b", "id": 2}\r\nc')
    rows = objects(classify("--json", "--file", str(path)))
    assert [(row["text"], row.get("id")) for row in rows] == [("/help", None), ("b", 2), ("c", None)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "texts.txt holds no text. Expected one text or JSON object a line."),
        (b"\n \r\n", "texts.txt holds no text."),
        (
            "one\n".encode("utf-16"),
            "smolcls: Expected UTF-8; found UTF-16. Convert it, for example with: iconv -f UTF-16",
        ),
    ],
)
def test_a_file_without_texts_is_wrong_usage(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    result = classify("--file", str(path))
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""


def test_no_standard_input_at_all_is_no_error() -> None:
    assert classify(stdin="").exit_code == 0


def test_one_text_that_fails_does_not_cost_its_batch_the_answers(
    tmp_path: Path, fake: Callable[[Callable[[str], Answer]], FakeClassifier]
) -> None:
    fake(lambda text: smolcls.BackendError("no answer") if text == "text 3" else "prompt")
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"text {number}\n" for number in range(150)))
    result = run("classify", "--backend", "fake", "--json", "--file", str(path))
    rows = objects(result)
    assert [row.get("label") for row in rows] == [None if number == 3 else "prompt" for number in range(150)]
    assert rows[3] == {"text": "text 3", "error": "Line 4: no answer"}
    assert "1 of 150 lines could not be answered" in result.stderr
    assert result.exit_code == 1


def test_a_file_ends_where_the_backend_cannot_be_used_at_all(
    tmp_path: Path, fake: Callable[[Callable[[str], Answer]], FakeClassifier]
) -> None:
    classifier = fake(lambda text: smolcls.ModelError("no model; get one with: x"))
    path = tmp_path / "texts.txt"
    path.write_text("text\n" * 200)
    result = run("classify", "--backend", "fake", "--file", str(path))
    assert (result.exit_code, result.stderr) == (1, "smolcls: no model; get one with: x\n")
    assert len(classifier.asked) == 64
