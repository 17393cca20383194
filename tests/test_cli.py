"""The command line, with a classifier that answers what it is told."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import TIMEOUT, classify, objects, run

import smolcls
from smolcls import build, registry
from smolcls.backends.fake import FakeClassifier
from smolcls.cli import COMMANDS, options

# Help and the table of commands


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)
    assert "130  interrupted" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_of_the_table_is_there_and_explains_itself(name: str) -> None:
    assert importlib.import_module(COMMANDS[name][0]).command.name == name
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"smolcls {name}" in result.output.replace("group", "smolcls")


def test_help_imports_no_command_and_nothing_heavy() -> None:
    code = "import sys, smolcls.cli\ntry: smolcls.cli.group(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True)
    loaded = set(done.stderr.split())
    assert "smolcls.cli" in loaded
    unwanted = {module for module, _ in COMMANDS.values()}
    unwanted |= {"numpy", "torch", "tqdm", "llama_cpp", "gguf", "ollama", "httpx", "asyncio", "smolcls.build"}
    assert not loaded & unwanted


def test_version() -> None:
    assert run("--version").output == f"smolcls, version {smolcls.__version__}\n"


# Arguments


def test_arguments_are_answered_in_order_for_people() -> None:
    result = classify("fix the\n bug", "run it")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["workflow", "99.0%", "fake", "fix", "the", "bug"],
        ["workflow", "99.0%", "fake", "run", "it"],
    ]


def test_json_is_one_object_a_line() -> None:
    first, second = objects(classify("--json", "one", "two"))
    assert (first["text"], first["label"], first["confidence"], first["backend"]) == ("one", "workflow", 0.99, "fake")
    assert second["text"] == "two"


def test_what_a_terminal_would_obey_is_not_printed() -> None:
    assert classify("a\x1b[2Jb\ud800").stdout.rstrip().endswith("a�[2Jb�")


def test_a_long_text_is_shown_shortened() -> None:
    shown = classify("word " * 100_000).stdout.rstrip()
    assert shown.endswith("…")
    assert len(shown) < 120


@pytest.mark.parametrize("spelling", [[], ["-"], ["--file", "-"]])
def test_standard_input_in_three_spellings(spelling: list[str]) -> None:
    result = classify(*spelling, stdin="one\n\n  two  ")
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["one", "two"]


# Options


def test_below_the_least_confidence_there_is_no_label() -> None:
    assert classify("--min-confidence", "0.995", "a").stdout.split()[0] == "(unsure)"
    assert objects(classify("--json", "--min-confidence", "0.995", "a"))[0]["label"] is None
    assert objects(classify("--json", "--min-confidence", "0.9", "a"))[0]["label"] == "workflow"


def test_without_the_option_the_limit_of_smolcls_toml_counts() -> None:
    Path("smolcls.toml").write_text('min_confidence = 0.995\n[[stage]]\nuse = "fake:prompt"\n')
    assert objects(run("classify", "--json", "a"))[0]["label"] is None
    assert objects(run("classify", "--json", "--min-confidence", "0", "a"))[0]["label"] == "prompt"


def test_explain_says_what_each_stage_did() -> None:
    result = run("classify", "--chain", "ollama:x@0.8,fake:prompt@0.999,fake:workflow", "--explain", "a")
    assert "    ollama:x: " in result.stdout
    assert "    fake:prompt: below-threshold, said prompt at 99.0% (confidence 0.99 is below 1.00; " in result.stdout
    assert "    fake:workflow: accepted, said workflow at 99.0% (the last stage always answers; " in result.stdout
    assert "    probabilities: command 0.5%, prompt 0.5%, workflow 99.0%\n" in result.stdout


def test_explain_names_the_rule_and_says_what_was_shortened() -> None:
    text = run("classify", "--backend", "rules", "--explain", "/help " + "a" * 5000).stdout
    assert "    the rule that decided: " in text
    assert "    the text was shortened: its head and tail were scored\n" in text


def test_a_task_of_ones_own() -> None:
    Path("mail.toml").write_text('name = "mail"\n[labels]\nspam = "unwanted"\nham = "wanted"\n')
    (answer,) = objects(run("classify", "--json", "--task", "mail.toml", "--backend", "fake", "buy now"))
    assert list(answer["probabilities"]) == ["spam", "ham"]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["classify", "--nonsense"], 2, "No such option"),
        (["nonsense"], 2, "No such command"),
        (["classify", "--backend", "fake", "--chain", "rules", "a"], 2, "--backend and --chain exclude each other"),
        (
            ["classify", "--backend", "lamacpp", "a"],
            2,
            "No backend 'lamacpp'; installed are: fake, linear, llamacpp, ollama, onnx",
        ),
        (["classify", "--chain", "rules@2", "a"], 2, "Expected stages such as rules@0.99,onnx@0.8,rules; found"),
        (["classify", "--task", "no.toml", "a"], 2, "No task 'no.toml': expected one of three-type, or the path"),
        (
            ["classify", "--backend", "fake", "--min-confidence", "nan", "a"],
            2,
            "--min-confidence must be a number between",
        ),
        (["classify", "--backend", "fake", "a", " "], 2, "smolcls: Text 2 of 2: The text to classify is empty."),
        (["classify", "--file", "no.txt"], 2, "File 'no.txt' does not exist"),
        (["classify", "--file", "."], 2, "'.' is a directory"),
        (["classify", "--file", "-", "a"], 2, "Give texts as arguments or a --file, not both."),
        (["classify", "--backend", "llamacpp:no.gguf", "a"], 1, "smolcls: "),
        (
            ["classify", "--chain", "llamacpp:no.gguf", "a"],
            1,
            "smolcls: No stage of the router could answer. llamacpp:no",
        ),
        (["build", "--base", "no.gguf"], 2, "smolcls: No base model 'no.gguf': expected 'bundled', a GGUF file"),
        (["build", "--format", "onxx"], 2, "'onxx' is not one of 'gguf', 'onnx'"),
        (
            ["build", "--format", "onnx", "--quantisation", "Q8_0"],
            2,
            "smolcls: An ONNX model is in INT8; found the quantisation 'Q8_0'. Leave it out.",
        ),
        (["build", "--quantisation", "Q9"], 2, "Unknown quantisation 'Q9'; expected F16 or one of Q4_K_M"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(arguments: list[str], code: int, expected: str) -> None:
    result = run(*arguments)
    assert expected in result.stderr
    assert (result.exit_code, result.stdout) == (code, "")


def test_the_variable_is_named_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLCLS_CHAIN", "no.toml")
    result = run("classify", "a")
    assert result.exit_code == 2
    assert "smolcls: SMOLCLS_CHAIN: no.toml cannot be read as TOML" in result.stderr


# The other commands


def test_backends_says_which_are_ready_and_what_mends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("fake", None), ("ollama", "no server;\nstart it with: ollama serve")]
    monkeypatch.setattr(registry, "availability", lambda: iter(found))
    plain = run("backends").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in plain] == [
        ["fake", "ready"],
        ["ollama", "not ready: no server; start it with: ollama serve"],
    ]
    assert objects(run("backends", "--json")) == [
        {"backend": name, "available": reason is None, "reason": reason} for name, reason in found
    ]


def test_backends_asks_those_that_are_installed() -> None:
    assert {row["backend"] for row in objects(run("backends", "--json"))} == set(registry.names())


@pytest.mark.parametrize("fresh", [True, False])
def test_build_says_where_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(bytes(2_000_000))
    asked: dict[str, Any] = {}

    def built(task: smolcls.Task, *, progress: build.Progress, **options: Any) -> build.Built:
        asked.update(options, task=task.name)
        progress("writing", 1, 2)
        progress("quantising", 1, 1)
        return build.Built(folder, fresh=fresh)

    monkeypatch.setattr(build, "build", built)
    result = run("build", "--base", "x.gguf", "--quantisation", "F16", "--force")
    assert asked == {"task": "three-type", "base": "x.gguf", "quantisation": "F16", "format": "gguf", "force": True}
    assert result.stdout == (
        f"{'built' if fresh else 'found'} {folder}/model.gguf (2 MB)\nModelfile {folder}/Modelfile\n"
        f"with Ollama: ollama create three-type -f '{folder}/Modelfile'\n"
    )


@pytest.mark.parametrize("own", [False, True])
def test_build_of_an_onnx_file_says_how_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(2_000_000))
    Path("my task.toml").write_text('name = "mail"\n[labels]\nspam = ""\nham = ""\n')
    asked: dict[str, Any] = {}

    def built(task: smolcls.Task, **options: Any) -> build.Built:
        asked.update(options)
        return build.Built(folder, fresh=True, format=options["format"])

    monkeypatch.setattr(build, "build", built)
    result = run("build", *(["my task.toml"] if own else []), "--format", "onnx")
    assert (asked["format"], asked["quantisation"]) == ("onnx", None)
    task = " --task 'my task.toml'" if own else ""
    assert result.stdout == (
        f"built {folder}/model.onnx (2 MB)\nsmolcls classify --backend onnx:'{folder}/model.onnx'{task} \"a text\"\n"
    )


@pytest.mark.parametrize(
    ("chosen", "terminal", "expected"),
    [
        (("llamacpp", None), True, ["gguf"]),
        (("onnx", None), True, ["onnx"]),
        ((None, "rules@0.99,llamacpp,rules"), True, ["gguf"]),
        ((None, "rules@0.99,onnx@0.5,llamacpp,rules"), True, ["onnx", "gguf"]),
        ((None, "rules"), True, []),
        (("onnx:model.onnx", None), True, []),
        (("llamacpp", None), False, []),
    ],
)
def test_people_see_the_first_build(
    monkeypatch: pytest.MonkeyPatch, chosen: tuple[str | None, str | None], terminal: bool, expected: list[str]
) -> None:
    builds: list[str] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(build, "build", lambda task, format, progress: builds.append(format))
    monkeypatch.setattr(registry, "load", lambda spec, task: FakeClassifier())
    options.make_classifier(*chosen, None).close()
    assert builds == expected
