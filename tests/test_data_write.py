"""Rows written by a model: what it is asked, which answers are kept, and how a run goes on after a stop."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from smolcls import build
from smolcls.backends.fake import FakeClassifier
from smolcls.data.rows import Row, read_rows
from smolcls.data.write import STYLES, Settings, ask, parse, write
from smolcls.errors import BackendError, ConfigError, InputError
from smolcls.task import Task

TASK = Task({"question": "asks for knowledge", "order": "asks for something to be done"}, max_text_bytes=200)

WORDS = [
    f"{head}{tail}"
    for head in ("am", "ba", "co", "da", "em", "fjo", "gar", "he")
    for tail in ("st", "ld", "x", "vo", "k")
]


class Scripted:
    """A generator that answers what a function makes of the prompt, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, int, int]] = []

    def generate(self, prompt: str, seed: int, max_tokens: int) -> str:
        self.asked.append((prompt, seed, max_tokens))
        return self.answer(prompt, seed)

    def close(self) -> None:
        pass


def fresh(prompt: str, seed: int) -> str:
    """As many new texts as were asked for, each unlike all others."""
    match = re.search(r"Write (\d+) different", prompt)
    assert match
    return "\n".join(
        f"{n}. {WORDS[(seed + 7 * n) % 40]}{seed} {WORDS[(seed // 40 + n) % 40]}{n}"
        for n in range(1, int(match[1]) + 1)
    )


def label_of(prompt: str) -> str:
    match = re.search(r"that get the label (\w+) and no other", prompt)
    assert match
    return match[1]


def test_the_file_gets_as_many_rows_of_each_label_as_were_asked_for(tmp_path: Path) -> None:
    path, told = tmp_path / "sub" / "rows.jsonl", []
    written = write(TASK, Scripted(fresh), path, 21, progress=lambda done, total: told.append((done, total)))
    rows = read_rows(path)
    assert written.rows == {"question": 11, "order": 10}
    assert (written.given_up, written.rejected) == ((), {})
    assert len({row.text for row in rows}) == 21
    assert {row.origin for row in rows} == {"llm"}
    assert all(row.family.startswith("llm-") for row in rows)
    assert len({row.family for row in rows}) == written.calls == 4
    assert told == [(0, 21), *((len(rows[:end]), 21) for end in (8, 16, 19, 21))]


def test_the_model_is_asked_with_the_tasks_definitions_in_varied_styles(tmp_path: Path) -> None:
    generator = Scripted(fresh)
    examples = [Row(f"what is a {word} made of", "question") for word in WORDS[:9]]
    write(TASK, generator, tmp_path / "rows.jsonl", 80, settings=Settings(examples=examples, max_tokens=77))
    prompts = [prompt for prompt, _, _ in generator.asked]
    assert all("- question: asks for knowledge\n- order: asks for something to be done" in prompt for prompt in prompts)
    assert len({style for style in STYLES for prompt in prompts if style in prompt}) > 3
    assert len({seed for _, seed, _ in generator.asked}) == len(prompts)
    assert {most for _, _, most in generator.asked} == {77}
    for prompt in prompts:
        shown = sum(f"- {row.text}" in prompt for row in examples)
        assert shown == (4 if label_of(prompt) == "question" else 0)


def test_the_message_to_the_model() -> None:
    assert ask(Task(["a", "b"]), "b", "terse", [Row("one\n two", "b")], 3) == (
        "Inputs are sorted into these labels:\n- a\n- b\n\n"
        "Write 3 different inputs that get the label b and no other.\nThey are terse.\nSuch as:\n- one two\n"
        "Vary subject and wording. Answer with a numbered list of 3 lines, one input a line, nothing else."
    )


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("1. run it\n2) stop it\n 3: /help", ["run it", "stop it", "/help"]),
        ("Sure! Here they are:\n\n- run it\n* stop it\nHope that helps.", ["run it", "stop it"]),
        ('1. "run it"\n2. “stop it”\n3. **go**', ["run it", "stop it", "go"]),
        ('1. say "a" or "b"\n2. "a" and "b"', ['say "a" or "b"', '"a" and "b"']),
        ('["run it", "stop it"]', ["run it", "stop it"]),
        ("run it\nstop it\n\ngo on\nand on", ["run it", "stop it", "go on", "and on"]),
        ("I cannot help with that.", []),
        ("1. a\n2. b\n3. c\n4. d\n5. e", ["a", "b", "c", "d"]),
        ("[1, 2]", []),
        ("1. ", []),
        ("", []),
    ],
)
def test_texts_are_taken_from_the_answer(answer: str, texts: list[str]) -> None:
    assert parse(answer, 4, 100) == texts


def test_an_answer_that_may_have_been_cut_loses_its_last_text() -> None:
    assert parse("1. explain the whole of it\n2. remove the fil", 4, 20) == ["explain the whole of it"]
    assert parse("1. explain the whole of it\n2. remove the fil", 2, 20)[1] == "remove the fil"


def test_what_is_unfit_is_left_out_and_counted(tmp_path: Path) -> None:
    bad = [
        "x" * 201,  # longer than the task allows
        "asks for knowledge",  # copied from the question
        "please tell me about the tides of the northern sea",
        "please tell me about the tides of the northern seas",
        "why do rivers bend so much in the plains",  # near to what must be avoided
    ]

    def answer(prompt: str, seed: int) -> str:
        return "\n".join(f"- {text}" for text in bad) if label_of(prompt) == "question" else fresh(prompt, seed)

    settings = Settings(avoid=["why do rivers bend so much in the plain?"], patience=3)
    written = write(TASK, Scripted(answer), tmp_path / "rows.jsonl", 4, settings=settings)
    assert written.given_up == ("question",)
    assert written.rows == {"question": 1, "order": 2}
    # Asked four times in all: once with a new text, three times in vain.
    assert written.rejected == {"too-long": 4, "echo": 4, "near-copy": 2 + 3 * 3}
    kept = [row.text for row in read_rows(tmp_path / "rows.jsonl") if row.label == "question"]
    assert kept == ["please tell me about the tides of the northern sea"]


def test_a_classifier_may_have_to_agree(tmp_path: Path) -> None:
    judge = FakeClassifier(lambda text: "order" if "2" in text.split()[-1] else "question", task=TASK)
    written = write(TASK, Scripted(fresh), tmp_path / "rows.jsonl", 12, settings=Settings(agree=judge))
    rows = read_rows(tmp_path / "rows.jsonl")
    assert written.rejected["disagreement"] > 0
    assert all((row.label == "order") == row.text.endswith("2") for row in rows)
    assert [row.text for row in rows if row.text not in judge.asked] == []


def stopping(after: int) -> Scripted:
    """A generator that fails for good after some calls, as a server that went away."""
    generator = Scripted(fresh)

    def answer(prompt: str, seed: int) -> str:
        if len(generator.asked) > after:
            raise BackendError("the server went away")
        # Every third answer is of no use, so that failed calls are part of the story.
        return "no" if seed % 3 == 0 else fresh(prompt, seed)

    generator.answer = answer
    return generator


@pytest.mark.parametrize("after", [0, 1, 2, 4, 5])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, after: int) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write(TASK, stopping(1000), whole, 40)
    with pytest.raises(BackendError, match="the server went away"):
        write(TASK, stopping(after), broken, 40)
    # Killed in the middle of a line, too.
    with broken.open("ab") as stream:
        stream.write(b'{"text": "half a ro')
    write(TASK, stopping(1000), broken, 40)
    assert broken.read_bytes() == whole.read_bytes()


def test_a_file_that_is_complete_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(TASK, Scripted(fresh), path, 10)
    before, generator = path.read_bytes(), Scripted(fresh)
    assert write(TASK, generator, path, 10).calls == 0
    assert (generator.asked, path.read_bytes()) == ([], before)
    assert write(TASK, generator, path, 14).rows == {"question": 7, "order": 7}
    assert path.read_bytes().startswith(before)


def test_a_file_of_another_task_or_form_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x", "label": "other"}\n')
    with pytest.raises(
        ConfigError, match=r"holds a row of the label 'other'; expected rows of the task 'task' \(quest"
    ):
        write(TASK, Scripted(fresh), path, 10)
    path.write_text("hello\n")
    with pytest.raises(InputError, match="line 1: expected a JSON object"):
        write(TASK, Scripted(fresh), path, 10)
    assert path.read_text() == "hello\n"


@pytest.mark.parametrize("count", [1, 0, -3, True, 2.5])
def test_a_count_too_small_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigError, match="count must be a whole number of at least 2, a row for each label; found"):
        write(TASK, Scripted(fresh), tmp_path / "rows.jsonl", count)


def test_settings_out_of_their_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patience must be at least 1; found 0"):
        write(TASK, Scripted(fresh), tmp_path / "rows.jsonl", 4, settings=Settings(patience=0))
    with pytest.raises(ConfigError, match="styles must name a style at least; found none"):
        write(TASK, Scripted(fresh), tmp_path / "rows.jsonl", 4, settings=Settings(styles=()))


@pytest.mark.model
@pytest.mark.skipif(
    not build.has_bundled_base() or importlib.util.find_spec("llama_cpp") is None, reason="needs the extra local"
)
def test_the_bundled_model_writes_rows(tmp_path: Path) -> None:
    from smolcls.data.generate import open_generator

    generator = open_generator("llamacpp")
    try:
        one, again = (generator.generate("Name three colours, one a line.", 5, 12) for _ in range(2))
        assert one == again
        assert generator.generate("Name three colours, one a line.", 6, 12) != one
        settings = Settings(per_call=3, max_tokens=40, patience=2)
        written = write(TASK, generator, tmp_path / "rows.jsonl", 2, settings=settings)
    finally:
        generator.close()
    # So small a model seldom keeps to the form; what there is of it is whole rows.
    assert written.calls >= 2
    path = tmp_path / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    assert len(rows) == sum(written.rows.values())
    assert all(row["origin"] == "llm" and row["label"] in TASK.names for row in rows)
