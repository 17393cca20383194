"""`smolcls evaluate`: what it prints and exits with, and how it compares with an older report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from command_line import run
from test_evaluate import ROWS

from smolcls import InputError
from smolcls.evaluation import read_answers


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row.text, "label": row.label, **row.columns}) + "\n" for row in ROWS))
    return path


def test_the_command_shows_backends_and_baselines_side_by_side(table: Path) -> None:
    result = run("evaluate", str(table), "--backend", "fake:workflow", "--backend", "rules")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["fake:workflow", "rules", "majority", "linear"]
    assert "50.0%" in lines[1]
    assert "   4  " in lines[1]


def test_the_chain_is_measured_without_a_name_or_by_it(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLCLS_CHAIN", "fake:prompt")
    for arguments, expected in (((), "chain"), (("--backend", "chain:fake:command"), "chain:fake:command")):
        result = run("evaluate", str(table), "--json", *arguments)
        content = json.loads(result.stdout)
        assert list(content["backends"]) == [expected, "majority", "linear"]
        assert content["backends"][expected]["metrics"]["accuracy"] == 0.25


def test_json_has_everything_but_the_rows(table: Path) -> None:
    result = run("evaluate", str(table), "--backend", "linear", "--slice", "fold", "--where", "source=a", "--json")
    content: dict[str, Any] = json.loads(result.stdout)
    assert "rows" not in content
    assert list(content["backends"]) == ["linear", "majority"]  # named, it is no baseline
    assert [content["backends"][name]["baseline"] for name in content["backends"]] == [False, True]
    assert content["backends"]["linear"]["metrics"]["rows"] == 2
    assert content["backends"]["linear"]["before_calibration"] is not None
    assert {item["column"] for item in content["backends"]["linear"]["slices"]} == {"length", "source", "fold"}


def test_a_task_without_a_linear_model_is_told_so(tmp_path: Path) -> None:
    task, rows = tmp_path / "desk.toml", tmp_path / "rows.jsonl"
    task.write_text('name = "desk"\n[labels]\nbill = "money"\nother = "the rest"\n')
    rows.write_text('{"text": "refund me", "label": "bill"}\n')
    result = run("evaluate", str(rows), "--task", str(task), "--backend", "fake:bill")
    assert result.exit_code == 0, result.output
    assert "Without the linear baseline: No linear model is shipped for the task 'desk'" in result.stderr
    assert "linear:runs/NAME" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["fake:bill", "majority"]


def test_a_gate_that_fails_is_the_exit_code(table: Path) -> None:
    asked = ["evaluate", str(table), "--backend", "fake:workflow", "--backend", "fake:prompt"]
    assert run(*asked, "--require", "accuracy>=0.25", "--require", "recall.command<=0").exit_code == 0
    result = run(*asked, "--require", "accuracy>=0.5", "--require", "recall.workflow>=0.5")
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if line.startswith("smolcls: ")] == [
        "smolcls: fake:prompt: required accuracy>=0.5; found 0.2500",
        "smolcls: fake:prompt: required recall.workflow>=0.5; found 0.0000",
    ]
    assert "majority" in result.stdout


def test_wrong_usage_is_refused_before_a_backend_is_made(table: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    for arguments, message in (
        (("--require", "accuracy>=high"), "must end with a number"),
        (("--where", "source"), "expected COLUMN=VALUE; found 'source'"),
        (("--slice", "author"), "no column 'author' to slice by"),
        (("--text", "words"), "expected the column 'words'"),
        (("--compare", str(tmp_path / "old.json")), "is not a report that smolcls wrote"),
        (("--compare", str(tmp_path / "none.json")), "is not a report that smolcls wrote"),
    ):
        result = run("evaluate", str(table), "--backend", "no-such-backend", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr, result.stderr


def test_an_older_report_is_compared(table: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "report"
    asked = ("evaluate", str(table), "--backend", "rules")
    assert run(*asked, "--report", str(folder)).exit_code == 0
    path = folder / "report.json"
    answers = read_answers(path)
    assert set(answers) == {"rules", "majority", "linear"}
    content = json.loads(path.read_text())
    content["rows"][0]["answers"]["rules"] = ["prompt", 0.9]
    path.write_text(json.dumps(content))
    result = run(*asked, "--compare", str(path))
    assert result.exit_code == 0, result.output
    assert "on 4 rows; 1 answers flipped, 1 to right, 0 to wrong (McNemar's p 1.000)" in result.stdout


def _spoil_rows(content: dict[str, Any]) -> None:
    content["rows"][0].pop("text")


def _spoil_answers(content: dict[str, Any]) -> None:
    content["rows"][0]["answers"] = 5


@pytest.mark.parametrize("spoil", [_spoil_rows, _spoil_answers, lambda content: content.update(rows=None)])
def test_a_damaged_report_is_named(tmp_path: Path, spoil: Callable[[dict[str, Any]], None]) -> None:
    content = {
        "format": "smolcls-report-1",
        "rows": [{"text": "a", "label": "b", "answers": {"rules": ["b", 0.5]}}],
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(content))
    assert read_answers(path) == {"rules": {("a", "b"): "b"}}
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"report.json is not a report that smolcls wrote .* smolcls evaluate --report"
    ):
        read_answers(path)
