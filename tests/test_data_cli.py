"""`smolcls data`: what its commands write, print and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import run

from smolcls.data import generate
from smolcls.data.rows import Row, read_rows, write_rows

ROWS = [
    Row("/help", "command"),
    Row("how do magnets work", "prompt"),
    Row("tidy up the garden shed", "workflow"),
]


def test_check_prints_what_it_found_and_fails_on_problems(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write_rows(good, ROWS)
    write_rows(bad, [*ROWS[:2], Row("sweep the stairs \x1b[2J", "chore"), Row("paint the old fence", "workflow")])
    fine = run("data", "check", str(good))
    assert fine.exit_code == 0
    assert fine.stdout == f"{good}  3 rows  command 1, prompt 1, workflow 1\nno problems, no notes\n"
    found = run("data", "check", str(good), str(bad))
    assert found.exit_code == 1
    assert "problem: unknown-label (1)" in found.stdout
    assert f"{bad}:3: expected one of the labels command, prompt, workflow; found 'chore'." in found.stdout
    assert "problem: copy-leak (2)" in found.stdout
    assert found.stdout.endswith("3 problems, no notes\n")
    assert "\x1b" not in found.stdout


def test_check_shows_ten_of_a_kind_and_all_of_them_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("nonsense\n" * 12)
    shown = run("data", "check", str(path)).stdout
    assert shown.count("expected a JSON object") == 10
    assert "… and 2 more; --json shows all" in shown
    result = run("data", "check", "--json", str(path))
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [finding["kind"] for finding in report["problems"]] == ["form"] * 12 + ["missing-label"]
    assert report["problems"][11]["places"] == [f"{path}:12"]


def test_check_takes_another_task(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text('[labels]\nham = ""\nspam = ""\n')
    write_rows(tmp_path / "rows.jsonl", [Row("lunch on friday?", "ham"), Row("cheap watches here", "spam")])
    result = run("data", "check", "--task", str(tmp_path / "task.toml"), str(tmp_path / "rows.jsonl"))
    assert result.exit_code == 0
    assert "2 rows  ham 1, spam 1" in result.stdout


def test_split_writes_three_files_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    rows = [Row(f"{word}{number} {number * 7919} {word}", word) for number in range(60) for word in ("yes", "no")]
    write_rows(tmp_path / "rows.jsonl", rows)
    shares = ["--validation", "0.2", "--test", "0.1"]
    result = run("data", "split", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "a"), *shares)
    assert result.exit_code == 0
    parts = [read_rows(tmp_path / "a" / f"{part}.jsonl") for part in ("train", "validation", "test")]
    assert sorted(row.text for part in parts for row in part) == sorted(row.text for row in rows)
    assert all(parts)
    again = result.stdout.splitlines()[-1].removeprefix("the same split again: ").split()
    other = [str(tmp_path / "b"), *shares, *again]
    assert run("data", "split", str(tmp_path / "rows.jsonl"), "--chat", "--out", *other).exit_code == 0
    chats = [read_rows(tmp_path / "b" / f"{part}.jsonl") for part in ("train", "validation", "test")]
    assert chats == parts
    assert '"messages"' in (tmp_path / "b" / "test.jsonl").read_text()


def test_vary_fills_patterns(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        '[slots]\nfile = ["a.py", "b.rs", "c.go"]\n[[text]]\ntext = "open {file}"\nlabel = "workflow"\n'
    )
    out = tmp_path / "rows.jsonl"
    result = run("data", "vary", str(tmp_path / "p.toml"), "--per-text", "2", "--out", str(out))
    assert (result.exit_code, result.stdout) == (0, f"{out}  2 rows  workflow 2\n")
    assert {row.text for row in read_rows(out)} < {"open a.py", "open b.rs", "open c.go"}


class Parrot:
    """Writes the same two texts for ever."""

    def generate(self, prompt: str, seed: int, max_tokens: int) -> str:
        label = prompt.split("that get the label ")[1].split()[0]
        return f"1. {label}, {label}, {label}!\n2. {label[::-1]} {label[::-1]} {label[::-1]}"

    def close(self) -> None:
        pass


def test_write_keeps_what_it_got_and_fails_where_that_was_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generate._GENERATORS, "ollama", lambda model: Parrot())
    out, avoid = tmp_path / "rows.jsonl", tmp_path / "avoid.jsonl"
    write_rows(avoid, [Row("prompt prompt prompt", "prompt")])
    command = ["data", "write", "--model", "ollama:parrot", "--out", str(out), "--avoid", str(avoid)]
    enough = run(*command, "--count", "3")
    assert enough.exit_code == 0
    assert enough.stdout == f"{out}  3 rows  command 1, prompt 1, workflow 1\n"
    assert "left out: 1 near-copy" in enough.stderr
    short = run(*command, "--count", "6", "--style", "as a parrot speaks")
    assert short.exit_code == 1
    assert "smolcls: gave up prompt: 20 answers in a row brought nothing new. Give --examples" in short.stderr
    assert len(read_rows(out)) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["split", "nowhere.jsonl", "--out", "x"], "nowhere.jsonl cannot be read"),
        (["vary", "nowhere.toml", "--out", "x"], "nowhere.toml cannot be read as TOML"),
        (["write", "--model", "gpt:x", "--count", "3", "--out", "x"], "found 'gpt:x'"),
    ],
)
def test_what_cannot_be_used_is_named(arguments: list[str], message: str) -> None:
    result = run("data", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
