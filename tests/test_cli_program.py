"""The command line as a program of its own: streams, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import PROGRAM, TIMEOUT


@pytest.fixture
def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**kept, "SMOLCLS_CHAIN": "fake:workflow"}


@pytest.fixture
def coprocess(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`smolcls classify --json`, open; killed where a test fails to end it."""
    with subprocess.Popen(
        [*PROGRAM, "classify", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", bufsize=1,
        env=environment,
    ) as process:  # fmt: skip
        killer = threading.Timer(TIMEOUT, process.kill)
        killer.start()
        yield process
        killer.cancel()
        process.kill()


def ask(process: subprocess.Popen[str], line: str) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    return json.loads(process.stdout.readline())


def test_a_coprocess_answers_each_line_at_once_and_survives_a_bad_one(coprocess: subprocess.Popen[str]) -> None:
    assert ask(coprocess, "first")["label"] == "workflow"
    assert "expected an object" in ask(coprocess, '{"id": 2}')["error"]
    assert ask(coprocess, '{"id": 3, "text": "ünï"}')["id"] == 3
    _, errors = coprocess.communicate(timeout=TIMEOUT)
    assert errors == "smolcls: 1 of 3 lines could not be answered.\n"
    assert coprocess.returncode == 1


def test_ctrl_c_ends_it_silently_with_130(coprocess: subprocess.Popen[str]) -> None:
    ask(coprocess, "first")
    coprocess.send_signal(signal.SIGINT)
    assert coprocess.wait(TIMEOUT) == 130
    assert coprocess.stderr is not None
    assert coprocess.stderr.read() == ""


def test_a_reader_that_goes_away_ends_it_silently(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("some text\n" * 20_000)
    with subprocess.Popen(
        [*PROGRAM, "classify", "--file", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"workflow")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(TIMEOUT) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_file_is_answered_while_it_is_read(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with subprocess.Popen(
        [*PROGRAM, "classify", "--json", "--file", str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        with path.open("wb", buffering=0) as pipe:
            pipe.write(b"a text\n" * 100)
            first = [json.loads(process.stdout.readline()) for _ in range(64)]
            assert [row["label"] for row in first] == ["workflow"] * 64
        assert len(process.stdout.readlines()) == 36
        assert process.wait(TIMEOUT) == 0


def test_a_poorer_encoding_of_the_terminal_costs_characters_only(environment: dict[str, str]) -> None:
    environment["PYTHONIOENCODING"] = "latin-1"

    def output(*flags: str) -> bytes:
        command = [*PROGRAM, "classify", *flags, "zażółć"]
        return subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT, check=True).stdout

    assert output().endswith("za?ó?ć\n".encode("latin-1", "replace"))
    assert json.loads(output("--json").decode("utf-8"))["text"] == "zażółć"


def test_the_exit_code_leaves_the_program(environment: dict[str, str]) -> None:
    for arguments, code in [(["a"], 0), (["--chain", "llamacpp:no.gguf", "a"], 1), ([" "], 2)]:
        done = subprocess.run([*PROGRAM, "classify", *arguments], env=environment, capture_output=True, timeout=TIMEOUT)
        assert done.returncode == code
