"""A large job by several processes and by the command line: interrupted, killed, and gone on with."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from command_line import PROGRAM, TIMEOUT, classify, run
from job_files import FAKE, OUT, answers, faking, write_texts

import smolcls
from smolcls.backends.fake import Answer, FakeClassifier
from smolcls.jobs import classify_file
from smolcls.lines import Line, read_lines
from smolcls.workers import Crew

# Several processes; what they are sent stands at the module's level


def dying_once(text: str) -> Answer:
    if text == "text 150" and not Path("dead").exists():
        Path("dead").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(TIMEOUT)
    return "workflow"


def refusing(text: str) -> Answer:
    return smolcls.ModelError(f"no model for {text}") if text == "text 150" else "workflow"


def batches_of(path: Path) -> Iterator[list[Line]]:
    with path.open("rb") as stream:
        for line in read_lines(stream):
            yield [line]


@pytest.mark.skipif(os.name == "nt", reason="this system has no signals to die of")
def test_a_worker_that_dies_is_one_error_and_the_job_goes_on() -> None:
    source, make = write_texts(400), functools.partial(FakeClassifier, dying_once)
    with pytest.raises(smolcls.BackendError, match=r"A worker process died \(signal 15\) on one of the lines 129 to 3"):
        classify_file(source, OUT, make, processes=2)
    assert [row["text"] for row in answers()] == [f"text {number}" for number in range(128)]
    assert classify_file(source, OUT, make, processes=2, existing="resume").rows == 400
    assert [row["text"] for row in answers()] == [f"text {number}" for number in range(400)]


def test_a_workers_error_is_the_jobs_error() -> None:
    with pytest.raises(smolcls.ModelError, match="no model for text 150"):
        classify_file(write_texts(200), OUT, functools.partial(FakeClassifier, refusing), processes=2)
    assert len(answers()) == 128


def test_what_cannot_be_sent_to_a_process_is_said() -> None:
    with pytest.raises(smolcls.ConfigError, match=r"cannot be sent to another process \(.*functools.partial\(smolcls"):
        classify_file(write_texts(3), OUT, faking(lambda text: "prompt"), processes=2)


def test_large_batches_do_not_block_both_ends() -> None:
    big = Path("big.txt")
    big.write_text("".join("x" * 300_000 + f" {number}\n" for number in range(12)))
    with FAKE() as classifier:
        pairs = [pair for batch in Crew(classifier, FAKE, 2).answer(batches_of(big)) for pair in batch]
    assert [line.number for line, _ in pairs] == list(range(1, 13))


# The command line


def job(*arguments: str) -> Result:
    return classify("--file", "texts.txt", "--out", str(OUT), *arguments)


def test_the_command_line_writes_resumes_and_replaces() -> None:
    write_texts(70)
    assert job().stdout == "wrote answers.jsonl (70 answers)\n"
    again = job()
    assert (again.exit_code, again.stdout) == (2, "")
    assert "answers.jsonl is there already. Give --resume" in again.stderr
    assert job("--resume").exit_code == 0
    assert job("--force", "--jobs", "2").stdout == "wrote answers.jsonl (70 answers)\n"
    Path("texts.txt").write_text("one\n{}\n")
    failed = job("--force")
    assert failed.exit_code == 1
    assert failed.stderr == "smolcls: 1 of 2 lines could not be answered.\n"


def test_several_processes_print_in_order_too() -> None:
    write_texts(200)
    result = classify("--json", "--file", "texts.txt", "--jobs", "2")
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == [f"text {n}" for n in range(200)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--out", "x", "a"], "--out and --jobs are for a --file, and not for standard input."),
        (["--file", "-", "--jobs", "2"], "--out and --jobs are for a --file, and not for standard input."),
        (["--file", "texts.txt", "--resume"], "--resume and --force are about the file of --out: give it too."),
        (["--file", "texts.txt", "--out", "x", "--resume", "--force"], "--resume goes on, --force begins anew"),
        (["--file", "texts.txt", "--out", "x", "--explain"], "--explain is for people; the answers in --out have it"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], expected: str) -> None:
    write_texts(1)
    result = classify(*arguments)
    assert result.exit_code == 2
    assert expected in " ".join(result.stderr.split())


@pytest.mark.skipif(os.name == "nt", reason="this system has no such signals")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_ctrl_c_says_how_to_go_on_and_a_kill_costs_nothing(processes: str) -> None:
    write_texts(2000)
    Path("slow chain.toml").write_text('[[stage]]\nuse = "fake:workflow"\noptions = { delay = 0.02 }\n')
    given = ["--file", "texts.txt", "--out", str(OUT), "--jobs", processes, "--chain", "slow chain.toml"]
    for number in (signal.SIGINT, signal.SIGKILL):
        before = len(answers()) if OUT.exists() else 0
        with subprocess.Popen([*PROGRAM, "classify", *given, "--resume"], stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + TIMEOUT
            while not OUT.exists() or OUT.read_bytes().count(b"\n") <= before + 64:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=TIMEOUT)
        if number == signal.SIGINT:
            assert process.returncode == 130
            command = (
                "smolcls classify --file texts.txt --out answers.jsonl --jobs 2 --chain 'slow chain.toml' --resume"
            )
            kept = len(answers())
            assert said == (
                f"smolcls: {kept} answers are kept in answers.jsonl. Go on with:\n"
                + command.replace("--jobs 2", f"--jobs {processes}")
                + "\n"
            )
    assert run("classify", *given, "--resume").exit_code == 0
    assert [row["text"] for row in answers()] == [f"text {number}" for number in range(2000)]
