"""`smolcls bench`: what it prints, writes and exits with, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import PROGRAM, TIMEOUT, run
from test_bench import LABELS, TEXTS

QUICK = ("--rounds", "1", "--calls", "3", "--batch-size", "2")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_backends_stand_side_by_side_and_all_figures_in_a_file(table: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "bench.json"
    asked = ("--backend", "fake:workflow", "--backend", "linear", "--busy", "1", "--json", str(file))
    result = run("bench", str(table), *asked, *QUICK)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["idle", "fake:workflow", "linear", "beside", "fake:workflow", "linear"]
    assert [lines[1][1], lines[2][1]] == ["33.3%", "100.0%"]
    assert lines[1][-3:-1] == ["–", "–"]
    content = json.loads(file.read_text())
    assert content["data"] == str(table)
    assert content["conditions"]["busy"] == 1
    assert content["conditions"]["rows"] == 3
    linear = content["backends"]["linear"]
    assert linear["accuracy"] == 1.0
    assert linear["idle"]["p50_ms"] == linear["rounds"]["idle"][0]["p50_ms"]
    assert linear["model"]["file"].endswith("model.safetensors")


def test_a_failing_backend_is_a_line_and_the_exit_code(table: Path) -> None:
    result = run("bench", str(table), "--backend", "fake:prompt", "--backend", "nobody", *QUICK)
    assert result.exit_code == 1
    assert "smolcls: nobody: No backend 'nobody'; installed are: " in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["idle", "fake:prompt"]
    result = run("bench", str(table), "--backend", "nobody", *QUICK)
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_hanging_backend_is_a_failing_one(table: Path, tmp_path: Path, hanging_backends: None) -> None:
    file = tmp_path / "bench.json"
    asked = ("--backend", "hangs-in-call", "--backend", "fake:prompt", "--timeout", "5", "--json", str(file))
    result = run("bench", str(table), *asked, *QUICK)
    assert result.exit_code == 1
    reason = "Its process had not ended after 5 s and was killed"
    assert f"smolcls: hangs-in-call: {reason}" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["idle", "fake:prompt"]
    backends = json.loads(file.read_text())["backends"]
    assert backends["hangs-in-call"]["failure"].startswith(reason)
    assert backends["fake:prompt"]["idle"]["p50_ms"] > 0


def test_rows_without_labels_have_no_accuracy(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    result = run("bench", str(path), "--backend", "fake", *QUICK)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1].split()[:2] == ["fake", "–"]


def test_wrong_usage_is_refused_before_a_backend_is_made(table: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text('{"text": "a", "label": "spam"}\n')
    half = tmp_path / "half.jsonl"
    half.write_text('{"text": "a", "label": "prompt"}\n{"text": "b"}\n')
    for arguments, message in (
        ((str(spoilt),), "Expected the labels command, prompt, workflow; found 'spam'"),
        ((str(half),), "line 2: expected the column 'label'"),
        ((str(tmp_path / "none.jsonl"),), "none.jsonl cannot be read"),
        ((str(table), "--text", "words"), "expected the column 'words'"),
        ((str(table), "--label", "kind"), "expected the column 'kind'"),
        ((str(table), "--rounds", "0"), "0 is not in the range"),
        ((str(table), "--task", "nothing"), "No task 'nothing'"),
    ):
        result = run("bench", *arguments, "--backend", "nobody")
        assert result.exit_code == 2
        assert message in result.stderr, result.stderr


def test_a_file_that_cannot_be_written_is_named_after_the_table(table: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("bench", str(table), "--backend", "fake", "--json", str(tmp_path / "file" / "out.json"), *QUICK)
    assert result.exit_code == 2
    assert "out.json cannot be written: " in result.stderr
    assert "Name another file with --json." in result.stderr
    assert "fake" in result.stdout


def _children(parent: int) -> dict[int, str]:
    """The processes that a process has started, with their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
    return found


def _is_there(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_whatever_ends_the_program_ends_the_processes_beside_it(table: Path, number: int, code: int) -> None:
    asked = ["bench", str(table), "--backend", "fake", "--busy", "2", "--rounds", "500", "--calls", "3"]
    with subprocess.Popen([*PROGRAM, *asked], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        spinning: list[int] = []
        deadline = time.monotonic() + TIMEOUT
        while len(spinning) < 2 and time.monotonic() < deadline:
            assert program.poll() is None, program.communicate()
            spinning = [pid for pid, line in _children(program.pid).items() if "bench.busy" in line]
            time.sleep(0.01)
        assert len(spinning) == 2
        os.kill(program.pid, number)
        _, errors = program.communicate(timeout=TIMEOUT)
    assert program.returncode == code, errors
    assert b"Traceback" not in errors
    while any(map(_is_there, spinning)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in spinning if _is_there(pid)]
