"""Every example, run for real, by the rules and the fake where a model would answer."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
COPROCESS = EXAMPLES / "coprocess" / "classify.mjs"
TIMEOUT = 300

node = shutil.which("node")
needs_node = pytest.mark.skipif(node is None or os.name == "nt", reason="needs node, and a shell for its wrappers")


def output(command: list[str | Path], **variables: str) -> str:
    environment = {**os.environ, "SMOLCLS_CHAIN": "rules", "PYTHONUTF8": "1", **variables}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_readme_names_every_file() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.rglob("*"):
        if path.is_file() and path.name != "README.md" and "__pycache__" not in path.parts:
            relative = path.relative_to(EXAMPLES).as_posix()
            assert f"`{relative}`" in readme or f"`{relative.split('/')[0]}/`" in readme


def test_classify() -> None:
    rows = [line.split("\t") for line in output([sys.executable, EXAMPLES / "classify.py"]).splitlines()]
    assert [row[0] for row in rows] == ["command", "prompt", "prompt", "workflow", "workflow"]
    assert all(row[1].endswith("%") and row[2] == "rules" for row in rows)


def test_own_task() -> None:
    rows = [line.split("\t") for line in output([sys.executable, EXAMPLES / "own_task.py"]).splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("billing", "money"),
        ("faults", "broken"),
        ("sales", "before-buying"),
        ("a person decides", "otherwise"),
    ]


def test_router() -> None:
    printed = output([sys.executable, EXAMPLES / "router.py"])
    assert "/help: command (" in printed
    assert "what is recursion?: prompt (" in printed
    assert "run the tests and push: workflow (" in printed
    # Without the extra the stage is unavailable, with it no server is there; either way it is left alone then.
    first, second = [line.split("(")[0].strip() for line in printed.splitlines() if "ollama:three-type" in line]
    assert first in {"ollama:three-type: failed", "ollama:three-type: unavailable"}
    assert second == "ollama:three-type: breaker-open"
    assert printed.count("last resort: accepted") == 2


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[data]")
def test_ray_data(tmp_path: Path) -> None:
    source, folder = tmp_path / "big.jsonl", tmp_path / "answers"
    source.write_text("".join(f'{{"id": {number}, "text": "/help {number}"}}\n' for number in range(3000)))
    command: list[str | Path] = [sys.executable, EXAMPLES / "ray_data.py", source, folder]
    environment = {**os.environ, "SMOLCLS_CHAIN": "rules", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == list(range(3000))
    assert {(row["label"], row["confidence"] > 0.9) for row in rows} == {("command", True)}


@pytest.fixture(scope="module")
def installed_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, installed into a folder of its own; built from a copy, for a build leaves files behind."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLES / "plugin", folder / "source")
    target = folder / "target"
    # Without setuptools here pip fetches it.
    offline = ["--no-build-isolation"] if importlib.util.find_spec("setuptools") else []
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *offline]
    done = subprocess.run(
        [*pip, "--target", target, source], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_plugin_is_found_by_its_name(installed_plugin: Path) -> None:
    code = """
import smolcls
with smolcls.load("overlap", task=smolcls.Task({"billing": "invoices and payments", "faults": "what is broken"})) as it:
    answer = it.classify("the invoices are missing")
    print(answer.label, answer.backend, round(sum(answer.probabilities.values()), 6))
print(smolcls.ConfidenceRouter(["overlap"]).classify("a question").label)
"""
    printed = output([sys.executable, "-c", code], PYTHONPATH=str(installed_plugin))
    assert printed.split() == ["billing", "overlap", "1.0", "prompt"]


def test_the_plugins_readme_is_right(installed_plugin: Path) -> None:
    readme = (EXAMPLES / "plugin" / "README.md").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if line.startswith("smolcls ")]
    assert len(commands) == 3
    program = f'"{sys.executable}" -c "from smolcls.cli import main; main()"'
    script = f"cd '{EXAMPLES.parent}'\n" + "\n".join(line.replace("smolcls", program, 1) for line in commands)
    if os.name == "nt":
        pytest.skip("needs a shell")
    printed = output(["sh", "-ec", script], PYTHONPATH=str(installed_plugin)).splitlines()
    assert ["overlap", "ready"] in [line.split() for line in printed]
    assert printed[-2].split()[0] == "billing"
    assert printed[-1].split()[0] == "billing"


def test_without_the_plugin_its_name_is_unknown() -> None:
    code = "import smolcls\ntry: smolcls.load('overlap')\nexcept smolcls.ConfigError as error: print(error)"
    assert "No backend 'overlap'; installed are: fake, linear, llamacpp" in output([sys.executable, "-c", code])


def program(folder: Path, script: str) -> str:
    """An executable file for SMOLCLS_COMMAND."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def asked(command: str, *texts: str, timeout_ms: int = 120_000, **variables: str) -> list[list[str]]:
    """What the co-process example prints, in columns: label, who answered, text."""
    assert node is not None
    printed = output(
        [node, COPROCESS, *texts], SMOLCLS_COMMAND=command, SMOLCLS_TIMEOUT_MS=str(timeout_ms), **variables
    )
    rows = [line.split("\t") for line in printed.rstrip("\n").split("\n")]
    assert [row[2] for row in rows] == list(texts)
    return rows


@pytest.fixture
def smolcls_program(tmp_path: Path) -> str:
    return program(tmp_path, f'exec "{sys.executable}" -c "from smolcls.cli import main; main()" "$@"')


@needs_node
def test_coprocess_takes_sure_answers(smolcls_program: str) -> None:
    rows = asked(smolcls_program, "/help", "fix the\u2028bug in src/auth.ts", SMOLCLS_CHAIN="rules")
    assert [row[:2] for row in rows] == [["command", "smolcls (rules)"], ["workflow", "smolcls (rules)"]]


@needs_node
def test_coprocess_decides_itself_what_smolcls_is_unsure_of(smolcls_program: str, tmp_path: Path) -> None:
    chain = tmp_path / "chain.toml"
    chain.write_text('[[stage]]\nuse = "fake:workflow"\noptions = { confidence = 0.6 }\n')
    rows = asked(smolcls_program, "/help", " ", SMOLCLS_CHAIN=str(chain))
    assert rows[0][:2] == ["command", "own rules (smolcls is unsure: 0.6)"]
    assert rows[1][:2] == [
        "prompt",
        'own rules (Line 2: expected an object with a non-empty "text"; found {"id":2,"text":" "})',
    ]


@needs_node
def test_coprocess_works_where_smolcls_is_missing() -> None:
    rows = asked("no-such-program", "/help", "fix the bug", "what is recursion?")
    assert [row[0] for row in rows] == ["command", "workflow", "prompt"]
    assert {row[1] for row in rows} == {"own rules (no answer from smolcls)"}


@needs_node
def test_coprocess_starts_a_dead_one_again(tmp_path: Path) -> None:
    # It answers one question, and dies of the next.
    answer = """'{"id": %s, "label": "workflow", "confidence": 0.9, "backend": "%s"}\\n'"""
    dying = program(tmp_path, f"""read line; printf {answer} "$(echo "$line" | tr -dc 0-9)" $$; read line; exit 1""")
    rows = asked(dying, "a", "b", "c", "d")
    first, dead, third, dead_again = [row[1] for row in rows]
    assert dead == dead_again == "own rules (no answer from smolcls)"
    assert first.startswith("smolcls (")
    assert third.startswith("smolcls (")
    assert third != first  # the backend it names is its process number


@needs_node
def test_coprocess_does_not_wait_for_a_hanging_one_and_ends_it_at_last(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    hanging = program(tmp_path, f"echo started >> '{starts}'; exec sleep 600")
    rows = asked(hanging, *["fix the bug"] * 120, timeout_ms=30)
    assert {tuple(row[:2]) for row in rows} == {("workflow", "own rules (no answer from smolcls)")}
    assert starts.read_text().count("started") >= 2
