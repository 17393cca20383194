"""Large files: answered in order and in bounded memory, stopped at any point, and gone on with."""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_files import BESIDE, FAKE, OUT, answers, faking, write_texts

import smolcls
from smolcls.backends.fake import Answer, FakeClassifier
from smolcls.jobs import Progress, classify_file
from smolcls.workers import GONE


def stopping_at(text: str, error: BaseException) -> Callable[[], FakeClassifier]:
    """A classifier that stops the whole job at a text."""

    def answer(asked: str) -> Answer:
        if asked == text:
            raise error
        return "workflow"

    return faking(answer)


@pytest.fixture
def stopped() -> Path:
    """A job of 200 texts that was stopped in its third batch: 128 answers are there."""
    source = write_texts(200)
    with pytest.raises(KeyboardInterrupt):
        classify_file(source, OUT, stopping_at("text 150", KeyboardInterrupt()))
    assert len(answers()) == 128
    return source


# A whole job


@pytest.mark.parametrize("processes", [1, 3])
def test_each_line_has_its_answer_in_order(processes: int) -> None:
    Path("in.jsonl").write_text(
        "".join(f'{{"id": {number}, "text": "text {number}"}}\n\n' for number in range(300)) + '{"id": "bad"}\nlast'
    )
    end = classify_file("in.jsonl", OUT, FAKE, processes=processes)
    rows = answers()
    assert [row.get("id") for row in rows] == [*range(300), "bad", None]
    assert [row.get("label") for row in rows] == ["workflow"] * 300 + [None, "workflow"]
    assert 'Line 601: expected an object with a non-empty "text"' in rows[300]["error"]
    size = Path("in.jsonl").stat().st_size
    assert end == Progress(rows=302, errors=1, read=size, size=size)


def test_progress_is_told_at_the_start_and_after_each_batch() -> None:
    told: list[Progress] = []
    source = write_texts(130)
    classify_file(source, OUT, FAKE, progress=told.append)
    assert [state.rows for state in told] == [0, 64, 128, 130]
    assert told[1].read == len("".join(f"text {number}\n" for number in range(64)))
    assert told[-1].read == told[-1].size == source.stat().st_size


def test_memory_does_not_grow_with_the_file() -> None:
    def peak(rows: int) -> int:
        source = write_texts(rows)
        tracemalloc.start()
        classify_file(source, OUT, lambda: smolcls.load("rules"), existing="force")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(128)  # what is loaded once
    assert peak(1500) < 1.2 * peak(300)


@pytest.mark.parametrize(("content", "expected"), [("\n \n", "texts.txt holds no text"), ("\ufeffa", None)])
def test_a_file_without_texts_leaves_no_files(content: str, expected: str | None) -> None:
    Path("texts.txt").write_bytes(content.encode("utf-8" if expected else "utf-16-le"))
    with pytest.raises(smolcls.InputError, match=expected or "Expected UTF-8; found UTF-16"):
        classify_file("texts.txt", OUT, FAKE)
    assert not OUT.exists()
    assert not BESIDE.exists()


# Going on


@pytest.mark.parametrize("tail", [b"", b'{"text": "text 128", "label": "wor', b"\xff"])
def test_a_stopped_job_goes_on_and_asks_nothing_twice(stopped: Path, tail: bytes) -> None:
    with OUT.open("ab") as stream:
        stream.write(tail)
    made: list[FakeClassifier] = []
    told: list[Progress] = []

    def make() -> FakeClassifier:
        made.append(FakeClassifier(lambda text: "workflow"))
        return made[-1]

    end = classify_file(stopped, OUT, make, existing="resume", progress=told.append)
    assert [row["text"] for row in answers()] == [f"text {number}" for number in range(200)]
    assert made[0].asked == [f"text {number}" for number in range(128, 200)]
    assert (told[0].rows, end.rows) == (128, 200)
    assert told[0].read == len("".join(f"text {number}\n" for number in range(128)))


def test_resuming_begins_what_is_not_there_and_leaves_what_is_whole() -> None:
    source = write_texts(70)
    assert classify_file(source, OUT, FAKE, existing="resume").rows == 70
    before = OUT.read_bytes()
    assert classify_file(source, OUT, FAKE, existing="resume").rows == 70
    assert OUT.read_bytes() == before


def test_errors_of_the_earlier_run_count() -> None:
    Path("in.jsonl").write_text('{"id": 1}\n' + '{"text": "a", "k": {"error": 1}}\n' * 100)
    with pytest.raises(KeyboardInterrupt):
        classify_file("in.jsonl", OUT, FAKE, progress=_interrupt_after(64))
    assert classify_file("in.jsonl", OUT, FAKE, existing="resume") == Progress(101, 1, 3310, 3310)


def _interrupt_after(rows: int) -> Callable[[Progress], None]:
    def tell(state: Progress) -> None:
        if state.rows >= rows:
            raise KeyboardInterrupt

    return tell


def test_what_is_there_is_not_replaced_without_a_word(stopped: Path) -> None:
    before = OUT.read_bytes()
    with pytest.raises(
        smolcls.InputError, match=r"answers.jsonl is there already. Give --resume to go on .* --force to"
    ):
        classify_file(stopped, OUT, FAKE)
    with pytest.raises(smolcls.ModelError):  # nor by a job that never has an answer
        classify_file(stopped, OUT, stopping_at("text 0", smolcls.ModelError("no model")), existing="force")
    assert OUT.read_bytes() == before
    assert classify_file(stopped, OUT, faking(lambda text: "prompt"), existing="force").rows == 200
    assert {row["label"] for row in answers()} == {"prompt"}


def test_answers_of_another_input_task_or_chain_are_refused(stopped: Path) -> None:
    other = smolcls.Task({"workflow": "x", "rest": "y"})
    cases: list[tuple[str, Path, Callable[[], smolcls.Classifier]]] = [
        ("input", write_texts(199, "other.txt"), FAKE),
        ("task", stopped, lambda: FakeClassifier(task=other)),
        ("classifier", stopped, lambda: smolcls.load("rules")),
        ("classifier", stopped, lambda: smolcls.ConfidenceRouter(["fake:workflow"])),
        ("classifier", stopped, functools.partial(smolcls.load, "fake", min_confidence=0.5)),
    ]
    for key, source, make in cases:
        before = OUT.read_bytes()
        with pytest.raises(smolcls.InputError, match=f"its answers are of another {key}, or that has changed since"):
            classify_file(source, OUT, make, existing="resume")
        assert OUT.read_bytes() == before


def test_the_same_chain_is_known_again_and_another_threshold_is_not() -> None:
    source = write_texts(3)

    def chain(threshold: float) -> Callable[[], smolcls.ConfidenceRouter]:
        first = smolcls.Stage("rules", accept={"command", "prompt"}, threshold=threshold)
        return lambda: smolcls.ConfidenceRouter([first, FakeClassifier()])

    classify_file(source, OUT, chain(0.5))
    classify_file(source, OUT, chain(0.5), existing="resume")
    with pytest.raises(smolcls.InputError, match="another classifier"):
        classify_file(source, OUT, chain(0.6), existing="resume")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda lines: [*lines, *lines], "answers.jsonl holds 256 answers, but the input only 200 lines"),
        (lambda lines: lines[1:], "Line 127 of answers.jsonl answers another text than line 127 of the input"),
        (lambda lines: [*lines, b"no JSON\n"], "Line 129 of answers.jsonl is no answer of smolcls"),
    ],
)
def test_answers_that_were_changed_are_refused(
    stopped: Path, edit: Callable[[list[bytes]], list[bytes]], expected: str
) -> None:
    OUT.write_bytes(b"".join(edit(OUT.read_bytes().splitlines(keepends=True))))
    with pytest.raises(smolcls.InputError, match=expected):
        classify_file(stopped, OUT, stopping_at("", KeyboardInterrupt()), existing="resume")


def test_a_file_that_is_not_a_jobs_own_is_left_alone(stopped: Path) -> None:
    BESIDE.unlink()
    OUT.write_text("my notes")
    with pytest.raises(
        smolcls.InputError, match=r"answers.jsonl.job.json, which says what .* cannot be read: .*--force"
    ):
        classify_file(stopped, OUT, FAKE, existing="resume")
    assert OUT.read_text() == "my notes"


@pytest.mark.parametrize(
    ("out", "expected"),
    [("texts.txt", "texts.txt is the input itself"), (".", r"\. is no file"), ("texts.txt/x", "cannot be written")],
)
def test_the_answers_need_a_file_of_their_own(out: str, expected: str) -> None:
    source = write_texts(3)
    with pytest.raises(smolcls.InputError, match=expected):
        classify_file(source, out, FAKE, existing="force")
    assert source.read_text() == "text 0\ntext 1\ntext 2\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"existing": "replace"}, "existing must be one of error, resume, force; found 'replace'"),
        ({"processes": 0}, "processes must be a whole number of at least 1; found 0"),
    ],
)
def test_options_that_a_job_does_not_have(options: Any, expected: str) -> None:
    with pytest.raises(smolcls.ConfigError, match=expected):
        classify_file(write_texts(3), OUT, FAKE, **options)


def test_a_pipe_cannot_be_gone_on_with() -> None:
    with pytest.raises(smolcls.InputError, match=r"needs a file, which can be read again to go on; no.txt is missing"):
        classify_file("no.txt", OUT, FAKE)


def test_two_jobs_do_not_mix_their_answers() -> None:
    def meddle(state: Progress) -> None:
        if state.rows == 64:
            with OUT.open("ab") as stream:
                stream.write(b"{}\n")

    with pytest.raises(smolcls.InputError, match=r"Another process writes to answers.jsonl. End it, then go on"):
        classify_file(write_texts(200), OUT, FAKE, progress=meddle)


# A backend that fails


def test_a_backend_that_is_gone_ends_the_job_and_one_bad_text_does_not() -> None:
    dead = True

    def answer(text: str) -> Answer:
        number = int(text.split()[1])
        return smolcls.BackendError("no server") if number == 3 or (dead and number >= 100) else "workflow"

    source = write_texts(200)
    with pytest.raises(smolcls.BackendError, match=f"{GONE} texts in a row got no answer; the last error: no server"):
        classify_file(source, OUT, faking(answer))
    assert len(answers()) == 64
    dead = False
    assert classify_file(source, OUT, faking(answer), existing="resume").errors == 1
    assert [row.get("error") for row in answers()] == [None] * 3 + ["Line 4: no server"] + [None] * 196
